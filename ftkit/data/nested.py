"""Rows that hold several questions: the articles of SQuAD's own JSON, and the instances of self-instruct."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ftkit.data.cells import short
from ftkit.data.rows import Place, RawRow
from ftkit.data.turns import RowError


class Item(NamedTuple):
    """What becomes one conversation: a row, or one part of it ("#2"). ``wrong``: why the row has no parts."""

    where: Place
    part: str
    values: Mapping[str, Any]
    wrong: RowError | None = None


def items(rows: Iterable[RawRow], columns: Sequence[str]) -> Iterator[Item]:
    """The rows, or their parts where the source is of a nested form. ``columns``: those of the source."""
    parts_of: Callable[[Mapping[str, Any]], list[dict[str, Any]]] | None = None
    if "paragraphs" in columns:
        parts_of = _questions
    elif "instances" in columns and "instruction" in columns:
        parts_of = _instances
    for row in rows:
        if parts_of is None:
            yield Item(row.where, "", row.values)
            continue
        try:
            parts = parts_of(row.values)
        except RowError as error:
            yield Item(row.where, "", row.values, error)
            continue
        for number, values in enumerate(parts, 1):
            yield Item(row.where, f"#{number}" if len(parts) > 1 else "", values)


def _questions(article: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The questions of an article, each with the context of its paragraph."""
    column = "paragraphs"
    above = {name: value for name, value in article.items() if name != column}
    found = []
    for paragraph in _objects(article.get(column), column):
        own = {name: value for name, value in paragraph.items() if name != "qas"}
        found += [{**above, **own, **question} for question in _objects(paragraph.get("qas"), column, "qas")]
    return found


def _instances(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    column = "instances"
    above = {name: value for name, value in task.items() if name != column}
    instances = _objects(task.get(column), column)
    if not instances:
        raise RowError(column, "is empty. Write an instance with input and output, or remove the row.")
    return [{**above, **instance} for instance in instances]


def _objects(value: Any, column: str, key: str = "") -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RowError(column, f"{f'{key} is' if key else 'got'} {short(value)}. Write a list of objects.")
    return value
