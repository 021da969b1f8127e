"""Which column is the text and which the label; and raw rows to examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from ftkit.data.cells import listed, no_text, no_unicode, scalar, short
from ftkit.data.rows import RawRow, data_error, problem_in
from ftkit.data.section import Data
from ftkit.errors import DataError, Problem, did_you_mean
from ftkit.records import Decision, Example

Role = Literal["text", "label"]
Row = TypeVar("Row")

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
            raise missing_column(f"data.columns.{role}", given, available, shown)
        return given
    found = [name for name in available if name.lower() in KNOWN[role]]
    if len(found) == 1:
        return found[0]
    if found:
        message = f"several columns could hold the {role}: {', '.join(found)}. "
    else:
        message = f"no column is named {either(KNOWN[role])}. Columns here: {listed(available)}. "
    example = found[0] if found else "COLUMN"
    message += f"Write data.columns: {{{role}: {example}}}."
    raise data_error(shown, [Problem("", f"data.columns.{role}", message)])


def to_examples(rows: Iterable[RawRow], shown: str, data: Data, *, multi_label: bool) -> Mapped:
    """Rows to examples. A row whose text is empty is dropped, and its place kept to be reported.

    Raises one DataError for all rows with a text that is no text, a label that is missing or cannot be one, or a
    missing group; and where no row is left.
    """
    peeked, rows = peek(rows)
    available = list(dict.fromkeys(name for row in peeked for name in row.values))
    text = find_column("text", available, data.columns.text, shown=shown)
    label = find_column("label", available, data.columns.label, shown=shown)
    if data.group is not None and data.group not in available:
        raise missing_column("data.group", data.group, available, shown)
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
            return problem_in(row.where, self.shown, self.text, wrong)
        if text is None or not text.strip():
            return None
        labels = self._labels(row)
        if isinstance(labels, str):
            return problem_in(row.where, self.shown, self.label, labels)
        group = None
        if self.group is not None:
            group, wrong = scalar(row.values.get(self.group), "group")
            if wrong:
                return problem_in(row.where, self.shown, self.group, wrong)
        where = row.where
        return Example(f"{PurePath(where.file).name}:{where.number}", str(where), text, labels, group)

    def _wrong_text(self, row: RawRow, text: Any) -> str:
        if text is None:
            return "" if self.text in row.values else f"is missing. Keys of this row: {listed(list(row.values))}."
        if not isinstance(text, str):
            return no_text(text)
        return no_unicode(text)

    def _labels(self, row: RawRow) -> tuple[str, ...] | str:
        """The labels of a row, or what is wrong with them."""
        value = row.values.get(self.label)
        if not self.multi_label:
            if isinstance(value, list):
                return f"got the list {short(value)}. Write one label, or set task.multi_label: true."
            label, wrong = scalar(value, "label")
            return wrong or (label,)
        if value is None:
            return ()
        items = value if isinstance(value, list) else value.split(self.separator) if isinstance(value, str) else [value]
        labels: dict[str, None] = {}
        for item in items:
            if isinstance(item, str) and not item.strip():
                continue
            label, wrong = scalar(item, "label")
            if wrong:
                return wrong
            labels[label.strip()] = None
        return tuple(labels)


def peek(rows: Iterable[Row]) -> tuple[list[Row], Iterator[Row]]:
    """The first hundred rows, and all of them."""
    remaining = iter(rows)
    peeked = list(islice(remaining, _PEEKED))
    return peeked, chain(peeked, remaining)


def missing_column(key: str, given: str, available: Sequence[str], shown: str) -> DataError:
    """The error for a column that ``key`` of the recipe names and the source does not have."""
    hint = did_you_mean(given, available)
    message = f"no column is named {given}. {hint + ' ' if hint else ''}Columns here: {listed(available)}."
    return data_error(shown, [Problem("", key, message)])


def either(names: Sequence[str]) -> str:
    """a, b or c."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
