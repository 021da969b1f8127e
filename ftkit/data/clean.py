"""What ``data.clean`` does to the documents of a corpus, one after the other, with a count of each step.

The steps that change a text come first: HTML, control characters, Unicode. Control characters go before the normal
form is made, for what stood on both sides of one may combine; so cleaning a cleaned text changes nothing (but for HTML,
see ``html_text``). Then documents are dropped: empty ones; those whose length, repetition or language is not wanted;
and last, those of train that repeat a document of valid or test, or an earlier one of train.

All but the last apply to valid and test as well, so that what is measured is of the kind that is trained on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ftkit.data.language import language_of
from ftkit.data.markup import html_text
from ftkit.data.nearby import Seen, fingerprint
from ftkit.data.rows import LISTED
from ftkit.data.section import Clean

# Category Cc but white space; the byte order mark; surrogates, which are unpaired wherever a str holds them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")
# CR LF, and the control characters that end a line: vertical tab, form feed, next line.
_LINE_END = re.compile("\r+[\n\x0b\x0c\x85]|[\x0b\x0c\x85]")
EMPTY = "empty"
_OVERLAP = {"exact": "overlap with valid or test", "near": "near overlap with valid or test"}
_DUPLICATES = {"exact": "duplicates", "near": "near duplicates"}


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: documents it changed, documents it dropped, and where the first ten of these stand."""

    step: str
    changed: int
    dropped: int
    rows: tuple[str, ...]


@dataclass(slots=True)
class _Count:
    changed: int = 0
    dropped: int = 0
    rows: list[str] = field(default_factory=list)


class Cleaner:
    """Cleans the documents of one corpus in the order they come in. It keeps no texts, see ``ftkit.data.nearby``.

    Give the documents of valid and test first: ``text`` with ``held_out``, and what that returns to ``hold_out``. A
    train document is compared with what was given before it.
    """

    def __init__(self, clean: Clean) -> None:
        self._changes = _changes(clean)
        self._filters = _filters(clean)
        self._held = _seen(clean.test_overlap)
        self._train = _seen(clean.duplicates)
        self._near = "near" in (clean.test_overlap, clean.duplicates)
        names = [name for name, _ in (*self._changes, *self._filters)]
        names += _switched_on(_OVERLAP, clean.test_overlap) + _switched_on(_DUPLICATES, clean.duplicates)
        self._counts = {name: _Count() for name in names}

    def text(self, text: str, where: str, *, held_out: bool = False) -> str | None:
        """The cleaned text of the document that stands at ``where``; None where it is dropped.

        ``held_out``: it belongs to valid or test, and is not compared with other documents.
        """
        for name, change in self._changes:
            if (after := change(text)) != text:
                self._counts[name].changed += 1
                text = after
        step = next((name for name, unwanted in self._filters if unwanted(text)), None)
        if step is None and not held_out:
            step = self._repeated(text)
        if step is None:
            return text
        count = self._counts[step]
        count.dropped += 1
        if len(count.rows) < LISTED:
            count.rows.append(where)
        return None

    def hold_out(self, text: str) -> None:
        """A cleaned document of valid or test: train documents that repeat it are dropped from now on."""
        if self._held is not None:
            self._held.add(fingerprint(text, near=self._held.near))

    def steps(self) -> tuple[Step, ...]:
        """The steps that are switched on, in the order they are taken; all documents together, held out ones too."""
        return tuple(
            Step(name, count.changed, count.dropped, tuple(count.rows)) for name, count in self._counts.items()
        )

    @property
    def empty(self) -> int:
        """Documents that held nothing but white space, at first or after they were cleaned."""
        return self._counts[EMPTY].dropped

    def _repeated(self, text: str) -> str | None:
        """The step that drops a train document since it was seen before; it has been seen from now on."""
        if self._held is None and self._train is None:
            return None
        document = fingerprint(text, near=self._near)
        if self._held is not None and (how := self._held.find(document)):
            return _OVERLAP[how]
        if self._train is not None:
            if how := self._train.find(document):
                return _DUPLICATES[how]
            self._train.add(document)
        return None


def repetition(text: str) -> float:
    """The share of characters that stand in lines which stand earlier in the text too: 0 to below 1.

    Empty lines and white space around lines do not count. Rae et al. (2021), Scaling Language Models, A1.1.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    return (total - sum(map(len, set(lines)))) / total if total else 0.0


def without_control(text: str) -> str:
    """The text without control characters, byte order marks and unpaired surrogates.

    Tabs, line feeds and lone carriage returns stay. CR LF becomes a line feed, and so do a vertical tab, a form feed
    and NEL, which part lines. Format characters (zero-width joiners, direction marks) are part of several scripts.
    """
    return _LINE_END.sub("\n", _CONTROL.sub("", text))


def _changes(clean: Clean) -> tuple[tuple[str, Callable[[str], str]], ...]:
    steps: list[tuple[str, Callable[[str], str]]] = []
    if clean.html:
        steps.append(("html", html_text))
    if clean.control:
        steps.append(("control characters", without_control))
    if clean.unicode is not None:
        steps.append(("unicode", partial(unicodedata.normalize, clean.unicode)))
    return tuple(steps)


def _filters(clean: Clean) -> tuple[tuple[str, Callable[[str], bool]], ...]:
    """Each step that drops a document by its text alone, with what it drops."""
    fewest, most, repeated, languages = clean.min_chars, clean.max_chars, clean.max_repetition, clean.languages
    steps: list[tuple[str, Callable[[str], bool]]] = [(EMPTY, lambda text: not text or text.isspace())]
    if fewest is not None:
        steps.append(("too short", lambda text: len(text) < fewest))
    if most is not None:
        steps.append(("too long", lambda text: len(text) > most))
    if repeated is not None:
        steps.append(("repetition", lambda text: repetition(text) > repeated))
    if languages is not None:
        steps.append(("language", lambda text: language_of(text) not in (None, *languages)))
    return tuple(steps)


def _seen(how: Literal["keep", "exact", "near"]) -> Seen | None:
    return None if how == "keep" else Seen(near=how == "near")


def _switched_on(steps: dict[str, str], how: Literal["keep", "exact", "near"]) -> list[str]:
    return {"keep": [], "exact": [steps["exact"]], "near": [steps["exact"], steps["near"]]}[how]
