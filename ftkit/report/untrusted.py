"""Text that comes from data: what it would hide is shown, and what it would format is escaped.

A label or a file name may hold zero-width, bidirectional or control characters. A reader who checks must see them, and
they must not reorder the text around them.
"""

from __future__ import annotations

import re
import unicodedata

# Joiners hold emoji and some scripts together; the others are visible signs although Unicode calls them format.
_KEPT = frozenset("\n\t\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
_HIDING = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FENCE = re.compile(r"`{3,}")


def visible(text: str) -> str:
    """The text with every invisible character written as its code point: ⟨U+202E⟩."""
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def clip(text: str, length: int) -> tuple[str, str]:
    """The start of a text and the rest, cut at a space where there is one near."""
    if len(text) <= length:
        return text, ""
    space = text.rfind(" ", int(length * 0.8), length)
    at = space if space > 0 else length
    return text[:at], text[at:]


def markdown(text: str) -> str:
    """The text for use inside a line of Markdown, also in a table: it formats nothing and ends no line."""
    line = " ".join(visible(text).split())
    line = line.replace("&", "&amp;")
    line = _MARKDOWN.sub(lambda found: "\\" + found.group(), line)
    line = line.replace("\\<", "&lt;").replace("\\>", "&gt;")
    return "\\" + line if line[:1] in ("#", "-", "+", "=") else line


def fenced(text: str, language: str) -> str:
    """A Markdown code block that the text cannot close."""
    longest = max((len(run) for run in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def _shown(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDING:
        return character
    return f"⟨U+{ord(character):04X}⟩"
