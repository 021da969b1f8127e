"""Rows of text files: a whole file, its lines or its paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ftkit.data.rows import Place, RawRow, text_lines

Split = Literal["document", "line", "paragraph"]


def read_text(path: Path, shown: str, split: Split, label: str | None) -> Iterator[RawRow]:
    """The rows of a UTF-8 file, plain, .gz or .zst, each with the line it begins on; a label is added where given.

    document: one row, without the line ends at its end; line: a row for each line that is not blank; paragraph: a row
    for each block between blank lines. Lines and paragraphs are streamed. Line ends become \\n.
    An empty file is a document with an empty text: dropped and counted with the others, not an error of its own.
    Raises DataError as ``text_lines`` does.
    """
    lines = (_plain_end(line) for line in text_lines(path, shown, may_be_empty=True))
    match split:
        case "document":
            texts = iter([(1, "".join(lines).rstrip("\n"))])
        case "line":
            texts = ((number, line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip())
        case "paragraph":
            texts = _paragraphs(lines)
    for number, text in texts:
        yield RawRow(Place(shown, "line", number), {"text": text} if label is None else {"text": text, "label": label})


def _plain_end(line: str) -> str:
    return line[:-2] + "\n" if line.endswith("\r\n") else line


def _paragraphs(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    start = 1
    for number, line in enumerate(lines, 1):
        if line.strip():
            block.append(line)
            continue
        if block:
            yield start, "".join(block).rstrip("\n")
            block = []
        start = number + 1
    if block:
        yield start, "".join(block).rstrip("\n")
