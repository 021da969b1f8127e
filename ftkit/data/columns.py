"""Which column is the text and which the label; and raw rows to examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, Literal

from ftkit.data.rows import LISTED, RawRow, data_error
from ftkit.data.section import Data
from ftkit.errors import DataError, Problem, did_you_mean
from ftkit.records import Decision, Example

Role = Literal["text", "label"]

KNOWN: Mapping[Role, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "document", "body", "comment", "tweet"),
    "label": ("label", "labels", "class", "category", "sentiment", "target", "intent"),
}
_PEEKED = 100  # rows of JSON need not have the same keys: the columns are those of the first hundred


@dataclass(frozen=True, slots=True)
class Mapped:
    """The examples of one source, the places of the rows dropped for an empty text, and the columns chosen by name."""

    examples: tuple[Example, ...]
    dropped: tuple[str, ...]
    decisions: tuple[Decision, ...]


def find_column(role: Role, available: Sequence[str], given: str | None, *, shown: str) -> str:
    """The column for a role: the one given, or the only one with a well-known name (in any case).

    Raises DataError, naming what is there and what was expected, where the given one is missing, or where none or
    several have a well-known name.
    """
    if given is not None:
        if given not in available:
            raise _missing_column(f"data.columns.{role}", given, available, shown)
        return given
    found = [name for name in available if name.lower() in KNOWN[role]]
    if len(found) == 1:
        return found[0]
    if found:
        message = f"several columns could hold the {role}: {', '.join(found)}. "
    else:
        message = f"no column is named {_either(KNOWN[role])}. Columns here: {_listed(available)}. "
    example = found[0] if found else "COLUMN"
    message += f"Write data.columns: {{{role}: {example}}}."
    raise data_error(shown, [Problem("", f"data.columns.{role}", message)])


def to_examples(rows: Iterable[RawRow], shown: str, data: Data, *, multi_label: bool) -> Mapped:
    """Rows to examples. A row whose text is empty is dropped, and its place kept to be reported.

    Raises one DataError for all rows with a text that is no text, a label that is missing or cannot be one, or a
    missing group; and where no row is left.
    """
    peeked, rows = _peek(rows)
    available = list(dict.fromkeys(name for row in peeked for name in row.values))
    text = find_column("text", available, data.columns.text, shown=shown)
    label = find_column("label", available, data.columns.label, shown=shown)
    if data.group is not None and data.group not in available:
        raise _missing_column("data.group", data.group, available, shown)
    mapper = _Mapper(shown, text, label, data.group, multi_label, data.label_separator)
    examples: list[Example] = []
    dropped: list[str] = []
    problems: list[Problem] = []
    for row in rows:
        result = mapper.example(row)
        if isinstance(result, Example):
            examples.append(result)
        elif result is None:
            dropped.append(str(row.where))
        else:
            problems.append(result)
    if problems:
        raise data_error(shown, problems)
    if not examples:
        message = f"the text is empty in all {len(dropped):,} rows. Name another column in data.columns."
        raise data_error(shown, [Problem("", text, message)])
    chosen: tuple[tuple[Role, str, str | None], ...] = (
        ("text", text, data.columns.text),
        ("label", label, data.columns.label),
    )
    decisions = tuple(
        Decision(f"data.columns.{role}", name, f"the only column of {shown} with a known name for the {role}")
        for role, name, given in chosen
        if given is None
    )
    return Mapped(tuple(examples), tuple(dropped), decisions)


@dataclass(frozen=True, slots=True)
class _Mapper:
    shown: str
    text: str
    label: str
    group: str | None
    multi_label: bool
    separator: str

    def example(self, row: RawRow) -> Example | Problem | None:
        """The row as an example, what is wrong with it, or None where its text is empty."""
        text = row.values.get(self.text)
        wrong = self._wrong_text(row, text)
        if wrong:
            return self._problem(row, self.text, wrong)
        if text is None or not text.strip():
            return None
        labels = self._labels(row)
        if isinstance(labels, str):
            return self._problem(row, self.label, labels)
        group = None
        if self.group is not None:
            group, wrong = _scalar(row.values.get(self.group), "group")
            if wrong:
                return self._problem(row, self.group, wrong)
        where = row.where
        return Example(f"{PurePath(where.file).name}:{where.number}", str(where), text, labels, group)

    def _wrong_text(self, row: RawRow, text: Any) -> str:
        if text is None:
            return "" if self.text in row.values else f"is missing. Keys of this row: {_listed(list(row.values))}."
        if not isinstance(text, str):
            return f"got {_short(text)}, which is no text. Write it in quotes, or name another column."
        return _no_unicode(text)

    def _labels(self, row: RawRow) -> tuple[str, ...] | str:
        """The labels of a row, or what is wrong with them."""
        value = row.values.get(self.label)
        if not self.multi_label:
            if isinstance(value, list):
                return f"got the list {_short(value)}. Write one label, or set task.multi_label: true."
            label, wrong = _scalar(value, "label")
            return wrong or (label,)
        if value is None:
            return ()
        items = value if isinstance(value, list) else value.split(self.separator) if isinstance(value, str) else [value]
        labels: dict[str, None] = {}
        for item in items:
            if isinstance(item, str) and not item.strip():
                continue
            label, wrong = _scalar(item, "label")
            if wrong:
                return wrong
            labels[label.strip()] = None
        return tuple(labels)

    def _problem(self, row: RawRow, column: str, message: str) -> Problem:
        # In a folder the headline names the folder, so each row names its file.
        where = row.where
        same = where.file == self.shown
        return Problem(where.position if same else f"{where.file} {where.position}", column, message)


def _scalar(value: Any, what: str) -> tuple[str, str]:
    """A label or group as text, and what is wrong with it."""
    if isinstance(value, str):
        if not value.strip():
            return "", f"the {what} is empty. Write it, or remove the row."
        return value, _no_unicode(value)
    if isinstance(value, bool):
        return ("true" if value else "false"), ""
    if isinstance(value, int):
        return str(value), ""
    if value is None:
        return "", f"the {what} is missing. Write it, or remove the row."
    return "", f"got {_short(value)}. A {what} is a text, a whole number, true or false."


def _no_unicode(text: str) -> str:
    # JSON can hold half of a surrogate pair ("\ud83d"), which no UTF-8 file and no tokenizer takes.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"character {error.start + 1} is half of a surrogate pair. Remove it, or write the whole character."
    return ""


def _peek(rows: Iterable[RawRow]) -> tuple[list[RawRow], Iterator[RawRow]]:
    remaining = iter(rows)
    peeked = list(islice(remaining, _PEEKED))
    return peeked, chain(peeked, remaining)


def _missing_column(key: str, given: str, available: Sequence[str], shown: str) -> DataError:
    hint = did_you_mean(given, available)
    message = f"no column is named {given}. {hint + ' ' if hint else ''}Columns here: {_listed(available)}."
    return data_error(shown, [Problem("", key, message)])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
