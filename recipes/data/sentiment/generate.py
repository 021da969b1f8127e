"""Write the generated part of the training rows of the sentiment data set.

The vocabulary and the sentence frames live in ``grammar.toml``; this file only
expands them.  The output depends on nothing but that file and the seed in it.

    python recipes/data/sentiment/generate.py           # write grammar.csv
    python recipes/data/sentiment/generate.py --check   # compare, write nothing

Notation used in ``grammar.toml``:

``{name}``
    one alternative of the rule ``name``.
``{name~}``, ``{name!}``
    the same, for the polarity being expressed (``~``) or its opposite (``!``).
    The rules ``name+``, ``name-`` and ``name`` hold the alternatives that are
    positive, negative and neutral; a polar call draws from the polar rule and
    from the neutral one of that name.
``{name+}``, ``{name-}``
    the same, for a fixed polarity.
``(a|b|)``
    one of the alternatives, written in place; they may be empty and may nest.

A rule is looked up in the variant (say, ``product.kitchen``), in the domain and
in ``common``, and the alternatives found are pooled.  A rule named in ``once``
keeps its first value for the rest of the review.  No alternative is used twice
in one review while unused ones are left.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GRAMMAR = HERE / "grammar.toml"
ROWS = HERE / "grammar.csv"

COLUMNS = ("text", "label", "domain", "kind")
SIGNS = {"positive": "+", "negative": "-"}
OPPOSITE = {"+": "-", "-": "+"}
MAX_ATTEMPTS = 500

Row = tuple[str, str, str, str]
Rules = dict[str, list[str]]

_CALL = re.compile(r"\{(\w+)([~!+-]?)\}")
_CHOICE = re.compile(r"\(([^()]*)\)")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU]|hour|honest)(?!one\b|us|uni|eu|uk)")
_SENTENCE_START = re.compile(r"(^|[.!?]\s+)([a-z])")
_WORD = re.compile(r"[A-Za-z]{4,}")


class GrammarError(ValueError):
    """The grammar asks for a rule that it does not define."""


class Review:
    """One expansion of the grammar: remembers what this review already said."""

    def __init__(self, rules: Rules, once: frozenset[str], rng: random.Random) -> None:
        self._rules = rules
        self._once = once
        self._rng = rng
        self._kept: dict[str, str] = {}
        self._used: dict[str, set[str]] = {}

    def expand(self, name: str, sign: str) -> str:
        """Return one expansion of the rule ``name`` for polarity ``sign``."""
        if name in self._kept:
            return self._kept[name]
        pool = self._rules.get(name + sign, []) + self._rules.get(name, [])
        if not pool:
            raise GrammarError(f"no rule named {name!r} for polarity {sign!r}")
        used = self._used.setdefault(name + sign, set())
        alternative = self._rng.choice([a for a in pool if a not in used] or pool)
        used.add(alternative)
        text = self._fill(alternative, sign)
        if name in self._once:
            self._kept[name] = text
        return text

    def _fill(self, alternative: str, sign: str) -> str:
        while (chosen := _CHOICE.sub(self._choose, alternative)) != alternative:
            alternative = chosen

        def call(match: re.Match[str]) -> str:
            mark = match[2]
            inner = {"": sign, "~": sign, "!": OPPOSITE[sign]}.get(mark, mark)
            return self.expand(match[1], inner)

        return _CALL.sub(call, alternative)

    def _choose(self, match: re.Match[str]) -> str:
        return self._rng.choice(match[1].split("|"))


def polish(text: str) -> str:
    """Fix spacing, articles and capitals of an expanded review."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([,.;:!?])", r"\1", text)
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text)


def misspell(text: str, rng: random.Random) -> str:
    """Return ``text`` with hasty typing in about a third of its longer words."""

    def swap(word: str, i: int) -> str:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

    def drop(word: str, i: int) -> str:
        return word[:i] + word[i + 1 :]

    def double(word: str, i: int) -> str:
        return word[:i] + word[i] + word[i:]

    slips: list[Callable[[str, int], str]] = [swap, swap, drop, drop, double]

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= 0.35:
            return word
        return rng.choice(slips)(word, rng.randrange(1, len(word) - 1))

    text = _WORD.sub(slip, text)
    if rng.random() < 0.6:
        text = text.lower()
    if rng.random() < 0.5:
        text = text.rstrip(".").replace("'", "")
    return text


def pooled_rules(grammar: dict[str, Any], domain: str, variant: str | None) -> Rules:
    """Return the rules that hold for one domain and variant."""
    tables = [grammar["common"], grammar["domain"][domain]]
    if variant is not None:
        tables.append(grammar["domain"][domain]["variant"][variant])
    pooled: Rules = {}
    for table in tables:
        for name, alternatives in table.items():
            if isinstance(alternatives, list):
                pooled[name] = pooled.get(name, []) + alternatives
    return pooled


def generate(grammar: dict[str, Any]) -> list[Row]:
    """Return the training rows, in their final order."""
    rng = random.Random(grammar["seed"])
    once = frozenset(grammar["once"])
    typo_kinds: list[str] = grammar["typo_kinds"]
    rows: list[Row] = []
    seen: set[str] = set()
    for domain, table in grammar["domain"].items():
        variants: list[str | None] = list(table.get("variant", {})) or [None]
        pools = [pooled_rules(grammar, domain, variant) for variant in variants]
        for label, sign in SIGNS.items():
            for kind, count in grammar["rows"][label].items():
                made = attempts = 0
                while made < count:
                    attempts += 1
                    if attempts > MAX_ATTEMPTS * count:
                        raise GrammarError(f"too few {label} {kind} reviews of a {domain}")
                    rule = rng.choice(typo_kinds) if kind == "typos" else kind
                    text = polish(Review(rng.choice(pools), once, rng).expand(rule, sign))
                    if kind == "typos":
                        text = misspell(text, rng)
                    key = " ".join(re.findall(r"[a-z0-9']+", text.lower()))
                    if key in seen:
                        continue
                    seen.add(key)
                    rows.append((text, label, domain, kind))
                    made += 1
    rng.shuffle(rows)
    return rows


def to_csv(rows: list[Row]) -> bytes:
    """Return ``rows`` as RFC 4180 text: UTF-8, LF line ends, a header."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return buffer.getvalue().encode("utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write grammar.csv from grammar.toml.")
    parser.add_argument("--check", action="store_true", help="only compare grammar.csv with what would be written")
    args = parser.parse_args(argv)
    rows = generate(tomllib.loads(GRAMMAR.read_text(encoding="utf-8")))
    made = to_csv(rows)
    if not args.check:
        ROWS.write_bytes(made)
        print(f"wrote {len(rows)} rows to {ROWS.name}")
        return 0
    if not ROWS.is_file() or ROWS.read_bytes() != made:
        print(f"{ROWS.name} is not what generate.py makes; run it again", file=sys.stderr)
        return 1
    print(f"{ROWS.name} is what generate.py makes ({len(rows)} rows)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
