"""The translation data: shape, spelling, and how far training and held-out rows stand apart."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[1] / "recipes" / "data" / "translation"
COUNTS = {"train": 1600, "valid": 150, "test": 250}
SIGNS = " .,?'-"
UMLAUTS = "äöüÄÖÜß"


def read(side: str) -> list[tuple[str, str]]:
    lines = (DATA / f"{side}.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "english\tgerman"
    return [(english, german) for english, german in (line.split("\t") for line in lines[1:])]


def words(rows: list[tuple[str, str]], column: int) -> set[str]:
    return {word for row in rows for word in re.findall(r"\w+", row[column].lower())}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("translation_generate", DATA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def grammar() -> dict[str, Any]:
    return tomllib.loads((DATA / "grammar.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(generator: ModuleType, grammar: dict[str, Any]) -> dict[str, list[Any]]:
    sides: dict[str, list[Any]] = generator.generate(grammar)
    return sides


@pytest.mark.parametrize("side", COUNTS)
def test_file_format_and_row_count(side: str) -> None:
    raw = (DATA / f"{side}.tsv").read_bytes()
    assert raw.endswith(b"\n")
    assert b"\r" not in raw
    assert b'"' not in raw
    assert len(read(side)) == COUNTS[side]


@pytest.mark.parametrize("side", COUNTS)
def test_both_columns_hold_one_plain_sentence(side: str) -> None:
    for english, german in read(side):
        for text in (english, german):
            assert text == " ".join(text.split()) != ""
            assert text[0].isupper()
            assert text[-1] in ".?"
            assert 4 <= len(text.split()) <= 12
        assert all(char.isascii() and (char.isalpha() or char in SIGNS) for char in english), english
        assert all((char.isascii() and char.isalpha()) or char in SIGNS + UMLAUTS for char in german), german
        assert english.endswith("?") == german.endswith("?")


def test_no_sentence_stands_twice_in_either_language() -> None:
    rows = [row for side in COUNTS for row in read(side)]
    for column in (0, 1):
        assert [text for text, count in Counter(row[column] for row in rows).items() if count > 1] == []


def test_english_words_of_german_and_their_absence() -> None:
    """A slot that was filled from the wrong language would show as a word of the other one."""
    rows = [row for side in COUNTS for row in read(side)]
    assert words(rows, 0) & {"der", "und", "nicht", "ein", "eine", "ist", "ich", "sie", "wir", "mein"} == set()
    assert words(rows, 1) & {"the", "and", "not", "is", "she", "we", "they", "my", "our", "of"} == set()


def test_no_core_on_two_sides(made: dict[str, list[Any]]) -> None:
    cores = {side: {pair.core for pair in pairs} for side, pairs in made.items()}
    for left, right in combinations(COUNTS, 2):
        assert cores[left] & cores[right] == set()


def test_a_fifth_of_test_has_patterns_that_train_lacks(made: dict[str, list[Any]]) -> None:
    known = {pair.frame for pair in made["train"]}
    new = Counter(pair.frame for pair in made["test"] if pair.frame not in known)
    assert sum(new.values()) == 120
    assert new.pop("written") == 40
    assert len(new) == 9
    assert sum(new.values()) >= COUNTS["test"] / 5
    assert {pair.frame for pair in made["valid"]} <= known


def test_patterns_are_used_evenly(made: dict[str, list[Any]]) -> None:
    counts = Counter(pair.frame for pair in made["train"])
    assert len(counts) == 43
    assert min(counts.values()) >= 20
    assert max(counts.values()) <= 45


def test_conjunctions_send_the_verb_to_the_end() -> None:
    for _, german in (row for side in ("train", "valid") for row in read(side)):
        if match := re.search(r", (weil|dass) .* (\w+)\.$", german):
            assert re.fullmatch(r"bin|ist|sind|habe|hat|haben", match[2]), german


def test_verb_forms_are_complete(grammar: dict[str, Any]) -> None:
    for name, verb in grammar["verbs"].items():
        assert len(verb["english"].split()) == 5, name
        assert len(verb["german"].split()) == 5, name
        prefix = verb.get("prefix", "")
        assert verb["german"].split()[4].startswith(prefix), name
        assert {"habit", "once", "state", "gift"} & set(verb), name


def test_generator_reproduces_its_files(generator: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main(["--check"]) == 0
    assert capsys.readouterr().out.count("is what generate.py makes") == 3


def test_generator_check_notices_a_change(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in COUNTS:
        (tmp_path / f"{side}.tsv").write_bytes((DATA / f"{side}.tsv").read_bytes())
    (tmp_path / "test.tsv").write_bytes((DATA / "test.tsv").read_bytes() + b"One more row.\tEine Zeile mehr.\n")
    monkeypatch.setattr(generator, "HERE", tmp_path)
    assert generator.main(["--check"]) == 1
    assert capsys.readouterr().err == "test.tsv is not what generate.py makes; run it again\n"


def test_generator_says_where_the_grammar_is_too_small(generator: ModuleType, grammar: dict[str, Any]) -> None:
    small = {**grammar, "frames": [frame for frame in grammar["frames"] if frame["name"] in ("food", "passive")]}
    with pytest.raises(generator.GrammarError, match=r"the grammar holds \d+ test rows, 120 are wanted"):
        generator.generate(small)
