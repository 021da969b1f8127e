"""Next tokens: scores are those of a plain loop, and what is packed into one window is as if each stood alone."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ftkit.errors import TrainingFailed
from ftkit.tasks.language import Collate, keeps_apart, score, sharing
from ftkit.tasks.tokens import Tokens
from ftkit.tasks.windows import IGNORED, Layout, Pieces, Windows
from ftkit.train_loss import next_token_trainer
from tests.conftest import pico_config, sft_trainer

CAUSAL = ("llama", "qwen2", "gpt2")
PAD, START, END = 0, 2, 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small wait for threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pico_model(family: str, attention: str = "sdpa"):
    """Weights ten times as large as usual: what one token does to another shows in the first digit."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pico_config(family), attn_implementation=attention).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    return model


@pytest.fixture(scope="module", params=CAUSAL)
def model(request):
    return pico_model(request.param)


def rows_of(lengths, seed=0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(4, 64) for _ in range(length)] for length in lengths]


def plain_nll(model, row) -> tuple[float, list[int], np.ndarray]:
    """Token by token, each from the text before it alone: no batch, no padding, no look at what comes."""
    nll, best, logits = 0.0, [], []
    for place in range(1, len(row)):
        with torch.no_grad():
            ahead = model(input_ids=torch.tensor([row[:place]]), use_cache=False).logits[0, -1].double()
        nll -= float(torch.log_softmax(ahead, -1)[row[place]])
        best.append(int(ahead.argmax()))
        logits.append(ahead.numpy())
    return nll, best, np.array(logits)


class TestScore:
    def test_it_is_what_the_models_own_logits_say_token_by_token(self, model):
        rows = rows_of([2, 9, 17, 5])
        found = score(model, rows, pad_token_id=PAD)
        for number, row in enumerate(rows):
            nll, best, _ = plain_nll(model, row)
            assert found.nll[number] == pytest.approx(nll, rel=1e-5)
            assert found.best[number].tolist() == best
        assert found.nll.dtype == np.float64
        assert found.logits.shape == (0,)

    def test_what_else_is_scored_does_not_change_it(self, model):
        rows = rows_of([60, 3, 31, 2, 60, 18, 44] * 6)
        together = score(model, rows, pad_token_id=PAD)
        alone = [score(model, [row], pad_token_id=PAD) for row in rows]
        np.testing.assert_allclose(together.nll, [one.nll[0] for one in alone], rtol=1e-5)
        assert [own.tolist() for own in together.best] == [one.best[0].tolist() for one in alone]
        with_other_padding = score(model, rows, pad_token_id=63)
        np.testing.assert_allclose(together.nll, with_other_padding.nll, rtol=1e-6)

    def test_the_logits_at_the_places_asked_for_predict_the_next_token(self, model):
        rows = rows_of([30, 4, 12])
        positions = [(1, 2), (0, 28), (2, 0), (1, 0), (1, 2)]
        found = score(model, rows, pad_token_id=PAD, positions=positions)
        assert found.logits.shape == (5, 64)
        for (row, place), logits in zip(positions, found.logits, strict=True):
            np.testing.assert_allclose(logits, plain_nll(model, rows[row])[2][place], atol=1e-4)
            assert logits.argmax() == found.best[row][place]

    def test_how_many_logits_are_taken_at_a_time_changes_nothing(self, model, monkeypatch):
        rows = rows_of([30, 4, 12, 2])
        whole = score(model, rows, pad_token_id=PAD)
        monkeypatch.setattr("ftkit.tasks.language._FLOAT_LOGITS", 3 * 64)
        cut = score(model, rows, pad_token_id=PAD)
        np.testing.assert_array_equal(cut.nll, whole.nll)
        assert [own.tolist() for own in cut.best] == [own.tolist() for own in whole.best]
        assert [own.tolist() for own in cut.margins] == [own.tolist() for own in whole.margins]

    def test_it_tells_how_many_are_done(self, model):
        told: list[int] = []
        score(model, rows_of([60] * 70), pad_token_id=PAD, advance=told.append)
        assert sum(told) == 70
        assert len(told) > 1

    def test_no_rows_have_no_scores(self, model):
        found = score(model, [], pad_token_id=PAD)
        assert (len(found.nll), len(found.best), len(found.logits)) == (0, 0, 0)

    def test_scores_that_are_not_finite_stop_the_run(self):
        broken = pico_model("gpt2")
        with torch.no_grad():
            broken.transformer.ln_f.weight.fill_(float("nan"))
        with pytest.raises(TrainingFailed, match="the model's scores are not finite"):
            score(broken, rows_of([5]), pad_token_id=PAD)


class Whole(torch.nn.Module):
    """A model that makes all its logits whether they are wanted or not, as one with code of its own may."""

    def __init__(self, model) -> None:
        super().__init__()
        self.config = model.config
        self.inner, self.dtype, self.device = model, model.dtype, model.device

    def forward(self, input_ids, use_cache):
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def some_labels(rows, seed=1) -> list[list[int]]:
    """A third of the tokens, spans and single ones; the second row none."""
    chance = random.Random(seed)
    return [
        [token if number != 1 and chance.random() < 0.34 else IGNORED for token in row]
        for number, row in enumerate(rows)
    ]


class TestScoreOfLabels:
    rows = rows_of([30, 8, 12, 51, 2, 25], seed=9)
    labels = some_labels(rows)

    def expected(self, model, number: int) -> tuple[float, list[int]]:
        """By the plain loop: of the places that have a label, the first token left out."""
        row, labels = self.rows[number], self.labels[number]
        _, best, logits = plain_nll(model, row)
        places = [place for place in range(1, len(row)) if labels[place] != IGNORED]
        nll = -sum(float(torch.log_softmax(torch.tensor(logits[place - 1]), -1)[row[place]]) for place in places)
        return nll, [best[place - 1] for place in places]

    def test_it_is_the_plain_loop_over_what_has_a_label(self, model):
        found = score(model, self.rows, pad_token_id=PAD, labels=self.labels)
        for number in range(len(self.rows)):
            nll, best = self.expected(model, number)
            assert found.nll[number] == pytest.approx(nll, rel=1e-5)
            assert found.best[number].tolist() == best
            assert len(found.margins[number]) == len(best)
        assert found.nll[1] == 0
        assert len(found.best[1]) == 0
        assert found.nll[0] > 0

    def test_every_token_labelled_is_no_labels_at_all(self, model):
        all_of_them = score(model, self.rows, pad_token_id=PAD, labels=self.rows)
        without = score(model, self.rows, pad_token_id=PAD)
        np.testing.assert_allclose(all_of_them.nll, without.nll, rtol=1e-6)
        for ours, theirs in zip(all_of_them.margins, without.margins, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)

    def test_logits_are_kept_anywhere_labels_or_not(self, model):
        positions = [(0, 3), (1, 2), (3, 49), (0, 28), (5, 24), (3, 0)]
        found = score(model, self.rows, pad_token_id=PAD, labels=self.labels, positions=positions)
        without = score(model, self.rows, pad_token_id=PAD, positions=positions)
        np.testing.assert_allclose(found.logits, without.logits, atol=1e-4)

    def test_a_model_makes_no_logits_of_prompts(self):
        model = pico_model("llama")
        made = []
        model.lm_head.register_forward_hook(lambda _, args, logits: made.append(logits.shape[1]))
        labels = [[IGNORED] * 57 + row[57:] for row in rows_of([60, 60])]
        score(model, rows_of([60, 60]), pad_token_id=PAD, labels=labels)
        assert made == [3]

    def test_a_model_that_makes_all_logits_is_scored_alike(self):
        model = pico_model("qwen2")
        found = score(model, self.rows, pad_token_id=PAD, labels=self.labels)
        whole = score(Whole(model), self.rows, pad_token_id=PAD, labels=self.labels)
        np.testing.assert_allclose(found.nll, whole.nll, rtol=1e-6)
        assert [own.tolist() for own in found.best] == [own.tolist() for own in whole.best]

    def test_an_adapters_model_is_scored_with_its_adapter(self):
        from peft import LoraConfig, get_peft_model

        base = pico_model("llama")
        before = score(base, self.rows, pad_token_id=PAD, labels=self.labels).nll
        adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
        found = score(adapted, self.rows, pad_token_id=PAD, labels=self.labels)
        assert found.nll[0] == pytest.approx(self.expected(adapted, 0)[0], rel=1e-5)
        assert abs(found.nll[0] - before[0]) > 0.1


class PositionsIgnored(torch.nn.Module):
    """A model whose attention is the plain causal one, whatever positions it is told."""

    def __init__(self, model) -> None:
        super().__init__()
        self.inner, self.dtype, self.device = model, model.dtype, model.device

    def forward(self, input_ids, position_ids, use_cache):
        everything = torch.ones_like(input_ids)
        return self.inner(
            input_ids=input_ids, attention_mask=everything, position_ids=position_ids, use_cache=use_cache
        )


class TestKeepsApart:
    first, second = rows_of([12, 9], seed=4)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", CAUSAL)
    def test_models_that_take_positions_into_account_do(self, family, attention):
        assert keeps_apart(pico_model(family, attention), self.first, self.second)

    @pytest.mark.parametrize("family", CAUSAL)
    def test_a_model_that_mixes_what_is_packed_is_found_out(self, family):
        assert not keeps_apart(PositionsIgnored(pico_model(family)), self.first, self.second)

    @pytest.mark.parametrize("family", CAUSAL)
    def test_a_fresh_model_with_its_small_weights_is_found_out_too(self, family):
        torch.manual_seed(1)
        fresh = AutoModelForCausalLM.from_config(pico_config(family)).eval()
        assert keeps_apart(fresh, self.first, self.second)
        assert not keeps_apart(PositionsIgnored(fresh), self.first, self.second)

    def test_a_model_without_attention_goes_on_from_one_to_the_other(self):
        from transformers import MambaConfig, MambaForCausalLM

        torch.manual_seed(0)
        mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, state_size=8)).eval()

        class Taking(PositionsIgnored):
            def forward(self, input_ids, position_ids, use_cache):
                return self.inner(input_ids=input_ids, use_cache=use_cache)

        assert not keeps_apart(Taking(mamba), self.first, self.second)


def packed(lengths, max_length=64) -> Windows:
    documents = rows_of(lengths, seed=7)
    tokens = Tokens(np.array([token for row in documents for token in row]), np.cumsum(lengths))
    return Windows(Pieces(tokens, Layout(max_length, START, END)), packed=True)


class TestPacking:
    """Several windows of unlike length in one batch, so that packed rows, padding and single documents meet."""

    windows = packed([20, 11, 27, 9, 6, 40, 2, 13])
    collate = Collate(PAD, None)

    def members(self):
        """Each document: its row in the batch, where it begins there, its ids."""
        for row in range(len(self.windows)):
            at = 0
            for piece in self.windows.members(row):
                ids = self.windows.pieces.ids(piece)
                yield row, at, ids
                at += len(ids)

    def test_the_batch_is_made_of_packed_and_of_padded_rows(self):
        assert len(self.windows) == 3
        assert len(list(self.members())) == 8
        batch = self.collate([self.windows[row] for row in range(3)])
        assert set(batch) == {"input_ids", "labels", "position_ids"}  # a mask would switch packing off
        assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape
        assert batch["input_ids"][-1, -1] == PAD
        assert batch["labels"][-1, -1] == IGNORED
        real = sum(self.windows.lengths)
        assert (batch["labels"] != IGNORED).sum() == real - 8

    def test_the_logits_of_each_document_are_those_it_has_alone(self, model):
        batch = self.collate([self.windows[row] for row in range(len(self.windows))])
        given = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            together = model(**given, use_cache=False).logits
        for row, at, ids in self.members():
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            assert alone.abs().max() > 1
            torch.testing.assert_close(together[row, at : at + len(ids)], alone, atol=1e-5, rtol=1e-5)

    def test_it_would_show_if_they_were_mixed(self, model):
        batch = self.collate([self.windows[row] for row in range(len(self.windows))])
        with torch.no_grad():
            mixed = model(input_ids=batch["input_ids"], use_cache=False).logits
            row, at, ids = next(member for member in self.members() if member[1])
            alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        assert (mixed[row, at : at + len(ids)] - alone).abs().max() > 0.1

    def test_an_unpacked_batch_has_each_rows_own_logits(self, model):
        unpacked = Windows(self.windows.pieces, packed=False)
        rows = [unpacked[row] for row in range(len(unpacked))]
        batch = self.collate(rows)
        with torch.no_grad():
            together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            for number, row in enumerate(rows):
                alone = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
                torch.testing.assert_close(together[number, : len(alone)], alone, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("family", CAUSAL)
    def test_training_computes_the_sum_of_the_losses_that_the_documents_have_alone(
        self, family, tmp_path, tokenizer_folder
    ):
        model = pico_model(family)
        alone = score(model, [ids for _, _, ids in self.members()], pad_token_id=PAD).nll.sum()
        trainer = sft_trainer(next_token_trainer(), model, self.collate, tmp_path, tokenizer_folder)
        trained = trainer.model.eval()  # no dropout
        batch = self.collate([self.windows[row] for row in range(len(self.windows))])
        count = (batch["labels"] != IGNORED).sum()
        with torch.no_grad():
            loss = trainer.compute_loss(trained, dict(batch), num_items_in_batch=count)
            ids, positions = batch["input_ids"], batch["position_ids"]
            logits = pico_model(family)(ids, position_ids=positions, use_cache=False).logits[:, :-1]
        assert float(loss * count) == pytest.approx(alone, rel=1e-5)
        usual = functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        assert float(loss) == pytest.approx(float(usual), rel=1e-5)


def test_padding_stands_on_the_right_and_goes_on_counting():
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, IGNORED, 8], "position_ids": [0, 1, 0, 1]},
        {"input_ids": [9, 10], "labels": [IGNORED, 10], "position_ids": [0, 1]},
    ]
    batch = Collate(pad_token_id=1, limit=6)(rows)  # the model has no more positions, however wide batches are
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1, 1], [9, 10, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, 8, *[IGNORED] * 2], [IGNORED, 10, *[IGNORED] * 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert Collate(pad_token_id=1, limit=None)(rows)["input_ids"].shape == (2, 16)


@pytest.mark.parametrize(
    ("family", "attention", "dtype", "arranged"),
    [
        ("llama", "sdpa", torch.float32, "line"),
        ("gpt2", "sdpa", torch.float32, "line"),
        ("llama", "eager", torch.float32, "windows"),
        ("llama", "sdpa", torch.bfloat16, "line"),
        ("llama", "eager", torch.bfloat16, "windows"),
    ],
)
def test_rows_that_are_put_together_are_trained_as_those_that_stand_alone(family, attention, dtype, arranged):
    """Rows of all lengths in one batch: fewer and fuller rows, and the loss that each row gives by itself."""
    model = pico_model(family, attention)
    chance = random.Random(4)
    ids = [[chance.randrange(4, 60) for _ in range(length)] for length in (5, 60, 17, 9, 33, 2, 41)]
    rows = [{"input_ids": row, "labels": [IGNORED, *row[1:]], "position_ids": [*range(len(row))]} for row in ids]
    alone = Collate(PAD, 64)
    shared = sharing(alone, model, rows, [len(row) for row in ids], dtype)
    step = 16 if arranged == "windows" else 64 if dtype == torch.bfloat16 else 1  # float32 in a line: no padding
    assert shared == Collate(PAD, 64, arranged=arranged, step=step)
    batches = [collate(rows) for collate in (alone, shared)]
    assert batches[1]["input_ids"].shape[0] < len(rows)
    assert batches[1]["input_ids"].numel() < batches[0]["input_ids"].numel()
    assert int(batches[1]["position_ids"].max()) < 64
    with torch.no_grad():
        losses = [float(model(**batch, use_cache=False).loss) for batch in batches]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_rows_stay_alone_where_the_model_would_mix_them():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    mixing = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)).eval()
    rows = [{"input_ids": [*range(4, 4 + length)], "labels": [], "position_ids": []} for length in (20, 30)]
    assert sharing(Collate(PAD, None), mixing, rows, [20, 30], torch.float32) == Collate(PAD, None)
