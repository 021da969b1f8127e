"""The tokenizer that is trained on a corpus: nothing is lost, nothing is unknown, and a chat begins exactly once."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ftkit.errors import DataError
from ftkit.models.scratch import Scratch, config
from ftkit.models.train_tokenizer import train_tokenizer

CORPUS = inspect.getsource(argparse).split("\n\n")
CAUSAL = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
MASKED = ["<|pad|>", "<|bos|>", "<|im_end|>", "<|mask|>"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 🎉?"},
    {"role": "assistant", "content": "Yes 🎉 é."},
    {"role": "user", "content": "And\n\nnow?"},
    {"role": "assistant", "content": " ok\n"},
]


@pytest.fixture(scope="module")
def causal() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, vocab=512, max_length=128)


@pytest.fixture(scope="module")
def masked() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, vocab=512, max_length=128, masked=True)


def body(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary_is_as_large_as_asked_for_and_begins_with_the_special_tokens(causal, masked):
    for tokenizer, special in ((causal, CAUSAL), (masked, MASKED)):
        assert len(tokenizer) == tokenizer.vocab_size == 512
        assert tokenizer.convert_ids_to_tokens(range(4)) == special
        assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3]
        assert tokenizer.model_max_length == 128
        assert tokenizer.clean_up_tokenization_spaces is False
        assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.unk_token) == ("right", "right", None)
    assert (causal.bos_token, causal.eos_token, causal.pad_token) == ("<|bos|>", "<|im_end|>", "<|pad|>")
    assert (masked.cls_token, masked.sep_token, masked.mask_token) == ("<|bos|>", "<|im_end|>", "<|mask|>")
    assert (masked.bos_token, masked.eos_token, masked.pad_token) == ("<|bos|>", "<|im_end|>", "<|pad|>")


def test_special_tokens_stand_around_a_text_where_they_are_asked_for(causal, masked):
    text = "return value"
    inner = body(causal, text)
    assert not set(inner) & set(causal.all_special_ids)
    assert causal(text)["input_ids"] == [causal.bos_token_id, *inner]
    inner = body(masked, text)
    assert masked(text)["input_ids"] == [masked.cls_token_id, *inner, masked.sep_token_id]
    pair = masked(text, text)
    assert pair["input_ids"] == [masked.cls_token_id, *inner, masked.sep_token_id, *inner, masked.sep_token_id]
    assert pair["token_type_ids"] == [0] * (len(inner) + 2) + [1] * (len(inner) + 1)
    assert set(causal(text)) == {"input_ids", "attention_mask"}


@given(text=st.text() | st.text(alphabet=" \t\r\n'aé1🎉👩‍👩‍👧\u0301\u00a0\u3000\x00\ufeff<|>", max_size=40))
@example(text="  leading, and trailing  ")
@example(text="line\r\nline\r\n\r\n\tend\n")
@example(text="it 's , isn 't it ?")  # what a clean-up of spaces would change
@example(text="👩‍👩‍👧 né ﷽ ÅÅ \U0010ffff")
@example(text="<|bos|> said <|im_start|>user<|im_end|><|pad|>")
def test_every_text_comes_back_unchanged(causal, masked, text):
    for tokenizer in (causal, masked):
        assert tokenizer.decode(body(tokenizer, text)) == text


def test_digits_stand_alone_and_words_take_the_space_before_them():
    tokenizer = train_tokenizer(["in 1999 we won 1999 times"] * 9, vocab=270, max_length=64)
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("won 1999 né  (it's)\n\n  x")
    pieces = [word for word, _ in words]
    assert pieces == ["won", "Ġ", "1", "9", "9", "9", "ĠnÃ©", "Ġ", "Ġ(", "it", "'s", ")", "ĊĊĠ", "Ġx"]
    assert not any(sum(sign.isdigit() for sign in token) > 1 for token in tokenizer.get_vocab())


def test_a_letter_stays_with_its_combining_mark(causal):
    words = causal.backend_tokenizer.pre_tokenizer.pre_tokenize_str("ne\u0301e हिन्दी")
    assert [end - start for _, (start, end) in words] == [4, 7]


def test_equal_texts_give_equal_tokenizers_also_from_an_iterator_that_is_read_once(causal, tmp_path):
    read = []

    def stream() -> Iterator[str]:
        for text in CORPUS:
            read.append(text)
            yield text

    again = train_tokenizer(stream(), vocab=512, max_length=128)
    assert read == CORPUS
    files = []
    for tokenizer, name in ((causal, "one"), (again, "two")):
        tokenizer.save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert files[0] == files[1]
    shorter = train_tokenizer(CORPUS[:100], vocab=512, max_length=128)
    assert shorter.get_vocab() != causal.get_vocab()  # or the comparison would show nothing


def test_what_the_source_of_the_texts_raises_comes_through():
    def stream() -> Iterator[str]:
        yield "a text"
        raise DataError("the file is damaged")

    with pytest.raises(DataError, match=r"^error: the file is damaged$"):
        train_tokenizer(stream(), vocab=320, max_length=8)


def test_a_corpus_too_small_for_the_vocabulary_names_one_that_works():
    texts = CORPUS[:4]
    with pytest.raises(DataError) as error:
        train_tokenizer(texts, vocab=4096, max_length=8)
    words = str(error.value).split()
    found = int(words[4])
    fits = found // 64 * 64
    assert str(error.value) == (
        f"error: the corpus gives {found} tokens only, and base.vocab asks for 4096. "
        f"Write a smaller base.vocab, such as {fits} (a multiple of 64)."
    )
    assert len(train_tokenizer(texts, vocab=fits, max_length=8)) == fits
    assert len(train_tokenizer(texts, vocab=found, max_length=8)) == found
    with pytest.raises(DataError):
        train_tokenizer(texts, vocab=found + 1, max_length=8)


@pytest.mark.parametrize("texts", [[], ["ab"]])
def test_a_corpus_too_small_for_any_vocabulary_is_told(texts):
    with pytest.raises(DataError) as error:
        train_tokenizer(texts, vocab=512, max_length=8)
    assert str(error.value) == (
        "error: the corpus gives 260 tokens only, and base.vocab asks for 512. The smallest base.vocab is 320: give more text."
    )


def test_a_chat_is_chatml_and_begins_exactly_once(causal):
    ids = causal.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    assert causal.decode(ids) == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 🎉?<|im_end|>\n"
        "<|im_start|>assistant\nYes 🎉 é.<|im_end|>\n<|im_start|>user\nAnd\n\nnow?<|im_end|>\n"
        "<|im_start|>assistant\n ok\n<|im_end|>\n"
    )
    assert ids.count(causal.bos_token_id) == 1
    assert (ids.count(2), ids.count(3)) == (5, 5)


def test_what_is_generated_from_is_the_start_of_what_is_trained_on(causal):
    asked = causal.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=True)["input_ids"]
    answered = causal.apply_chat_template(CHAT[:3], return_dict=True)["input_ids"]
    assert causal.decode(asked).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert answered[: len(asked)] == asked
    assert causal.decode(answered[len(asked) :]) == "Yes 🎉 é.<|im_end|>\n"


def test_the_mask_of_a_chat_is_what_the_assistant_says_and_the_token_that_ends_it(causal):
    made = causal.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(made["input_ids"], made["assistant_masks"], strict=True) if mask]
    assert causal.decode(said) == "Yes 🎉 é.<|im_end|> ok\n<|im_end|>"


def test_a_masked_tokenizer_has_no_chat(masked):
    assert masked.chat_template is None


@pytest.mark.parametrize("init", ["llama", "gpt2", "bert"])
def test_a_saved_tokenizer_is_the_same_also_beside_a_model(causal, masked, init, tmp_path: Path):
    """The model's type must not make AutoTokenizer rebuild it as that family's own."""
    tokenizer = masked if init == "bert" else causal
    tokenizer.save_pretrained(tmp_path)
    config(Scratch(init=init, layers=1, hidden=64, vocab=512), tokenizer).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    for text in ("  def f(x):\r\n\treturn 10", "né 🎉", "<|im_end|>"):
        assert again(text) == tokenizer(text)
        assert again.decode(again(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    names = ("bos", "eos", "pad", "cls", "sep", "mask", "unk")
    assert [getattr(again, f"{name}_token") for name in names] == [
        getattr(tokenizer, f"{name}_token") for name in names
    ]
    assert again.all_special_ids == tokenizer.all_special_ids
    assert again.model_max_length == 128
    assert again.model_input_names == tokenizer.model_input_names
    assert again.chat_template == tokenizer.chat_template
    if init != "bert":
        assert again.apply_chat_template(CHAT, return_dict=True) == causal.apply_chat_template(CHAT, return_dict=True)
