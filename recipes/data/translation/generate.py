"""Write the translation data: English and German sentences, side by side.

The vocabulary, the sentence patterns and the written rows live in ``grammar.toml``; this file only expands them. The
output depends on nothing but that file and the seed in it.

    python recipes/data/translation/generate.py           # write train.tsv, valid.tsv and test.tsv
    python recipes/data/translation/generate.py --check   # compare, write nothing

A sentence's core is what it says without its tense, time and modal verb: subject, verb and object, or the items drawn
from the lists. Each core belongs to one side, by its hash, so that no held-out sentence says in another tense what a
training sentence says.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GRAMMAR = HERE / "grammar.toml"

ROWS = {"train": 1600, "valid": 150, "test": 250}
HELD_OUT_FRAMES = 80  # test rows whose pattern train lacks, beside the written ones
WORDS = range(4, 13)
PERSONS = {"1s": 0, "2s": 1, "3s": 2, "pl": 3}
TIMES = {"habitually", "before", "later"}
# Words that two items of one sentence may share; any other shared word would make it odd ("Anna gave Anna the key").
COMMON = frozenset(
    "a an the my your our this new old small in on at to of is are was not as than too very and i it he she we they "
    "you next more little good evening morning one".split()
)

_SLOT = re.compile(r"\{(\w+)\}")


class GrammarError(ValueError):
    """The grammar asks for something that it does not define, or for more sentences than it holds."""


@dataclass(frozen=True)
class Pair:
    """A row, with the pattern that it was made from and its core."""

    english: str
    german: str
    frame: str
    core: tuple[str, ...]


class Drawing:
    """Draws the items of one sentence, and collects what fills its slots."""

    def __init__(self, grammar: dict[str, Any], frame: dict[str, Any], rng: random.Random) -> None:
        self._grammar = grammar
        self._frame = frame
        self._rng = rng
        self._items: list[str] = []
        self._english: dict[str, str] = {}
        self._german: dict[str, str] = {}
        self._core: list[str] = []

    def pair(self) -> Pair | None:
        """One sentence, or None where the items drawn do not go together."""
        named = _SLOT.findall(self._frame["english"] + self._frame["german"])
        slots = dict.fromkeys(slot.removesuffix("_2") for slot in named)
        child = False
        if "S" in slots or "verbs" in self._frame:
            child, person = self._subject()
            if "verbs" in self._frame and not self._verb(person, child):
                return None
            if "M" in slots:
                self._modal(person)
        for slot in slots:
            if slot in self._grammar["lists"]:
                self._item(slot)
        if self._clash():
            return None
        english = polish(_SLOT.sub(lambda slot: self._english[slot[1]], self._frame["english"]))
        german = polish(_SLOT.sub(lambda slot: self._german[slot[1]], self._frame["german"]))
        if len(english.split()) not in WORDS or len(german.split()) not in WORDS:
            return None
        return Pair(english, german, self._frame["name"], tuple(self._core))

    def _subject(self) -> tuple[bool, int]:
        """Draws the subject; whether it is a child, and its person."""
        asked = self._frame["english"].endswith("?")
        pool = [fields(item) for item in self._grammar["subjects"]["question" if asked else "statement"]]
        pool = [item for item in pool if item[0] not in self._frame.get("without", ())]
        english, german, name, english_pronoun, german_pronoun, *child = self._rng.choice(pool)
        person = PERSONS[name]
        self._english |= {"S": english, "s": english_pronoun}
        self._german |= {"S": german, "s": german_pronoun}
        for own, forms in ((self._english, "english"), (self._german, "german")):
            own.update({word: row.split()[person] for word, row in self._grammar["forms"][forms].items()})
        self._items.append(english)
        if "{S}" in self._frame["english"]:
            self._core.append(english)
        return bool(child), person

    def _verb(self, person: int, child: bool) -> bool:
        """Draws verb and object; False where the verb does not suit the frame or the subject."""
        name, verb, found = self._rng.choice(self._phrases())
        tags = verb["tags"].split()
        if name not in self._frame.get("only", [name]) or name in self._frame.get("without", ()):
            return False
        if "tag" in self._frame and self._frame["tag"] not in tags:
            return False
        if (child and "adult" in tags) or ("{imp}" in self._frame["german"] and "imperative" not in verb):
            return False
        english, german, *negated = found
        article = german.split()[0]
        if self._frame.get("definite") and (negated or article not in {"der", "die", "das", "den"}):
            return False
        if self._frame.get("bare") and re.match(r"(ein|der|die|das|den|mein|zwei)", article):
            return False
        negation = negated[0] if negated else f"k{german}" if article.startswith("ein") else f"{german} nicht"
        if "{Neg}" in self._frame["german"] and negation == "-":
            return False
        self._english |= english_forms(verb, person) | {"O": english}
        self._german |= german_forms(verb, person) | {"O": german, "Neg": negation}
        self._german["habe"] = self._german["bin" if verb.get("sein") else "hat"]
        self._items.append(english)
        self._core += [verb["english"].split()[0], english]
        return True

    def _phrases(self) -> list[tuple[str, dict[str, Any], list[str]]]:
        """Every verb with every object of the frame's kinds."""
        return [
            (name, verb, fields(item))
            for name, verb in self._grammar["verbs"].items()
            for kind in self._frame["verbs"]
            for item in verb.get(kind, ())
        ]

    def _modal(self, person: int) -> None:
        modals = self._grammar["modals"]
        base, third, german = fields(modals[self._rng.choice(self._frame.get("modals", list(modals)))])
        self._english["M"] = third if person == PERSONS["3s"] else base
        self._german["M"] = german.split()[person]

    def _item(self, slot: str) -> None:
        english, german, *second = fields(self._rng.choice(self._grammar["lists"][slot]))
        self._english[slot], self._german[slot] = english, german
        if second:
            self._english[f"{slot}_2"], self._german[f"{slot}_2"] = second
        self._items.append(english)
        if slot not in TIMES:
            self._core.append(english)

    def _clash(self) -> bool:
        """Whether two items share a word that matters, or cannot stand in one sentence."""
        if any(set(fields(pair)) <= set(self._items) for pair in self._grammar["clashes"]["pairs"]):
            return True
        words = [word for item in self._items for word in set(item.lower().split()) - COMMON]
        return len(words) != len(set(words))


def fields(item: str) -> list[str]:
    return [field.strip() for field in item.split("|")]


def english_forms(verb: dict[str, Any], person: int) -> dict[str, str]:
    base, third, past, participle, ing = verb["english"].split()
    forms = {"base": base, "past": past, "part": participle, "ing": ing}
    forms["present"] = third if person == PERSONS["3s"] else base
    return {name: f"{form} {verb.get('particle', '')}".strip() for name, form in forms.items()}


def german_forms(verb: dict[str, Any], person: int) -> dict[str, str]:
    first, second, third, infinitive, participle = verb["german"].split()
    prefix = verb.get("prefix", "")
    return {
        "V": (first, second, third, infinitive)[person],
        "P": prefix,
        "inf": prefix + infinitive,
        "zuinf": f"{prefix}zu{infinitive}" if prefix else f"zu {infinitive}",
        "pp": participle,
        "imp": verb.get("imperative", ""),
    }


def polish(text: str) -> str:
    """Spaces once and none before a mark; a capital at the beginning."""
    text = re.sub(r"\s+([.,?])", r"\1", " ".join(text.split()))
    return text[0].upper() + text[1:]


def side_of(core: tuple[str, ...]) -> str:
    """The side that a core belongs to: about an eighth to valid, a quarter to test."""
    place = hashlib.sha256("\n".join(core).encode()).digest()[0]
    return "valid" if place < 32 else "test" if place < 96 else "train"


def generate(grammar: dict[str, Any]) -> dict[str, list[Pair]]:
    """The rows of each side, in their final order."""
    rng = random.Random(grammar["seed"])
    sides: dict[str, list[Pair]] = {side: [] for side in ROWS}
    sides["test"] = [Pair(english, german, "written", (english,)) for english, german in grammar["written"]]
    seen = {text for pair in sides["test"] for text in (pair.english, pair.german)}
    held_out = [frame for frame in grammar["frames"] if frame.get("held_out")]
    fill(sides, seen, grammar, held_out, {"test": len(sides["test"]) + HELD_OUT_FRAMES}, rng)
    fill(sides, seen, grammar, [frame for frame in grammar["frames"] if frame not in held_out], ROWS, rng)
    for pairs in sides.values():
        rng.shuffle(pairs)
    return sides


def fill(
    sides: dict[str, list[Pair]],
    seen: set[str],
    grammar: dict[str, Any],
    frames: list[dict[str, Any]],
    wanted: dict[str, int],
    rng: random.Random,
) -> None:
    """Fill the sides up to ``wanted`` rows, each frame in turn adding one, as long as it has something new to say."""
    for side, count in wanted.items():
        left = list(frames)
        while len(sides[side]) < count:
            if not left:
                raise GrammarError(f"the grammar holds {len(sides[side])} {side} rows, {count} are wanted")
            for frame in list(left):
                if len(sides[side]) == count:
                    break
                pair = new_pair(side, seen, grammar, frame, rng)
                if pair is None:
                    left.remove(frame)
                    continue
                sides[side].append(pair)
                seen |= {pair.english, pair.german}


def new_pair(
    side: str, seen: set[str], grammar: dict[str, Any], frame: dict[str, Any], rng: random.Random
) -> Pair | None:
    """A pair of this side that does not stand anywhere yet; None where two thousand draws find none."""
    for _ in range(2000):
        pair = Drawing(grammar, frame, rng).pair()
        if pair and side_of(pair.core) == side and not {pair.english, pair.german} & seen:
            return pair
    return None


def to_tsv(pairs: list[Pair]) -> bytes:
    lines = ["english\tgerman", *(f"{pair.english}\t{pair.german}" for pair in pairs)]
    return ("\n".join(lines) + "\n").encode("utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write train.tsv, valid.tsv and test.tsv from grammar.toml.")
    parser.add_argument("--check", action="store_true", help="only compare the files with what would be written")
    args = parser.parse_args(argv)
    status = 0
    for side, pairs in generate(tomllib.loads(GRAMMAR.read_text(encoding="utf-8"))).items():
        path, made = HERE / f"{side}.tsv", to_tsv(pairs)
        if not args.check:
            path.write_bytes(made)
            print(f"wrote {len(pairs):,} rows to {path.name}")
        elif path.is_file() and path.read_bytes() == made:
            print(f"{path.name} is what generate.py makes ({len(pairs):,} rows)")
        else:
            print(f"{path.name} is not what generate.py makes; run it again", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
