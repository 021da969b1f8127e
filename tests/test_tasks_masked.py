"""Hidden tokens: how many, which, by whose chance; their loss, their score, and what can be known without a model."""

import argparse
import inspect
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from ftkit.errors import NotFinite, TrainingFailed
from ftkit.models.train_tokenizer import train_tokenizer
from ftkit.tasks.batches import TrainingRows
from ftkit.tasks.masked import CollateMasked, Masking, hidden_rows, loss_function, masking, score, unigram
from ftkit.tasks.windows import IGNORED
from tests.conftest import pico_config

PAD, CLS, SEP, MASK = 0, 2, 3, 4
PLAIN = Masking(mask_token_id=MASK, special=frozenset({PAD, CLS, SEP, MASK}), share=0.15, vocabulary=64, continues=None)
CORPUS = inspect.getsource(argparse).split("\n\n")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small wait for threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(lengths, seed=0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[CLS, *(chance.randrange(5, 64) for _ in range(length)), SEP] for length in lengths]


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    text = [*CORPUS, *["Übergröße für schöne Käse שלום עולם “quoted”"] * 3]
    return train_tokenizer(text, vocab=448, max_length=128, masked=True)


@pytest.fixture(scope="module")
def word_piece() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"hide play go the a b . ,".split(),
        "##ing",
        "##s",
        "##a",
        "##b",
    ]
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", **special)


class TestHide:
    def test_the_share_is_hidden_and_of_it_80_10_10_per_cent_are_shown_as_mask_another_and_itself(self):
        rows = rows_of([100] * 2000)
        kinds: Counter[str] = Counter()
        others: Counter[int] = Counter()
        for number, row in enumerate(rows):
            shown, labels = PLAIN.hide(row, random.Random(number))
            assert sum(label != IGNORED for label in labels) == 15
            for true, seen, label in zip(row, shown, labels, strict=True):
                assert label in (IGNORED, true)
                if label == IGNORED:
                    assert seen == true
                else:
                    kinds["mask" if seen == MASK else "itself" if seen == true else "other"] += 1
                    others[seen] += seen not in (MASK, true)
        total = 15 * len(rows)
        chance_of_itself = 0.1 / 64  # the random token may be the true one, or the mask
        for kind, expected in (
            ("mask", 0.8 + chance_of_itself),
            ("itself", 0.1 + chance_of_itself),
            ("other", 0.1 - 2 * chance_of_itself),
        ):
            error = math.sqrt(expected * (1 - expected) / total)
            assert abs(kinds[kind] / total - expected) < 5 * error, kind
        assert len(others) >= 63  # from all of the vocabulary

    @given(length=st.integers(1, 60), share=st.floats(0.01, 0.9), seed=st.integers(0, 999))
    def test_special_tokens_are_never_hidden_and_one_token_always_is(self, length, share, seed):
        own = Masking(MASK, PLAIN.special, share, 64, None)
        row = rows_of([length], seed)[0]
        row.insert(len(row) // 2, SEP)
        shown, labels = own.hide(row, random.Random(seed))
        hidden = [place for place, label in enumerate(labels) if label != IGNORED]
        assert len(hidden) == max(1, round(share * length))
        assert not {row[place] for place in hidden} & PLAIN.special
        assert all(shown[place] == row[place] for place in range(len(row)) if place not in hidden)

    def test_a_row_of_special_tokens_alone_has_nothing_to_hide(self):
        assert PLAIN.hide([CLS, SEP], random.Random(0)) == ([CLS, SEP], [IGNORED, IGNORED])

    def test_each_place_is_hidden_as_often(self):
        row = rows_of([20])[0]
        counts: Counter[int] = Counter()
        for seed in range(4000):
            _, labels = PLAIN.hide(row, random.Random(seed))
            counts.update(place for place, label in enumerate(labels) if label != IGNORED)
        assert set(counts) == set(range(1, 21))
        assert all(abs(count - 600) < 5 * math.sqrt(600) for count in counts.values())  # 3 of 20


def words_of(own: Masking, ids) -> list[list[int]]:
    """The groups of places that are hidden together, as many rows show them."""
    together = {place: set(range(len(ids))) for place in range(len(ids))}
    ever: set[int] = set()
    for seed in range(300):
        _, labels = own.hide(ids, random.Random(seed))
        hidden = {place for place, label in enumerate(labels) if label != IGNORED}
        ever |= hidden
        for place in range(len(ids)):
            together[place] &= hidden if place in hidden else set(range(len(ids))) - hidden
    return sorted({tuple(sorted(together[place])) for place in ever})


class TestWholeWords:
    def test_word_pieces_of_a_word_are_hidden_together(self, word_piece):
        ids = word_piece("the hideing plays. go, hidesing")["input_ids"]
        ids = [word_piece.cls_token_id, *ids, word_piece.sep_token_id]
        own = masking(word_piece, share=0.3, whole_word=True)
        words = [word_piece.convert_ids_to_tokens([ids[place] for place in word]) for word in words_of(own, ids)]
        assert words == [["the"], ["hide", "##ing"], ["play", "##s"], ["."], ["go"], [","], ["hide", "##s", "##ing"]]
        single = masking(word_piece, share=0.3, whole_word=False)
        assert [len(word) for word in words_of(single, ids)] == [1] * 11

    @pytest.mark.parametrize(
        "text",
        [
            "the argument parser prefixes",
            "Übergröße für schöne Käse",
            "né 日本語 Ünïcödé",
            "שלום עולם",
            "nai\u0308ve cafe\u0301",
        ],
    )
    def test_bytes_and_parts_of_a_word_are_hidden_together(self, byte_level, text):
        """Letters of other scripts are several bytes, of which many tokens hold a part."""
        ids = byte_level(text)["input_ids"]
        own = masking(byte_level, share=0.3, whole_word=True)
        written = [byte_level.decode([ids[place] for place in word]).strip() for word in words_of(own, ids)]
        assert written == text.split(" ")

    def test_marks_between_words_stand_alone(self, byte_level):
        ids = byte_level('self, "quoted" = value')["input_ids"]
        own = masking(byte_level, share=0.3, whole_word=True)
        written = [byte_level.decode([ids[place] for place in word]).strip() for word in words_of(own, ids)]
        assert "self" in written
        assert "value" in written
        assert "=" in written

    def test_a_word_ends_at_a_special_token(self):
        own = Masking(MASK, PLAIN.special, 0.3, 8, continues=(False,) * 6 + (True, True))
        assert words_of(own, [CLS, 7, 6, 5, 6, SEP, 7, 6, 5, SEP]) == [(1, 2), (3, 4), (6, 7), (8,)]

    def test_the_share_is_that_of_tokens(self, byte_level):
        own = masking(byte_level, share=0.15, whole_word=True)
        rows = [byte_level(text)["input_ids"] for text in CORPUS if len(text) > 200]
        hidden = tokens = 0
        for number, row in enumerate(rows):
            _, labels = own.hide(row, random.Random(number))
            hidden += sum(label != IGNORED for label in labels)
            tokens += len(row) - 2
        assert 0.14 < hidden / tokens <= 0.155

    def test_what_is_never_hidden_and_what_a_random_token_may_be(self, byte_level, word_piece):
        for tokenizer in (byte_level, word_piece):
            own = masking(tokenizer, share=0.2, whole_word=False)
            assert own.mask_token_id == tokenizer.mask_token_id
            assert own.special == set(tokenizer.all_special_ids)
            assert (own.vocabulary, own.share, own.continues) == (len(tokenizer), 0.2, None)


class TestChance:
    rows = rows_of([30] * 12)

    def labels(self, seed: int, epoch: int, order=range(12)) -> dict[int, list[int]]:
        collate = CollateMasked(PLAIN, PAD, seed)
        batch = collate([{"input_ids": self.rows[row], "row": row, "epoch": epoch} for row in order])
        found = (batch["labels"], batch["input_ids"])
        return {row: [*found[0][at].tolist(), *found[1][at].tolist()] for at, row in enumerate(order)}

    def test_seed_epoch_and_row_alone_decide_what_is_hidden(self):
        first = self.labels(1, 0)
        assert self.labels(1, 0) == first
        assert self.labels(1, 0, order=[7, 3, 11]) == {row: first[row] for row in (7, 3, 11)}
        for other in (self.labels(1, 1), self.labels(2, 0)):
            assert all(other[row] != first[row] for row in first)

    def test_equal_rows_hide_other_tokens(self):
        collate = CollateMasked(PLAIN, PAD, 1)
        batch = collate([{"input_ids": self.rows[0], "row": row, "epoch": 0} for row in range(4)])
        assert len({tuple(row) for row in batch["labels"].tolist()}) == 4

    def test_training_rows_bring_what_the_chance_is_drawn_from(self):
        rows = TrainingRows([{"input_ids": row} for row in self.rows], [32] * 12, 4, seed=5)
        collate = CollateMasked(PLAIN, PAD, 5)
        first = collate([rows[0], rows[1]])
        rows.set_epoch(1)
        place = {rows[at]["row"]: at for at in range(12)}
        rows.set_epoch(0)
        numbers = [rows[0]["row"], rows[1]["row"]]
        again = collate([rows[0], rows[1]])
        assert again["labels"].tolist() == first["labels"].tolist()
        rows.set_epoch(1)
        later = collate([rows[place[number]] for number in numbers])
        assert later["labels"].tolist() != first["labels"].tolist()

    def test_scoring_hides_the_same_at_each_call(self):
        first = hidden_rows(PLAIN, self.rows, seed=3)
        assert hidden_rows(PLAIN, self.rows, seed=3) == first
        assert hidden_rows(PLAIN, self.rows[:4], seed=3) == first[:4]
        assert hidden_rows(PLAIN, self.rows, seed=4) != first
        for row, (shown, labels) in zip(self.rows, first, strict=True):
            assert [seen if label == IGNORED else label for seen, label in zip(shown, labels, strict=True)] == row

    def test_rows_are_padded_on_the_right_and_the_padding_is_masked(self):
        batch = CollateMasked(PLAIN, PAD, 1)(
            [{"input_ids": row, "row": number, "epoch": 0} for number, row in enumerate(rows_of([3, 1]))]
        )
        assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
        assert batch["input_ids"][1, 3:].tolist() == [PAD, PAD]
        assert batch["labels"][1, 3:].tolist() == [IGNORED, IGNORED]


class TestLoss:
    def test_a_batch_and_its_micro_batches_have_one_gradient(self):
        torch.manual_seed(0)
        logits = torch.randn(8, 12, 20, requires_grad=True)
        labels = torch.where(torch.rand(8, 12) < 0.3, torch.randint(0, 20, (8, 12)), IGNORED)
        assert len({int(count) for count in (labels != IGNORED).sum(1)}) > 1  # rows do not weigh the same
        items = (labels != IGNORED).sum()
        loss = loss_function()
        (whole,) = torch.autograd.grad(loss({"logits": logits}, labels, items), logits)
        parts = sum(loss({"logits": logits[at : at + 2]}, labels[at : at + 2], items) for at in range(0, 8, 2))
        (pieces,) = torch.autograd.grad(parts, logits)
        torch.testing.assert_close(whole, pieces)
        usual = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(loss({"logits": logits}, labels), usual)
        torch.testing.assert_close(parts, usual)

    def test_a_micro_batch_without_a_hidden_token_adds_nothing(self):
        logits = torch.randn(2, 3, 5, requires_grad=True)
        found = loss_function()({"logits": logits}, torch.full((2, 3), IGNORED), torch.tensor(7))
        (gradient,) = torch.autograd.grad(found, logits)
        assert (float(found.detach()), float(gradient.abs().sum())) == (0.0, 0.0)

    def test_a_loss_that_is_not_finite_stops_the_run(self):
        with pytest.raises(NotFinite, match="the loss is nan"):
            loss_function()({"logits": torch.full((1, 2, 3), float("nan"))}, torch.tensor([[IGNORED, 1]]))


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def model(request):
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(pico_config(request.param)).eval()


class TestScore:
    def test_it_is_the_loss_on_the_hidden_tokens_of_each_row_alone(self, model):
        rows = hidden_rows(PLAIN, rows_of([5, 40, 17, 1, 60]), seed=1)
        positions = [(1, 3), (0, 0), (1, 3)]
        found = score(model, rows, pad_token_id=PAD, positions=positions)
        for number, (shown, labels) in enumerate(rows):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([shown])).logits[0].double()
            places = [place for place, label in enumerate(labels) if label != IGNORED]
            expected = -sum(float(torch.log_softmax(logits[place], -1)[labels[place]]) for place in places)
            assert found.nll[number] == pytest.approx(expected, rel=1e-5)
            assert found.best[number].tolist() == [int(logits[place].argmax()) for place in places]
            for at, (row, place) in enumerate(positions):
                if row == number:
                    np.testing.assert_allclose(found.logits[at], logits[place], atol=1e-4)

    def test_what_else_is_scored_does_not_change_it(self, model):
        rows = hidden_rows(PLAIN, rows_of([60, 3, 31, 2, 60, 18, 44] * 6), seed=1)
        told: list[int] = []
        together = score(model, rows, pad_token_id=PAD, advance=told.append)
        assert sum(told) == len(rows)
        assert len(told) > 1
        alone = [score(model, [row], pad_token_id=PAD).nll[0] for row in rows]
        np.testing.assert_allclose(together.nll, alone, rtol=1e-4)

    def test_a_row_with_nothing_hidden_scores_nothing(self, model):
        found = score(model, [([CLS, SEP], [IGNORED, IGNORED])], pad_token_id=PAD)
        assert found.nll.tolist() == [0.0]
        assert len(found.best[0]) == 0

    def test_scores_that_are_not_finite_stop_the_run(self):
        torch.manual_seed(0)
        broken = AutoModelForMaskedLM.from_config(pico_config("bert")).eval()
        with torch.no_grad():
            broken.cls.predictions.bias.fill_(float("nan"))
        with pytest.raises(TrainingFailed, match="the model's scores are not finite"):
            score(broken, hidden_rows(PLAIN, rows_of([5]), seed=1), pad_token_id=PAD)


class TestUnigram:
    def test_against_a_count_by_hand(self):
        """Counts 3, 1, 0, 0 and one more of each: 4, 2, 1, 1 of 8."""
        train = np.array([0, 1, 0, 0], dtype="<u2")
        labels = [[IGNORED, 0, 1], [2, IGNORED, IGNORED], [IGNORED], [3, 3, 0]]
        expected = [math.log(8 / 4) + math.log(8 / 2), math.log(8), 0.0, 2 * math.log(8) + math.log(2)]
        np.testing.assert_allclose(unigram(train, labels, vocabulary=4), expected)

    @settings(max_examples=30)
    @given(train=st.lists(st.integers(0, 9), max_size=50))
    def test_its_probabilities_add_up_to_one(self, train):
        costs = unigram(np.array(train, dtype=np.int64), [[token] for token in range(10)], vocabulary=10)
        assert np.exp(-costs).sum() == pytest.approx(1)

    def test_a_corpus_is_counted_in_parts(self, tmp_path):
        size = 2**24 + 5
        train = np.memmap(tmp_path / "ids.bin", dtype="<u2", mode="w+", shape=(size,))
        train[:-5] = 1
        train[-5:] = 2
        found = unigram(train, [[0], [1], [2]], vocabulary=3)
        np.testing.assert_allclose(found, [math.log((size + 3) / each) for each in (1, size - 4, 6)])
