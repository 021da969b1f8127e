"""A corpus on disk: nothing of a text is lost or doubled, sides do not overlap, and the cache gives what was asked for."""

import gzip
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.data.corpus import read_corpus
from ftkit.data.documents import Documents, Writer
from ftkit.data.drawing import draw
from ftkit.data.rows import Place
from ftkit.data.section import Data, Docstrings
from ftkit.errors import DataError, RecipeError
from ftkit.files import cache_folder, code_sha256, sha256_files, sha256_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEPT = {"duplicates": "keep", "test_overlap": "keep"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(folder: Path, texts, *, file="a.txt", source=0) -> Documents:
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder)
    for number, text in enumerate(texts, 1):
        writer.append(text, source, Place(file, "line", number))
    table = writer.take()
    writer.close()
    return Documents(folder, table, writer.files)


def lines(path: Path, texts) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def jsonl(path: Path, rows) -> Path:
    return lines(path, map(json.dumps, rows))


def data(**keys) -> Data:
    return Data.model_validate({"train": "train.txt", "split": "line"} | keys)


def corpora(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def error_of(call) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


class TestDocuments:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts=st.lists(TEXT | st.text("\r\n\x00 \ufeffäé🎉\u2028", max_size=8), max_size=12))
    def test_every_text_comes_back_unchanged(self, tmp_path, texts):
        documents = stored(tmp_path, texts)
        assert list(documents) == texts
        assert [documents[number] for number in range(len(documents))] == texts
        assert documents.bytes == sum(len(text.encode()) for text in texts)

    def test_each_has_its_place_its_id_and_its_source(self, tmp_path):
        writer = Writer(tmp_path)
        writer.append("one", 0, Place("data/wiki.jsonl", "line", 17))
        writer.append("two", 1, Place("b.json", "row", 2))
        writer.append("three", 0, Place("data/wiki.jsonl", "line", 20))
        documents = Documents(tmp_path, writer.take(), writer.files)
        writer.close()
        assert [documents.where(number) for number in range(3)] == [
            "data/wiki.jsonl line 17",
            "b.json row 2",
            "data/wiki.jsonl line 20",
        ]
        assert [documents.id(number) for number in range(3)] == ["wiki.jsonl:17", "b.json:2", "wiki.jsonl:20"]
        assert documents.table["source"].tolist() == [0, 1, 0]
        assert list(documents.only(np.array([2, 0]))) == ["three", "one"]
        assert documents.only(np.array([False, True, False])).where(0) == "b.json row 2"

    def test_files_that_are_named_alike_give_different_ids(self, tmp_path):
        writer = Writer(tmp_path)
        writer.append("one", 0, Place("a/readme.md", "line", 1))
        writer.append("two", 0, Place("b/readme.md", "line", 1))
        documents = Documents(tmp_path, writer.take(), writer.files)
        writer.close()
        assert [documents.id(0), documents.id(1)] == ["a/readme.md:1", "b/readme.md:1"]

    @pytest.mark.parametrize("other", [["a", "bc"], ["ab", "c", ""], ["abc"], ["ab", "d"], ["c", "ab"], ["1:ab", "c"]])
    def test_the_hash_tells_texts_and_borders_apart(self, tmp_path, other):
        first = stored(tmp_path / "a", ["ab", "c"])
        assert first.sha256() == stored(tmp_path / "b", ["ab", "c"], file="other.txt").sha256()
        assert first.sha256() != stored(tmp_path / "c", other).sha256()

    def test_more_documents_than_wait_in_memory_keep_their_order(self, tmp_path):
        count = 2 * 65_536 + 3
        documents = stored(tmp_path, (str(number) for number in range(count)))
        assert list(documents) == [str(number) for number in range(count)]
        assert documents.where(count - 1) == f"a.txt line {count}"

    def test_a_writer_tells_of_what_came_since_the_last_time(self, tmp_path):
        writer = Writer(tmp_path)
        assert len(writer.take()) == 0
        writer.append("ä", 0, Place("a", "line", 1))
        first = writer.take()
        writer.append("b", 0, Place("a", "line", 2))
        second = writer.take()
        writer.close()
        assert len(writer) == 2
        assert [(row["start"], row["end"]) for row in (*first, *second)] == [(0, 2), (2, 3)]


class TestDrawing:
    @settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        count=st.integers(10, 300),
        valid=st.floats(0.05, 0.4),
        test=st.floats(0.05, 0.4),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_shares_are_exact_to_a_row_disjoint_and_together_everything(self, tmp_path, count, valid, test, seed):
        documents = stored(tmp_path, map(str, range(count)))
        tables, _ = draw(documents, {"valid": valid, "test": test}, seed=seed, shown="a.txt")
        sides = {side: list(Documents(tmp_path, table, documents.files)) for side, table in tables.items()}
        assert abs(len(sides["valid"]) - valid * count) <= 0.5 + 1e-9 or len(sides["valid"]) == 1
        assert abs(len(sides["test"]) - test * count) <= 0.5 + 1e-9 or len(sides["test"]) == 1
        assert sorted(map(int, sides["train"] + sides["valid"] + sides["test"])) == list(range(count))
        for texts in sides.values():  # each in the documents' order
            assert list(map(int, texts)) == sorted(map(int, texts))

    def test_the_seed_decides_and_the_report_says_how(self, tmp_path):
        documents = stored(tmp_path, map(str, range(2000)))

        def test_side(seed):
            tables, how = draw(documents, {"valid": 0.0, "test": 0.1}, seed=seed, shown="a.txt")
            assert set(tables) == {"train", "test"}
            assert how == {"valid": "no validation", "test": f"200 of 2,000 documents of train, seed {seed}"}
            return tables["test"]["number"].tolist()

        assert test_side(1) == test_side(1)
        assert test_side(1) != test_side(2)

    def test_no_share_leaves_all_in_train(self, tmp_path):
        documents = stored(tmp_path, "abc")
        tables, how = draw(documents, {"valid": 0.0}, seed=1, shown="a.txt")
        assert list(Documents(tmp_path, tables["train"], documents.files)) == ["a", "b", "c"]
        assert how == {"valid": "no validation"}

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        texts=st.lists(
            st.lists(st.text("aé🎉ß", min_size=1, max_size=6), min_size=12, max_size=40).map(" ".join),
            min_size=1,
            max_size=9,
        ),
        shares=st.sampled_from([{"valid": 0.2, "test": 0.3}, {"test": 0.25, "valid": 0.25}, {"test": 0.3}]),
    )
    def test_of_few_documents_the_tails_are_cut_off_between_words(self, tmp_path, texts, shares):
        documents = stored(tmp_path, texts)
        tables, how = draw(documents, shares, seed=3, shown="a.txt")
        sides = ["train", *(side for side in ("valid", "test") if side in shares)]
        each = "the document" if len(texts) == 1 else f"each of {len(texts)} documents"
        assert how == {side: f"the last part of {each}" for side in shares}
        for number, text in enumerate(texts, 1):
            parts = {}
            for side in sides:
                own = Documents(tmp_path, tables[side], documents.files)
                parts[side] = [own[at] for at in range(len(own)) if own.table[at]["number"] == number]
            assert all(len(found) == 1 for found in parts.values())
            found = [parts[side][0] for side in sides]
            assert "".join(found) == text  # in order, nothing lost or doubled; decoded, so no character was cut
            assert all(part.endswith(" ") for part in found[:-1])
            at = 0.0
            for side, part in zip(sides[:0:-1], found[:0:-1], strict=True):
                at += len(part) - shares[side] * len(text)
                assert 0 <= at + 0.5 + 1e-9 < 8  # the cut goes back to a space: by one word at most

    def test_what_is_no_share_of_few_documents_is_an_error_that_says_so(self, tmp_path):
        documents = stored(tmp_path, ["one_long_word", "another"])
        assert error_of(lambda: draw(documents, {"valid": 0.1, "test": 0.2}, seed=1, shown="a.txt")) == (
            "error: a.txt has 1 problem\n"
            "  data.train   2 documents give none for train. Write other shares, or name a file."
        )
        single = stored(tmp_path / "b", ["many short words and no_more_white_space_in_the_last_half_of_it"])
        assert error_of(lambda: draw(single, {"valid": 0.1, "test": 0.2}, seed=1, shown="a.txt")) == (
            "error: a.txt has 1 problem\n"
            "  data.valid   1 document gives none for valid. Write other shares, or name a file."
        )

    def test_shares_that_leave_no_whole_document_for_train_are_an_error(self, tmp_path):
        documents = stored(tmp_path, map(str, range(10)))
        assert error_of(lambda: draw(documents, {"valid": 0.5, "test": 0.49}, seed=1, shown="a and b")) == (
            "error: a and b has 1 problem\n"
            "  data.train   10 documents give none for train. Write other shares, or name a file."
        )


class TestCache:
    def corpus(self, tmp_path, **keys):
        seed = keys.pop("seed", 1)
        return read_corpus(data(**keys), tmp_path, seed=seed)

    def test_a_corpus_that_was_read_is_found_again_by_its_bytes(self, tmp_path, cache):
        path = lines(tmp_path / "train.txt", (f"text {number}" for number in range(50)))
        first = self.corpus(tmp_path)
        marked = cache / corpora(cache)[0] / "documents.bin"
        marked.write_bytes(marked.read_bytes().replace(b"text 1", b"TEXT 1"))  # what is read from now on is the cache
        os.utime(path, (1, 1))
        again = self.corpus(tmp_path)
        assert any(text.startswith("TEXT") for text in (*again.train, *again.valid, *again.test))
        assert (again.sources, again.steps, again.decisions) == (first.sources, first.steps, first.decisions)
        assert len(corpora(cache)) == 1

    def test_all_that_shapes_a_corpus_is_in_its_key(self, tmp_path, cache):
        path = lines(tmp_path / "train.txt", (f"text {number}" for number in range(50)))
        self.corpus(tmp_path)
        for count, keys in enumerate(
            [{"clean": {"unicode": "NFC"}}, {"split": "paragraph"}, {"max_rows": 40}, {"valid": "20%"}, {"seed": 2}], 2
        ):
            self.corpus(tmp_path, **keys)
            assert len(corpora(cache)) == count, keys
        path.write_bytes(path.read_bytes().replace(b"text 7", b"test 7"))
        assert "test 7" in {text for side in self.corpus(tmp_path).named().values() for text in side}
        assert len(corpora(cache)) == 7
        self.corpus(tmp_path, licence="CC0-1.0")  # shapes nothing
        assert len(corpora(cache)) == 7

    def test_another_seed_draws_other_documents(self, tmp_path):
        lines(tmp_path / "train.txt", (f"text {number}" for number in range(50)))
        assert list(self.corpus(tmp_path, seed=1).test) != list(self.corpus(tmp_path, seed=2).test)

    def test_a_folder_that_was_not_finished_is_made_again(self, tmp_path, cache):
        lines(tmp_path / "train.txt", (f"text {number}" for number in range(50)))
        first = list(self.corpus(tmp_path).train)
        (cache / corpora(cache)[0] / "corpus.json").unlink()
        (cache / corpora(cache)[0] / "documents.bin").write_bytes(b"half")
        assert list(self.corpus(tmp_path).train) == first

    def test_nothing_is_left_of_a_reading_that_failed(self, tmp_path, cache):
        jsonl(tmp_path / "train.jsonl", [{"text": "a"}, {"text": 1}])
        error_of(lambda: self.corpus(tmp_path, train="train.jsonl"))
        assert corpora(cache) == []

    def test_counts_of_another_tokenizer_are_another_corpus(self, tmp_path):
        """What is counted is not in the sources: without the counter's name nothing is taken from the cache by key."""
        lines(tmp_path / "train.txt", (f"text {number}" for number in range(100)))
        section = data(max_tokens=20)

        def rows(each, counted_by):
            corpus = read_corpus(
                section, tmp_path, seed=1, count_tokens=lambda texts: [each] * len(texts), counted_by=counted_by
            )
            return sum(map(len, corpus.named().values()))

        assert [rows(1, None), rows(2, None), rows(1, None)] == [20, 10, 20]
        assert [rows(1, "a"), rows(2, "b"), rows(2, "a")] == [20, 10, 20]

    def test_a_tokenizer_that_counts_nothing_is_not_in_the_key(self, tmp_path, cache):
        lines(tmp_path / "train.txt", (f"text {number}" for number in range(100)))
        for counted_by in (None, "a", "b"):
            read_corpus(data(), tmp_path, seed=1, counted_by=counted_by)
        assert len(corpora(cache)) == 1

    def test_what_has_no_key_is_kept_by_what_came_out_of_it(self, tmp_path, cache):
        """The counts of cleaning may be equal where the texts are not: NFC and NFKC of these change one text each."""
        lines(tmp_path / "train.txt", ["ﬁ e\u0301", *(f"text {number}" for number in range(20))])

        def texts(form):
            corpus = read_corpus(
                data(max_tokens=1000, clean={"unicode": form}),
                tmp_path,
                seed=1,
                count_tokens=lambda some: [1] * len(some),
            )
            return {text for side in corpus.named().values() for text in side}

        assert "ﬁ é" in texts("NFC")
        assert "fi é" in texts("NFKC")
        assert len(corpora(cache)) == 2

    def test_the_cache_stands_where_the_environment_says(self, monkeypatch, tmp_path):
        assert cache_folder() == tmp_path / "cache"
        monkeypatch.delenv("FTKIT_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "ftkit"
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "ftkit"

    def test_the_hash_of_code_is_that_of_its_files(self):
        import ftkit.data

        folder = Path(ftkit.data.__file__).parent
        assert code_sha256("data") == sha256_files(sorted(folder.rglob("*.py")))
        assert code_sha256("data") != code_sha256("tasks")
        assert sha256_of([b"a", b"", b"bc"]) == sha256_of([b"abc"]) != sha256_of([b"ab"])


class TestSides:
    def test_valid_and_test_from_files_are_held_out_of_train(self, tmp_path):
        train = [f"train {number}" for number in range(30)]
        lines(tmp_path / "train.txt", [*train, "Valid 1", "TEST  2"])
        lines(tmp_path / "valid.txt", ["valid 0", "valid 1"])
        lines(tmp_path / "test.txt", ["test 1", "test 2", "test 3"])
        corpus = read_corpus(data(valid="valid.txt", test="test.txt"), tmp_path, seed=1)
        assert list(corpus.train) == train
        assert list(corpus.valid) == ["valid 0", "valid 1"]
        assert list(corpus.test) == ["test 1", "test 2", "test 3"]
        steps = {step.step: step for step in corpus.steps}
        assert steps["overlap with valid or test"].dropped == 2
        assert steps["overlap with valid or test"].rows == ("train.txt line 31", "train.txt line 32")
        assert [(source.split, source.source, source.rows) for source in corpus.sources] == [
            ("test", "test.txt", 3),
            ("valid", "valid.txt", 2),
            ("train", "train.txt", 30),
        ]
        assert all(re.fullmatch("[0-9a-f]{64}", source.sha256) for source in corpus.sources)

    def test_held_out_sides_keep_their_duplicates_and_train_does_not(self, tmp_path):
        lines(tmp_path / "train.txt", ["a", "b", "a", "c"])
        lines(tmp_path / "test.txt", ["x", "x"])
        corpus = read_corpus(data(valid="0%", test="test.txt"), tmp_path, seed=1)
        assert list(corpus.train) == ["a", "b", "c"]
        assert list(corpus.test) == ["x", "x"]
        assert len(corpus.valid) == 0
        assert [(found.key, found.value, found.why) for found in corpus.decisions] == [
            ("data.valid", "0%", "no validation")
        ]

    @pytest.mark.parametrize("overlap", ["exact", "near"])
    def test_with_duplicates_kept_shares_still_leave_no_overlap(self, tmp_path, overlap):
        """Each text stands three times: whole documents are drawn, and what equals one of them leaves train."""
        texts = [f"text {number} of words that are its own {number * 7919}" for number in range(40)] * 3
        lines(tmp_path / "train.txt", texts)
        section = data(clean={"duplicates": "keep", "test_overlap": overlap})
        corpus = read_corpus(section, tmp_path, seed=1)
        assert not set(corpus.train) & {*corpus.valid, *corpus.test}
        dropped = sum(step.dropped for step in corpus.steps if "overlap" in step.step)
        assert dropped > 0
        assert len(corpus.train) + len(corpus.valid) + len(corpus.test) + dropped == len(texts)
        kept = read_corpus(data(clean=KEPT), tmp_path, seed=1)
        assert set(kept.train) & {*kept.valid, *kept.test}
        assert sum(map(len, kept.named().values())) == len(texts)

    def test_overlap_with_files_and_with_what_was_drawn_is_counted_together(self, tmp_path):
        lines(tmp_path / "train.txt", ["held", *(f"text {number}" for number in range(20)), *["twice"] * 40])
        lines(tmp_path / "test.txt", ["held"])
        section = data(valid="30%", test="test.txt", clean={"duplicates": "keep"})
        corpus = read_corpus(section, tmp_path, seed=1)
        (overlap,) = (step for step in corpus.steps if "overlap" in step.step)
        assert "twice" in set(corpus.valid)
        assert "twice" not in set(corpus.train)
        twice = sum(text == "twice" for text in corpus.valid)
        assert overlap.dropped == 1 + 40 - twice
        assert len(overlap.rows) == 10
        assert overlap.rows[0] == "train.txt line 1"

    def test_a_train_side_that_is_all_overlap_is_an_error(self, tmp_path):
        lines(tmp_path / "train.txt", ["same"] * 20)
        assert error_of(lambda: read_corpus(data(clean={"duplicates": "keep"}), tmp_path, seed=1)) == (
            "error: train.txt has 1 problem\n"
            "  data.train   each document also stands in valid or test. Name other files, or write "
            "clean.test_overlap: keep."
        )

    def test_cleaning_that_leaves_nothing_says_what_dropped_it(self, tmp_path):
        lines(tmp_path / "train.txt", ["a"] * 20)
        assert error_of(lambda: read_corpus(data(clean={"min_chars": 5}), tmp_path, seed=1)) == (
            "error: train.txt has 1 problem\n"
            "  data.train   no document is left; cleaning dropped all: too short 20. Loosen data.clean."
        )

    @pytest.mark.parametrize("keys", [{"train": "10%"}, {"train": ("10%",)}, {"valid": ("10%",)}, {"test": ("10%",)}])
    def test_a_share_where_none_can_stand_is_a_source_that_is_not_there(self, tmp_path, keys):
        lines(tmp_path / "train.txt", (f"text {number}" for number in range(50)))
        with pytest.raises(DataError) as caught:
            read_corpus(data(**keys), tmp_path, seed=1)
        assert "there is no 10% in" in str(caught.value)


class TestSources:
    def test_several_sources_are_read_in_order_and_numbered(self, tmp_path):
        lines(tmp_path / "a" / "one.txt", ["a1", "a2"])
        lines(tmp_path / "a" / "sub" / "two.md", ["a3"])
        jsonl(tmp_path / "b.jsonl", [{"text": "b1", "other": 1}, {"text": None}, {"text": "b3"}])
        (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"c1\n"))
        lines(tmp_path / "test.txt", ["t"])
        section = data(train=("a", "b.jsonl", "c.txt.gz"), valid="0%", test="test.txt")
        corpus = read_corpus(section, tmp_path, seed=1)
        assert list(corpus.train) == ["a1", "a2", "a3", "b1", "b3", "c1"]
        assert corpus.train.table["source"].tolist() == [0, 0, 0, 1, 1, 2]
        assert corpus.train.where(3) == "b.jsonl line 1"
        assert corpus.train.where(2) == "a/sub/two.md line 1"
        assert {step.step: step.dropped for step in corpus.steps}["empty"] == 1
        assert [found.why for found in corpus.decisions if found.key == "data.columns.text"] == [
            "the only column of b.jsonl with a known name for the text"
        ]

    def test_at_most_max_rows_of_each_train_source_are_read(self, tmp_path):
        lines(tmp_path / "a.txt", (f"a{number}" for number in range(20)))
        lines(tmp_path / "b.txt", (f"b{number}" for number in range(2)))
        lines(tmp_path / "test.txt", (f"t{number}" for number in range(20)))
        section = data(train=("a.txt", "b.txt"), valid="0%", test="test.txt", max_rows=3)
        corpus = read_corpus(section, tmp_path, seed=1)
        assert list(corpus.train) == ["a0", "a1", "a2", "b0", "b1"]
        assert len(corpus.test) == 20

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"max_tokens": 10}, (3, 3)),  # 2, 4, 6 >= 5 tokens of each
            ({"max_tokens": 8}, (2, 2)),
            ({"max_tokens": 400}, (100, 100)),
            ({"max_tokens": 1}, (1, 1)),
            ({"max_tokens": 40, "weights": (3, 1)}, (15, 5)),
            ({"max_tokens": 400, "max_rows": 7}, (7, 7)),
        ],
    )
    def test_each_source_ends_with_the_text_that_reaches_its_share_of_max_tokens(self, tmp_path, keys, expected):
        lines(tmp_path / "a.txt", (f"a {number}" for number in range(100)))
        lines(tmp_path / "b.txt", (f"b {number}" for number in range(100)))
        lines(tmp_path / "test.txt", ["t"])
        section = data(train=("a.txt", "b.txt"), valid="0%", test="test.txt", **keys)
        counted = lambda texts: [len(text.split()) for text in texts]  # noqa: E731
        corpus = read_corpus(section, tmp_path, seed=1, count_tokens=counted)
        assert tuple(np.bincount(corpus.train.table["source"], minlength=2)) == expected
        assert list(corpus.train)[: expected[0]] == [f"a {number}" for number in range(expected[0])]

    def test_rows_without_a_text_are_all_named(self, tmp_path):
        rows = [{"text": "good"}, {"text": 7}, {"other": "x"}, {"text": ["a"]}]
        jsonl(tmp_path / "train.jsonl", rows)
        assert error_of(lambda: read_corpus(data(train="train.jsonl"), tmp_path, seed=1)) == (
            "error: train.jsonl has 3 problems\n"
            "  line 2   text   got 7, which is no text. Write it in quotes, or name another column.\n"
            "  line 3   text   is missing. Write it, or name another column.\n"
            "  line 4   text   got ['a'], which is no text. Write it in quotes, or name another column."
        )

    def test_a_row_in_a_folder_is_named_with_its_file(self, tmp_path):
        jsonl(tmp_path / "all" / "a.jsonl", [{"text": "good"}])
        jsonl(tmp_path / "all" / "b.jsonl", [{"text": False}])
        assert error_of(lambda: read_corpus(data(train="all"), tmp_path, seed=1)) == (
            "error: all has 1 problem\n"
            "  all/b.jsonl line 1   text   got False, which is no text. Write it in quotes, or name another column."
        )

    def test_the_column_is_found_by_name_or_named(self, tmp_path):
        jsonl(tmp_path / "train.jsonl", ({"id": "x", "page": f"page {number}"} for number in range(20)))
        message = error_of(lambda: read_corpus(data(train="train.jsonl"), tmp_path, seed=1))
        assert message == (
            "error: train.jsonl has 1 problem\n"
            "  data.columns.text   no column is named text, sentence, review, content, document, body, comment or tweet. "
            "Columns here: id, page. Write data.columns: {text: COLUMN}."
        )
        named = read_corpus(data(train="train.jsonl", columns={"text": "page"}), tmp_path, seed=1)
        assert set(named.train) < {f"page {number}" for number in range(20)}
        assert not [found for found in named.decisions if found.key == "data.columns.text"]

    def test_a_column_that_is_named_is_looked_for_where_there_are_columns(self, tmp_path):
        jsonl(tmp_path / "train.jsonl", ({"page": f"page {number}"} for number in range(3)))
        lines(tmp_path / "train.txt", ["line"])
        sources = ("train.jsonl", "train.txt", Docstrings(docstrings=("zipimport",)))
        section = data(train=sources, columns={"text": "page"}, valid="train.txt", test="train.txt", clean=KEPT)
        corpus = read_corpus(section, tmp_path, seed=1)
        assert list(corpus.train)[:4] == ["page 0", "page 1", "page 2", "line"]
        assert set(corpus.train.table["source"]) == {0, 1, 2}

    def test_half_a_character_is_an_error_of_the_data_where_control_characters_are_kept(self, tmp_path):
        (tmp_path / "train.jsonl").write_text('{"text": "good"}\n{"text": "half \\ud83c"}\n', encoding="utf-8")
        jsonl(tmp_path / "test.jsonl", [{"text": "t"}])
        keys = {"train": "train.jsonl", "valid": "0%", "test": "test.jsonl"}
        assert list(read_corpus(data(**keys), tmp_path, seed=1).train) == ["good", "half "]
        assert error_of(lambda: read_corpus(data(**keys, clean={"control": False}), tmp_path, seed=1)) == (
            "error: train.jsonl has 1 problem\n"
            "  line 2   it holds an unpaired surrogate, which UTF-8 cannot write. Write data.clean: {control: true}."
        )

    def test_a_counter_that_refuses_is_heard(self, tmp_path):
        lines(tmp_path / "train.txt", ["a"])

        def refuse(texts):
            raise RecipeError("no tokenizer")

        with pytest.raises(RecipeError, match="no tokenizer"):
            read_corpus(data(max_tokens=5), tmp_path, seed=1, count_tokens=refuse)


MEASURE = """
import resource, sys
from pathlib import Path
from ftkit.data.corpus import read_corpus
from ftkit.data.section import Data

folder = Path(sys.argv[1])
keys = {"split": "line", "valid": "1%", "test": "1%", "clean": {"duplicates": "keep", "test_overlap": "keep"}}
peaks = []
for name in ("small.txt", "large.txt"):
    corpus = read_corpus(Data.model_validate({"train": name} | keys), folder, seed=1)
    hashed = corpus.train.sha256()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(sum(map(len, corpus.named().values())), *peaks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_a_corpus_need_not_fit_in_memory(tmp_path):
    """64 MB of text in lines raise the peak by less than half of that; kept in memory they would take more than all."""
    block = "".join(f"{number:06d} " + "some words of a line " * 25 + "\n" for number in range(2000))
    lines(tmp_path / "small.txt", (f"line {number}" for number in range(200)))
    with (tmp_path / "large.txt").open("w", encoding="utf-8") as file:
        for _ in range(60):
            file.write(block)
    assert (tmp_path / "large.txt").stat().st_size > 60e6
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    rows, small, large = map(int, done.stdout.split())
    assert rows == 120_000
    assert (large - small) * 1024 < 32e6
