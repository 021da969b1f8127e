"""Rows that are the same, or nearly the same, as rows of another split.

Exactly the same: equal after Unicode NFKC, case folding and with runs of white space as one space.

Nearly the same: the sets of their words have a Jaccard similarity of at least 0.8 (of ten words in each, nine are
shared), case and punctuation aside. Characters of scripts written without spaces count as words. Texts of fewer than
5 different words are only compared exactly: one word more or less is another text there. Candidates come from rensa's
MinHash index (32 bands of 8: a pair at the threshold is missed once in 350); each is then verified by its exact
similarity, so none is reported falsely. The result depends on nothing but the texts and their order.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ftkit.records import Example

NEAR = 0.8
FEWEST_WORDS = 5
BANDS = 32
PERMUTATIONS = 8 * BANDS
SEED = 42
_CHUNK = 2048
_ROUNDING = 1e-6
# Thai to Myanmar, kana, and the ideographs, where a character is counted as a word; Korean has spaces.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Match:
    """A row and the row of the other split that it repeats, word for word (``exact``) or nearly."""

    row: Example
    other: Example
    similarity: float
    exact: bool


def normalised(text: str) -> str:
    """The text as it is compared: NFKC, case-folded, runs of white space as one space."""
    if text.isascii():  # NFKC changes nothing and folding is lowering
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def same_texts(examples: Iterable[Example]) -> list[tuple[Example, ...]]:
    """The sets of two or more rows with the same text, in the order of their first rows."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[normalised(example.text)].append(example)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def exact_matches(rows: Iterable[Example], others: Iterable[Example]) -> list[Match]:
    """Each of ``rows`` whose text stands in ``others``, with the first row there that has it."""
    first: dict[str, Example] = {}
    for other in others:
        first.setdefault(normalised(other.text), other)
    found = ((row, first.get(normalised(row.text))) for row in rows)
    return [Match(row, other, 1.0, exact=True) for row, other in found if other is not None]


def near_matches(rows: Sequence[Example], others: Iterable[Example]) -> list[Match]:
    """Each of ``rows`` that is nearly the same as one of ``others``, with the first such row there.

    Rows with exactly the same text are not compared here: give ``rows`` without those. ``others`` is streamed.
    """
    from rensa import RMinHash, RMinHashLSH

    sets = {key: found for key, row in enumerate(rows) if len(found := words(row.text)) >= FEWEST_WORDS}
    if not sets:
        return []
    index = RMinHashLSH(NEAR, PERMUTATIONS, BANDS)
    hashes = RMinHash.from_token_sets(list(sets.values()), PERMUTATIONS, SEED)
    index.insert_pairs(list(zip(sets, hashes, strict=True)))
    signatures = {key: _signature(found) for key, found in sets.items()}
    matches: dict[int, Match] = {}
    for chunk in _chunks((other, found) for other in others if len(found := words(other.text)) >= FEWEST_WORDS):
        hashes = RMinHash.from_token_sets([found for _, found in chunk], PERMUTATIONS, SEED)
        for (other, found), keys in zip(chunk, index.query_all(hashes), strict=True):
            # Rows made from one template are all candidates of each other: millions of pairs that differ in few words.
            # The signatures put most of them aside, and no pair at the threshold, in a fraction of the time.
            signature, differing = _signature(found), int(len(found) * (1 - NEAR) / NEAR + _ROUNDING)
            close = [key for key in keys if (signatures[key] ^ signature).bit_count() <= differing]
            for key in close:
                similarity = _jaccard(sets[key], found)
                if key not in matches and similarity >= NEAR:
                    matches[key] = Match(rows[key], other, similarity, exact=False)
                    index.remove(key)
    return [matches[key] for key in sorted(matches)]


def words(text: str) -> frozenset[str]:
    """The different words of a text in normal form."""
    return frozenset(_WORD.findall(normalised(text)))


def _signature(words: frozenset[str]) -> int:
    """256 bits, of which each word sets one: two sets differ in at least as many words as their signatures in bits."""
    bits = 0
    for word in words:
        bits |= 1 << (hash(word) & 255)  # hash changes from process to process; only the time depends on it
    return bits


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _chunks(items: Iterable[tuple[Example, frozenset[str]]]) -> Iterator[list[tuple[Example, frozenset[str]]]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
