"""Texts on which tokenizers differ, by what makes them differ."""

# ruff: noqa: RUF001 - letters of many scripts are what these texts are for

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

# What a group of texts is called in a note.
NAMES = {
    "plain": "text that begins without a mark",
    "marks": "text around marks",
    "spaced": "white space at the start of a text",
    "decomposed": "letters with combining marks",
}
_PIECES = (
    "Hello world", "hello", "I'm sure you've it, they'll DON'T we'd", "3.14159 and 2024-11-25", "1234567",
    "a1b22c333", "x = y+1;  // why?", "def f(a, b):\n    return a  +  b\n", "tabs\tand\t\tmore",
    "line\nline\n\nline\n\n\nline", "\r\nwindows\r\n\r\nlines\r", "trailing  ", "trailing\n", "trailing \n ",
    "two  spaces   three    four", "a  12   34", "(brackets) [and] {others}",
    "\"quotes\" 'single' “curly” ‘single’", "e-mail@example.org https://example.org/?q=1#x",
    "naïve café façade Ærø Straße", "Привет, мир! Ёж", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم ١٢٣",
    "你好，世界。", "こんにちは世界 カタカナ", "안녕하세요 세계", "สวัสดีชาวโลก", "नमस्ते दुनिया",
    "🙂 👩\u200d👩\u200d👧 🇩🇪 emoji🙂s",
    "½ ² ⅷ ① 10⁻³ ㎏ ﬁ", "…—–•·°€£¥", "zero\u200bwidth\u00a0nbsp\u3000ideographic", "UPPER lower MiXeD cAsE",
    "snake_case camelCase kebab-case", "!!! ??? ... --- ===", "'s 't 're", "a'b'c", "😀😀😀😀", "\u0001\u007f",
    "ЀЁ'S can'T", "100,000.00$", "#include <x>\n", "{\"key\": [1, 2.5, null], \"other\": \"value\"}",
    "The quick brown fox jumps over the lazy dog.", "<tag attr='1'/>",
)  # fmt: skip
_SPACED = (" Hello", "  Hello", "\n Hello", " ", "   ", " 1", " \n")
_DECOMPOSED = (
    "cafe\u0301 noe\u0308l",
    "e\u0301",
    "\u1112\u1161\u11ab",
    "A\u030angstro\u0308m, a\u0301!",
    "2\u0301x\u0301",
)
# What moves the border of a piece.
_AROUND = ("{}", "a{}a", "1{}1", ".{}.", "x {} y", "\n{}\n", "  {}  ", "’{}’", "\t{}\r\n")


def probes(described: Mapping[str, Any], *, every_token: bool) -> dict[str, list[str]]:
    """The texts by group, for the tokenizer that a tokenizer.json describes.

    ``every_token``: also each token that is text, between neighbours of every class of characters.
    """
    groups = {"plain": [*_PIECES, *(f"{one} {other}" for one, other in itertools.pairwise(_PIECES))]}
    marks = [token["content"] for token in described["added_tokens"]][:8]
    groups["marks"] = [
        text
        for mark, piece in itertools.product(marks, ("Hello", "user\nHi there", "1", "\nnext"))
        for text in (mark + piece, f"{mark}{piece}{mark}\n{mark}{piece}")
    ]
    groups["spaced"] = list(_SPACED)
    groups["decomposed"] = list(_DECOMPOSED)
    if every_token:
        words = _words(described)
        groups["plain"] += [pattern.format(word) for word in words for pattern in _AROUND]
        groups["decomposed"] += [f"a\u0301{word}\u0301b" for word in words]
    return groups


def _words(described: Mapping[str, Any]) -> list[str]:
    """The tokens that are text of more than one character."""
    from tokenizers import decoders

    decoder = decoders.ByteLevel()
    special = {token["content"] for token in described["added_tokens"]}
    words = [decoder.decode([token]) for token in described["model"]["vocab"] if token not in special]
    return [word for word in words if len(word) > 1 and "\ufffd" not in word]
