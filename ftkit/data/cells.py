"""What a single value of a row may be, and how it is shown where it may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.data.rows import LISTED


def scalar(value: Any, what: str) -> tuple[str, str]:
    """A label or group as text, and what is wrong with it."""
    if isinstance(value, str):
        if not value.strip():
            return "", f"the {what} is empty. Write it, or remove the row."
        return value, no_unicode(value)
    if isinstance(value, bool):
        return ("true" if value else "false"), ""
    if isinstance(value, int):
        return str(value), ""
    if value is None:
        return "", f"the {what} is missing. Write it, or remove the row."
    return "", f"got {short(value)}. A {what} is a text, a whole number, true or false."


def no_text(value: Any) -> str:
    """What is wrong with a value that should be a text."""
    return f"got {short(value)}, which is no text. Write it in quotes, or name another column."


def no_unicode(text: str) -> str:
    """What is wrong with a text that no UTF-8 file and no tokenizer takes; empty where it is right."""
    # JSON can hold half of a surrogate pair ("\ud83d").
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"character {error.start + 1} is half of a surrogate pair. Remove it, or write the whole character."
    return ""


def listed(names: Sequence[str]) -> str:
    """The first ten names."""
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def short(value: Any) -> str:
    """The beginning of a value as Python writes it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
