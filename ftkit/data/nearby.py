"""Which documents of a stream came before, word for word or nearly, without keeping their texts.

The same and nearly the same are what ``ftkit.data.duplicates`` says: equal in normal form; or sets of words with a
Jaccard similarity of at least 0.8, of 5 words or more. Two things differ, for corpora do not fit in memory:

- Texts are kept as digests of 16 bytes. That two of 10^15 documents share one is as likely as one in 10^8.
- A candidate is verified by an estimate of the similarity, not by the words themselves: the share of equal ones among
  256 MinHash values, of each of which one byte is kept (b-bit minwise hashing, Li and König 2010). The standard error
  is at most 0.025 at the threshold: of pairs at 0.75 one in thirty at most is taken for near, of pairs at 0.7 one in
  four thousand, and of pairs at 0.85 one in seventy is missed.

Memory for each document that is kept: about 100 bytes where only equal ones are looked for, about 2,800 bytes more
for near ones (2,450 in rensa's index), whatever the length of the text. A million documents take 0.1 and 2.9 GB.

Sets of words know no order: two texts as long as a novel in a script whose characters count as words can have nearly
all of them in common. Look for equal ones only there.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from ftkit.data.duplicates import BANDS, FEWEST_WORDS, NEAR, PERMUTATIONS, SEED, normalised, words

if TYPE_CHECKING:
    from rensa import RMinHash

_DIGEST = 16
_CHANCE = 1 / 256  # two different values have the same byte


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared of a document; ``sketch`` is None where only equal ones are looked for, or words are few."""

    digest: bytes
    sketch: RMinHash | None


def fingerprint(text: str, *, near: bool) -> Fingerprint:
    """``near``: made to be compared with nearly the same documents too, which takes several times as long."""
    compared = normalised(text)
    # surrogatepass: a text that is not cleaned may hold what UTF-8 does not.
    digest = blake2b(compared.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
    return Fingerprint(digest, _sketch(compared) if near else None)


def _sketch(text: str) -> RMinHash | None:
    from rensa import RMinHash

    if len(found := words(text)) < FEWEST_WORDS:
        return None
    sketch = RMinHash(PERMUTATIONS, SEED)
    sketch.update(found)
    return sketch


class Seen:
    """The documents that were added so far; ``near``: nearly the same ones are found too."""

    def __init__(self, *, near: bool) -> None:
        self.near = near
        self._digests: set[bytes] = set()
        self._sketches = _Near() if near else None

    def find(self, document: Fingerprint) -> Literal["exact", "near"] | None:
        """How the document repeats one that was added; None where it repeats none."""
        if document.digest in self._digests:
            return "exact"
        if self._sketches is not None and document.sketch is not None and self._sketches.holds(document.sketch):
            return "near"
        return None

    def add(self, document: Fingerprint) -> None:
        if document.digest in self._digests:
            return
        self._digests.add(document.digest)
        if self._sketches is not None and document.sketch is not None:
            self._sketches.add(document.sketch)


class _Near:
    """MinHash sketches: rensa's index finds candidates, a byte of each value estimates how similar they are."""

    def __init__(self) -> None:
        from rensa import RMinHashLSH

        self._index = RMinHashLSH(NEAR, PERMUTATIONS, BANDS)
        self._bytes = bytearray()  # (sketches, PERMUTATIONS)

    def holds(self, sketch: RMinHash) -> bool:
        import numpy as np

        if not (candidates := self._index.query(sketch)):
            return False
        kept = np.frombuffer(self._bytes, np.uint8).reshape(-1, PERMUTATIONS)[candidates]
        equal = (kept == np.frombuffer(_bytes(sketch), np.uint8)).mean(axis=1).max()
        return bool((equal - _CHANCE) / (1 - _CHANCE) >= NEAR)

    def add(self, sketch: RMinHash) -> None:
        self._index.insert(len(self._bytes) // PERMUTATIONS, sketch)
        self._bytes += _bytes(sketch)


def _bytes(sketch: RMinHash) -> bytes:
    return bytes(value & 255 for value in sketch.digest())
