"""What the checks found that does not stop a run: a warning or a note, with the rows it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from ftkit.data.rows import LISTED


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. ``code`` names its kind for programs; ``rows``: the first places, ten at most."""

    level: Literal["warning", "note"]
    code: str
    message: str
    rows: tuple[str, ...] = ()


def first_rows(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(islice(places, LISTED))


def counted(number: int, what: str) -> str:
    """A number with its noun: 1 row, 2,000 rows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
