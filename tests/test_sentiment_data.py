"""The sentiment data: shape, balance, and how far training and held-out rows stand apart."""

from __future__ import annotations

import csv
import importlib.util
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).resolve().parents[1] / "recipes" / "data" / "sentiment"
SIDES = ("written", "grammar", "valid", "test")
PAIRS = tuple(pair for pair in combinations(SIDES, 2) if pair != ("written", "grammar"))  # both are trained on

DOMAINS = {"product", "film", "restaurant", "app"}
LABELS = {"positive", "negative"}
KINDS = {
    "plain",
    "negation",
    "contrast",
    "faint_praise",
    "sarcasm",
    "mixed",
    "understatement",
    "comparison",
    "typos",
}
HELD_OUT_ROWS = {"test": 400, "valid": 120}

# Five-word runs that may stand on two sides. None is needed so far.
STOP_LIST: frozenset[str] = frozenset()

Row = dict[str, str]


def tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def read(side: str) -> list[Row]:
    with open(DATA / f"{side}.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def five_grams(rows: list[Row]) -> set[str]:
    grams: set[str] = set()
    for row in rows:
        words = tokens(row["text"])
        grams.update(" ".join(words[i : i + 5]) for i in range(len(words) - 4))
    return grams


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sentiment_generate", DATA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {side: read(side) for side in SIDES}


@pytest.mark.parametrize("side", SIDES)
def test_file_format(side: str) -> None:
    raw = (DATA / f"{side}.csv").read_bytes()
    assert raw.startswith(b"text,label,domain,kind\n")
    assert raw.endswith(b"\n")
    assert b"\r" not in raw
    raw.decode("utf-8")


@pytest.mark.parametrize("side", SIDES)
def test_values_are_known(side: str, rows: dict[str, list[Row]]) -> None:
    for row in rows[side]:
        assert set(row) == {"text", "label", "domain", "kind"}
        assert row["label"] in LABELS
        assert row["domain"] in DOMAINS
        assert row["kind"] in KINDS
        assert row["text"] == row["text"].strip() != ""
    assert {row["kind"] for row in rows[side]} == KINDS


@pytest.mark.parametrize("side", SIDES)
def test_labels_and_domains_are_balanced(side: str, rows: dict[str, list[Row]]) -> None:
    cells = Counter((row["domain"], row["label"]) for row in rows[side])
    assert len(cells) == len(DOMAINS) * len(LABELS)
    assert len(set(cells.values())) == 1


def test_row_counts(rows: dict[str, list[Row]]) -> None:
    for side, count in HELD_OUT_ROWS.items():
        assert len(rows[side]) == count
    assert (len(rows["written"]), len(rows["grammar"])) == (4032, 1200)


@pytest.mark.parametrize("side", ["written", *HELD_OUT_ROWS])
def test_written_rows_mix_plain_and_hard(side: str, rows: dict[str, list[Row]]) -> None:
    kinds = Counter(row["kind"] for row in rows[side])
    total = sum(kinds.values())
    assert 0.40 <= kinds["plain"] / total <= 0.50
    assert min(kinds.values()) / total >= 0.03
    lengths = [len(tokens(row["text"])) for row in rows[side]]
    assert min(lengths) >= 3
    assert max(lengths) <= 60


def test_no_row_stands_twice(rows: dict[str, list[Row]]) -> None:
    seen = Counter(" ".join(tokens(row["text"])) for side in SIDES for row in rows[side])
    assert [text for text, count in seen.items() if count > 1] == []


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_no_five_gram_on_two_sides(left: str, right: str, rows: dict[str, list[Row]]) -> None:
    shared = five_grams(rows[left]) & five_grams(rows[right])
    assert sorted(shared - STOP_LIST) == []


def close_pairs(left: list[Row], right: list[Row], limit: float) -> list[tuple[str, str]]:
    """Return the pairs whose word sets have a Jaccard similarity above ``limit``."""
    others = [(row["text"], frozenset(tokens(row["text"]))) for row in right]
    others.sort(key=lambda other: len(other[1]))
    sizes = [len(words) for _, words in others]
    found = []
    for row in left:
        words = frozenset(tokens(row["text"]))
        # Sets whose sizes differ by more than the limit cannot be that similar.
        first = bisect_left(sizes, limit * len(words))
        last = bisect_right(sizes, len(words) / limit)
        for text, other in others[first:last]:
            if text is not row["text"] and len(words & other) > limit * len(words | other):
                found.append((row["text"], text))
    return found


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_no_near_duplicates_between_sides(left: str, right: str, rows: dict[str, list[Row]]) -> None:
    assert close_pairs(rows[left], rows[right], 0.6) == []


@pytest.mark.parametrize("side", sorted(HELD_OUT_ROWS))
def test_no_near_duplicates_within_held_out_rows(side: str, rows: dict[str, list[Row]]) -> None:
    assert close_pairs(rows[side], rows[side], 0.5) == []


def test_generator_reproduces_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_generator().main(["--check"]) == 0
    assert "is what generate.py makes" in capsys.readouterr().out


def test_generator_check_notices_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = load_generator()
    changed = tmp_path / "grammar.csv"
    changed.write_bytes(generator.ROWS.read_bytes() + b"one more,positive,app,plain\n")
    monkeypatch.setattr(generator, "ROWS", changed)
    assert generator.main(["--check"]) == 1
    assert "run it again" in capsys.readouterr().err


def test_generator_reads_nothing_but_its_grammar() -> None:
    source = (DATA / "generate.py").read_text(encoding="utf-8")
    assert [name for name in ("written.csv", "valid.csv", "test.csv") if name in source] == []
