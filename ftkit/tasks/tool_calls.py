"""Calls of tools in an answer, read while it comes: what is a call in the template's form, and what is text.

A call that is not whole, not offered, or not in this form stays text. ``ftkit.tasks.tool_forms`` finds the form out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from ftkit.tasks.pieces import overlap

# A JSON string, the last of a text maybe without its end, or what opens or closes an object or a list.
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]]', re.DOTALL)


class Slot(Enum):
    """What a call's object has of its own."""

    NAME = "name"
    ARGUMENTS = "arguments"


class _NoCall(Exception):
    """What stands here is no call, whatever follows."""


class _Unfinished(Exception):
    """What stands here may become a call."""


@dataclass(frozen=True, slots=True)
class Call:
    """``arguments``: an object, as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a template writes calls: ``begin``, an object, for each further call ``between`` and an object, ``end``.

    White space in the three does not count. ``between``: None where an answer has one call at most. ``shape``: the
    object, with slots for the name and the arguments. ``special``: the special tokens in the marks, which decoding
    must keep.
    """

    begin: str
    between: str | None
    end: str
    shape: Mapping[str, Any]
    special: frozenset[int]

    @property
    def mark(self) -> str:
        """The word that a call begins with wherever it stands; "" where calls are bare JSON, and begin the answer."""
        return next(iter(self.begin.rstrip("[ \n\r\t").split()), "")

    @property
    def lead(self) -> str:
        """The first character of a call."""
        return (self.begin + "{")[0]

    def read(self, text: str, names: Collection[str]) -> tuple[str, list[Call]]:
        """What a whole answer says beside its calls, without white space around it, and its calls of these tools."""
        reader = CallReader(self, names)
        parts = [*reader.add(text), *reader.end()]
        return content_of(parts), calls_of(parts)

    def calls_at(self, text: str, at: int, names: Collection[str], *, over: bool) -> tuple[list[Call], int]:
        """The calls that begin at a character, and where they end. ``over``: no more text comes.

        Raises _Unfinished or _NoCall.
        """
        cursor = _Cursor(text, at, over)
        cursor.skip(self.begin)
        calls = [self._call(cursor.read_object(), names)]
        while self._goes_on(cursor):
            calls.append(self._call(cursor.read_object(), names))
        return calls, cursor.at

    def _goes_on(self, cursor: _Cursor) -> bool:
        """Passes what stands after a call: the end, or what comes before another in the same marks."""
        if self.between is None or _squeezed(self.between) == _squeezed(self.end + self.begin):
            cursor.skip(self.end)
            return False
        # The longer first: one may begin as the other does.
        longer, shorter = sorted((self.end, self.between), key=lambda mark: -len(_squeezed(mark)))
        start = cursor.at
        try:
            cursor.skip(longer)
        except _NoCall:
            cursor.at = start
            cursor.skip(shorter)
            return shorter is self.between
        return longer is self.between

    def _call(self, value: Any, names: Collection[str]) -> Call:
        found: dict[Slot, Any] = {}
        if not _fits(self.shape, value, found):
            raise _NoCall
        name, arguments = found[Slot.NAME], found[Slot.ARGUMENTS]
        if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
            raise _NoCall
        return Call(name, _as_json(arguments))


class CallReader:
    """Parts an answer into text and calls while it comes. The parts do not depend on where its pieces are cut.

    Text is held back where a call may have begun; what is none after all comes out as text. ``names``: of the tools
    that may be called.
    """

    def __init__(self, form: CallForm, names: Collection[str]) -> None:
        self.form = form
        self._names = frozenset(names)
        self._text = self._space = ""  # what is not settled; white space that counts once text follows
        self._said = self._called = False

    def add(self, text: str) -> list[str | Call]:
        """The parts that a piece settles."""
        self._text += text
        return self._settled(over=False)

    def end(self) -> list[str | Call]:
        """What was held back, when no more comes."""
        return self._settled(over=True)

    def _settled(self, *, over: bool) -> list[str | Call]:
        parts: list[str | Call] = []
        while (at := self._begin()) is not None:
            try:
                calls, after = self.form.calls_at(self._text, at, self._names, over=over)
            except _Unfinished:
                self._say(at, parts)
                return parts
            except _NoCall:
                self._say(at + 1, parts)
                continue
            self._say(at, parts)
            parts += calls
            self._text, self._called = self._text[after - at :], True
        self._say(len(self._text) - (0 if over else overlap(self._text, self.form.mark)), parts)
        return parts

    def _begin(self) -> int | None:
        """Where the next call may begin."""
        if self._called and self.form.between is None:
            return None
        if self.form.mark:
            at = self._text.find(self.form.mark)
            return at if at >= 0 else None
        at = len(self._text) - len(self._text.lstrip())
        return at if not self._said and self._text[at : at + 1] == self.form.lead else None

    def _say(self, count: int, parts: list[str | Call]) -> None:
        """Settles so many characters as text."""
        text, self._text = self._space + self._text[:count], self._text[count:]
        words = text.rstrip()
        self._space = text[len(words) :]
        if not self._said:
            words = words.lstrip()
        if not words:
            return
        self._said = True
        if parts and isinstance(parts[-1], str):
            parts[-1] += words
        else:
            parts.append(words)


class _Cursor:
    """A place in a text. ``over``: no more text comes, so that what is not finished is no call."""

    def __init__(self, text: str, at: int, over: bool) -> None:
        self._text, self.at, self._over = text, at, over

    def skip(self, mark: str) -> None:
        """Passes a mark, and white space before each of its characters. Raises _Unfinished or _NoCall."""
        for char in _squeezed(mark):
            if self._next() != char:
                raise _NoCall
            self.at += 1

    def read_object(self) -> Any:
        """Passes a JSON object. Raises _Unfinished or _NoCall."""
        if self._next() != "{":
            raise _NoCall
        depth = 0
        for found in _STRUCTURE.finditer(self._text, self.at):
            depth += 1 if found[0] in ("{", "[") else -1 if found[0] in ("}", "]") else 0
            if depth == 0:
                start, self.at = self.at, found.end()
                return _from_json(self._text[start : self.at])
        self._short()

    def _next(self) -> str:
        while self._text[self.at : self.at + 1].isspace():
            self.at += 1
        if self.at == len(self._text):
            self._short()
        return self._text[self.at]

    def _short(self) -> NoReturn:
        raise _NoCall if self._over else _Unfinished


def content_of(parts: Sequence[str | Call]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def calls_of(parts: Sequence[str | Call]) -> list[Call]:
    return [part for part in parts if isinstance(part, Call)]


def _fits(shape: Any, value: Any, found: dict[Slot, Any]) -> bool:
    """Whether a value has a shape, no key more and none less; ``found`` gets what stands in its slots."""
    if isinstance(shape, Slot):
        found[shape] = value
        return True
    if not isinstance(shape, dict):
        return bool(shape == value)
    if not isinstance(value, dict) or shape.keys() != value.keys():
        return False
    return all(_fits(inner, value[key], found) for key, inner in shape.items())


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _from_json(text: str) -> Any:
    """Raises _NoCall for what JSON does not have, NaN say, or has twice."""
    try:
        return json.loads(text, parse_constant=_refused, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _NoCall from None


def _as_json(arguments: Mapping[str, Any]) -> str:
    """Raises _NoCall for numbers and characters that another reader could not take."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except ValueError:
        raise _NoCall from None
    return text


def _refused(constant: str) -> NoReturn:
    raise _NoCall


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise _NoCall
    return found
