"""Answers that grow token by token: the tokens of generate, chances that no other row changes, and the words of them."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftkit.tasks.decoding import Growing, Sampling, decode
from ftkit.tasks.generation import Generated, generate
from ftkit.tasks.pieces import Pieces
from tests.conftest import pico_config
from tests.conversations import make_decoder

PAD, STOPS, LIMIT = 0, (3, 7, 11, 12), 64
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=("llama", "gpt2"))
def model(request):
    """Weights ten times as large as usual, so that what comes next depends on all that came before."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pico_config(request.param)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    return model


def prompts_of(lengths) -> list[list[int]]:
    chance = random.Random(0)
    return [[chance.randrange(8, 64) for _ in range(length)] for length in lengths]


def answers(model, prompts, samplings, *, stops=STOPS, room=12, pause=lambda steps: False):
    """The rows when all are over, however often the batch is left before, and how often it was."""
    rows = [
        Growing(prompt, min(room, LIMIT - len(prompt)), sampling, lambda token: token not in stops)
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    calls = 0
    while going := [row for row in rows if not row.over]:
        decode(model, going, limit=LIMIT, pad_token_id=PAD, pause=pause)
        calls += 1
    return rows, calls


def test_at_temperature_zero_the_tokens_are_those_of_generate(model):
    """With prompts up to the model's positions, in one go and with pauses, beside rows that are sampled."""
    prompts = prompts_of([5, 1, 40, 63, 17, 2, 58, 9, 30, 61, 3])
    reference = generate(model, prompts, max_new_tokens=12, limit=LIMIT, stop_ids=STOPS, pad_token_id=PAD)
    assert len({len(answer.ids) for answer in reference}) > 3
    for pause in (lambda steps: False, lambda steps: steps >= 3):
        mixed = [*prompts, *prompts[:4]]
        rows, calls = answers(model, mixed, [Sampling()] * 11 + [Sampling(1.0)] * 4, pause=pause)
        found = [
            Generated(row.made[:-1], True) if row.made[-1] in STOPS else Generated(row.made, False) for row in rows
        ]
        assert found[:11] == reference
        assert calls >= (4 if pause(3) else 1)


def test_a_seed_gives_one_answer_whoever_asks_beside_it(model):
    (prompt,) = prompts_of([9])
    own = Sampling(1.5, 0.9, seed=5)
    alone = answers(model, [prompt], [own], stops=())[0][0].made
    other = [Sampling(0.7, 1.0, seed=number) for number in range(5)]
    beside, _ = answers(
        model, [*prompts_of([30, 3, 50, 8, 21]), prompt], [*other, own], stops=(), pause=lambda n: n > 4
    )
    assert beside[-1].made == alone
    different, _ = answers(model, [prompt] * 8, [Sampling(1.5, 0.9, seed=seed) for seed in range(8)], stops=())
    assert len({tuple(row.made) for row in different}) > 4


def test_tokens_are_drawn_by_their_shares_within_top_p():
    """Over many seeds, from a model whose next token's shares are known."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pico_config("llama")).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
        logits = model(torch.tensor([[9, 10, 11]])).logits[0, -1]
    for temperature, top_p in ((1.0, 1.0), (2.0, 0.6), (1.0, 1e-6), (1e-30, 1.0)):
        shares = (logits.double() - logits.max()).div(temperature).softmax(-1)
        ordered, order = shares.sort(descending=True)
        kept = order[: int((ordered.cumsum(-1) - ordered < top_p).sum())]
        expected = torch.zeros(64, dtype=torch.float64).index_copy(0, kept, shares[kept] / shares[kept].sum())
        rows, _ = answers(
            model, [[9, 10, 11]] * 2000, [Sampling(temperature, top_p, n) for n in range(2000)], stops=(), room=1
        )
        counts = torch.bincount(torch.tensor([row.made[0] for row in rows]), minlength=64)
        assert counts[expected == 0].sum() == 0
        far = (counts / 2000 - expected).abs() / (expected * (1 - expected) / 2000).clamp(min=1e-12).sqrt()
        assert far[expected > 0.005].max() < 4.5  # standard errors
        assert ((counts > 0).sum() > 5) == (temperature * top_p >= 1)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Byte-level BPE with special tokens, and SentencePiece-like with a space in front and bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    folder = make_decoder(tmp_path_factory.mktemp("decoder"), "llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁the", "é", "\n"]
    metaspace = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True))
    metaspace.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    metaspace.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    metaspace.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    from transformers import PreTrainedTokenizerFast

    return [
        AutoTokenizer.from_pretrained(folder),
        PreTrainedTokenizerFast(tokenizer_object=metaspace, unk_token="<unk>", bos_token="<s>", eos_token="</s>"),
    ]


def said(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def joined(pieces: Pieces, ids) -> str:
    found = []
    for token in ids:
        found.append(pieces.add(token))
        if pieces.stopped:
            break
    return "".join([*found, pieces.end()])


TEXTS = st.text(st.sampled_from("ab the é\n €😀日本"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, data=st.data())
def test_pieces_are_whole_characters_and_make_up_what_is_said(tokenizers, text, data):
    for tokenizer in tokenizers:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        at = data.draw(st.integers(0, len(ids)))
        ids = [*ids[:at], int(tokenizer.eos_token_id), *ids[at:]]  # skipped, wherever it stands
        expected = said(tokenizer, ids)
        assert joined(Pieces(tokenizer, trimmed=False), ids) == expected
        assert joined(Pieces(tokenizer), ids) == expected.strip()
        whole = Pieces(tokenizer)
        assert not any("\N{REPLACEMENT CHARACTER}" in whole.add(token) for token in ids)


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 263), max_size=12))
def test_bytes_that_are_no_characters_lose_nothing(tokenizers, ids):
    """A broken character is shown as one, at the latest at the end."""
    tokenizer = tokenizers[0]
    assert joined(Pieces(tokenizer, trimmed=False), ids) == said(tokenizer, ids)


@settings(max_examples=80, deadline=None)
@given(text=TEXTS, stops=st.lists(st.text(st.sampled_from("ab the"), min_size=1, max_size=4), max_size=3))
def test_nothing_is_said_from_a_stop_on(tokenizers, text, stops):
    tokenizer = tokenizers[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = said(tokenizer, ids)
    places = [whole.find(stop) for stop in stops if stop in whole]
    found = joined(Pieces(tokenizer, stops=stops, trimmed=False), ids)
    if not places:
        assert found == whole
        return
    assert not any(stop in found for stop in stops)
    # Which stop comes first depends on which is complete first, not on which begins first.
    assert whole.startswith(found)
    assert len(found) >= min(places)


@pytest.mark.parametrize("text", ["<think>\n\n</think>\n\n the end ", "<thin", "the end", " <think></think> x", ""])
def test_the_opening_of_the_template_is_left_out(tokenizers, text):
    tokenizer = tokenizers[0]
    opening = "<think>\n\n</think>\n\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = said(tokenizer, ids).strip().removeprefix(opening.strip()).strip()
    assert joined(Pieces(tokenizer, opening=opening), ids) == expected
