"""Token ids on disk: those of the tokenizer, made once, and never another corpus's; and the bytes that they stand for."""

import argparse
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ftkit.data.documents import Documents, Writer
from ftkit.data.rows import Place
from ftkit.models.train_tokenizer import train_tokenizer
from ftkit.tasks.heldout import byte_counts
from ftkit.tasks.tokens import _LONGEST, _parts, character_starts, start_token, tokenise, tokenizer_sha256
from ftkit.tasks.windows import Layout, Pieces

CORPUS = inspect.getsource(argparse).split("\n\n")
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(" \n\taé🎉👩‍👧ß1<|im_end|>", max_size=40)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, vocab=512, max_length=128)


def gpt2_like(trimmed: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose offsets leave the space before a word out, as GPT-2's do, or count it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=trimmed)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS[:100], trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


@pytest.fixture(scope="module", params=["ours", "trimmed", "not trimmed"])
def any_tokenizer(request, tokenizer) -> PreTrainedTokenizerFast:
    return tokenizer if request.param == "ours" else gpt2_like(request.param == "trimmed")


def stored(folder: Path, texts) -> Documents:
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder)
    for number, text in enumerate(texts, 1):
        writer.append(text, 0, Place("a.txt", "line", number))
    table = writer.take()
    writer.close()
    return Documents(folder, table, writer.files)


def plain(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_the_ids_are_those_of_the_tokenizer_without_special_tokens(tmp_path, tokenizer):
    texts = ["return value", "", "  leading\n", "né 🎉", *CORPUS]
    told: list[int] = []
    tokens = tokenise(stored(tmp_path / "texts", texts), tokenizer, advance=told.append)
    assert len(tokens) == len(texts)
    for number, text in enumerate(texts):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.of(number).tolist() == expected
        assert tokens.lengths[number] == len(expected)
    assert len(tokens.ids) == tokens.lengths.sum() == tokens.ends[-1]
    assert tokens.ids.dtype == np.uint16
    assert sum(told) == len(texts)


def test_a_special_token_that_stands_in_a_text_is_text(tmp_path, tokenizer):
    text = "it says <|im_end|> and <|bos|>."
    (found,) = [tokenise(stored(tmp_path / "texts", [text]), tokenizer).of(0).tolist()]
    assert not set(found) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(found) == text
    assert len(character_starts(tokenizer, text)) == len(found)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in tokenizer(text)["input_ids"]  # it is left as it was


def test_no_document_is_no_token(tmp_path, tokenizer):
    for name, texts in (("none", []), ("empty", ["", ""])):
        tokens = tokenise(stored(tmp_path / name, texts), tokenizer)
        assert (len(tokens), len(tokens.ids)) == (len(texts), 0)
        assert tokens.lengths.tolist() == [0] * len(texts)


def test_more_tokens_than_two_bytes_can_tell_take_four(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {str(number): number for number in range(2**16)} | {"last": 70_000}  # with a gap, as some have
    made = Tokenizer(models.WordLevel(words, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="0")
    tokens = tokenise(stored(tmp_path / "texts", ["7 last 65535"]), tokenizer)
    assert tokens.of(0).tolist() == [7, 70_000, 65_535]


def test_a_pair_of_texts_and_tokenizer_is_tokenised_once(tmp_path, cache, tokenizer):
    documents = stored(tmp_path / "a", ["one text", "another"])
    first = tokenise(documents, tokenizer).ids.tolist()
    (folder,) = cache.iterdir()
    (folder / "ids.bin").write_bytes(bytes(2 * len(first)))  # what is read from now on is the cache
    told: list[int] = []
    again = tokenise(stored(tmp_path / "b", ["one text", "another"]), tokenizer, advance=told.append)
    assert again.ids.tolist() == [0] * len(first)
    assert told == [2]
    assert len(list(cache.iterdir())) == 1
    (folder / "ends.npy").unlink()  # not finished: made again
    assert tokenise(documents, tokenizer).ids.tolist() == first


def test_a_byte_of_the_texts_a_word_of_the_tokenizer_and_its_chat_template_are_in_the_key(tmp_path, cache, tokenizer):
    def folders(texts, tokenizer):
        tokenise(stored(tmp_path / "texts", texts), tokenizer)
        return len(list(cache.iterdir()))

    assert folders(["one text", "another"], tokenizer) == 1
    assert folders(["one text", "anothes"], tokenizer) == 2
    assert folders(["one texta", "nother"], tokenizer) == 3
    assert folders(["one text", "another"], train_tokenizer(CORPUS, vocab=448, max_length=128)) == 4
    other = train_tokenizer(CORPUS, vocab=512, max_length=128)
    assert folders(["one text", "another"], other) == 4
    other.chat_template = "{{ messages }}"
    assert folders(["one text", "another"], other) == 5


def test_the_hash_of_a_tokenizer_does_not_depend_on_where_it_was_or_how_it_was_used(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "here")
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path / "here")
    before = tokenizer_sha256(loaded)
    plain(loaded, "text <|im_end|>")
    assert tokenizer_sha256(loaded) == before
    (tmp_path / "here").rename(tmp_path / "there")
    assert tokenizer_sha256(PreTrainedTokenizerFast.from_pretrained(tmp_path / "there")) == before


class TestParts:
    @pytest.mark.parametrize(
        "text",
        ["", "short\n", "x" * _LONGEST, "x" * (2 * _LONGEST + 5), "line\n" * (_LONGEST // 4), "\n" * (_LONGEST + 1)],
    )
    def test_they_join_to_the_text_and_none_is_too_long(self, text):
        parts = list(_parts(text))
        assert "".join(parts) == text
        assert all(0 < len(part) <= _LONGEST for part in parts) or parts == [""]
        assert len(parts) <= 2 * len(text) // _LONGEST + 1
        if "line" in text:
            assert all(part.endswith("\n") for part in parts)

    def test_a_document_in_parts_is_one_document(self, tmp_path):
        """The words of a word-level tokenizer do not change where lines end."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        made = Tokenizer(models.WordLevel({"-": 0, "a": 1, "b": 2}, unk_token="-"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="-")
        line = "a" + " " * 100_000 + "b\n"
        text = line * (_LONGEST // len(line) + 2)
        tokens = tokenise(stored(tmp_path / "texts", ["b", text, "a b"]), tokenizer)
        assert len(list(_parts(text))) > 1
        assert tokens.of(0).tolist() == [2]
        assert tokens.of(1).tolist() == [1, 2] * text.count("\n")
        assert tokens.of(2).tolist() == [1, 2]
        starts = character_starts(tokenizer, text)
        assert starts == [found.start() for found in re.finditer("[ab]", text)]


@settings(max_examples=150)
@given(text=TEXT)
@example(text="🎉🎉")
@example(text=" \n a")
def test_each_token_starts_where_its_characters_stand(any_tokenizer, text):
    starts = character_starts(any_tokenizer, text)
    ids = plain(any_tokenizer, text)
    assert len(starts) == len(ids)
    assert starts == sorted(starts)
    for number, (start, token) in enumerate(zip(starts, ids, strict=True)):
        written = any_tokenizer.decode([token])
        if "\ufffd" not in written and "\ufffd" not in text:
            offset = len(written) - len(written.lstrip())  # trimmed offsets leave white space to the token before
            assert text[start:].startswith(written) or text[start:].startswith(written[offset:]), number


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXT, min_size=1, max_size=4),
    max_length=st.integers(2, 9),
)
@example(texts=["🎉🎉🎉 ü"], max_length=3)
@example(texts=["  leading spaces", "plain ASCII", "Übermäßig groß"], max_length=5)
def test_the_bytes_of_the_pieces_are_those_of_the_documents(tmp_path, any_tokenizer, texts, max_length):
    """Wherever a document is cut, inside of a character too."""
    documents = stored(tmp_path / "texts", texts)
    tokens = tokenise(documents, any_tokenizer)
    pieces = Pieces(tokens, Layout(max_length, start_token(any_tokenizer), None))
    found = byte_counts(documents, pieces, any_tokenizer)
    sums = np.bincount(pieces.document, weights=found, minlength=len(texts)).tolist()
    assert sums == [len(text.encode()) for text in texts]
    assert (found >= 0).all()


def test_the_bytes_of_a_piece_are_those_of_what_it_predicts(tmp_path, tokenizer):
    """Decoded, where every cut falls between characters."""
    documents = stored(tmp_path / "texts", CORPUS[:40])
    tokens = tokenise(documents, tokenizer)
    pieces = Pieces(tokens, Layout(16, start_token(tokenizer), None))
    found = byte_counts(documents, pieces, tokenizer)
    assert len(pieces) > 100
    for piece in range(len(pieces)):
        written = tokenizer.decode(pieces.ids(piece)[1:])
        assert found[piece] == len(written.encode())


def test_without_a_start_the_first_token_is_not_predicted_and_its_bytes_do_not_count(tmp_path, tokenizer):
    documents = stored(tmp_path / "texts", ["argument parser"])
    tokens = tokenise(documents, tokenizer)
    pieces = Pieces(tokens, Layout(4, None, None))
    first = tokenizer.decode(tokens.of(0)[:1])
    assert byte_counts(documents, pieces, tokenizer).sum() == len("argument parser") - len(first)


def test_a_document_opens_with_the_tokenizers_start_or_else_its_end(tokenizer):
    assert start_token(tokenizer) == tokenizer.bos_token_id == 1
    other = gpt2_like(trimmed=True)
    assert other.bos_token_id is None
    assert start_token(other) == other.eos_token_id
    other.eos_token = None
    assert start_token(other) is None
