"""A row as it stands in a file, before anything is known of its columns; and how text files are opened."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from ftkit.data.zstd import open_zstd
from ftkit.errors import DataError, Problem

LISTED = 10  # rows that a message names before it only counts
_BOM = b"\xef\xbb\xbf"
_BINARY = {
    b"PAR1": "a Parquet file. Give it the suffix .parquet.",
    b"PK\x03\x04": "a zip archive or an Excel workbook. Save the table as CSV in UTF-8.",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. Save the table as CSV in UTF-8.",
    b"\x1f\x8b": "compressed with gzip. Add .gz to its name.",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Add .zst to its name.",
    b"\xff\xfe": "text in UTF-16. Save it as UTF-8.",
    b"\xfe\xff": "text in UTF-16. Save it as UTF-8.",
}


class Place(NamedTuple):
    """Where a row stands: ``file`` as the user wrote it, and a line or row number counted from 1."""

    file: str
    unit: Literal["line", "row"]
    number: int

    @property
    def position(self) -> str:
        """The place inside its file: "line 17"."""
        return f"{self.unit} {self.number}"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


class RawRow(NamedTuple):
    """One row: the values by column, as the format gives them (text in CSV; any JSON value in JSON and Parquet)."""

    where: Place
    values: Mapping[str, Any]


def data_error(source: str, problems: Sequence[Problem]) -> DataError:
    """One error for all problems of a source: the first ten are listed, the rest counted."""
    headline = DataError.in_file(source, problems).headline
    more = len(problems) - LISTED
    rest = [Problem("", "", f"and {more:,} more.")] if more > 0 else []
    return DataError(headline, [*problems[:LISTED], *rest])


def problem_in(where: Place, shown: str, column: str, message: str, *, part: str = "") -> Problem:
    """What is wrong with a column of one row, or of one part of it ("#2"), in the source ``shown``."""
    # In a folder the headline names the folder, so each row names its file.
    position = f"{where.position}{part}"
    return Problem(position if where.file == shown else f"{where.file} {position}", column, message)


def text_lines(path: Path, shown: str, *, may_be_empty: bool = False) -> Iterator[str]:
    """The lines of a UTF-8 file, plain, .gz or .zst, with their line ends; a byte order mark is removed.

    Raises DataError for an empty file (unless it may be), a file that is no text, a byte that is not UTF-8 (with its
    line) and a file that cannot be read.
    """
    # Decoded line by line, not by the io layer, which could not say on which line a bad byte stands.
    with opened(path, shown, may_be_empty=may_be_empty) as file:
        for number, raw in enumerate(file, 1):
            yield _decoded(raw.removeprefix(_BOM) if number == 1 else raw, shown, number)


def whole_text(path: Path, shown: str) -> str:
    """The text of a UTF-8 file, plain, .gz or .zst; raises as ``text_lines`` does."""
    return "".join(text_lines(path, shown))


@contextmanager
def opened(path: Path, shown: str, *, may_be_empty: bool = False) -> Iterator[BufferedReader]:
    """Opens a file, plain, .gz or .zst, for its bytes.

    Raises DataError where it is empty (unless it may be), binary or cannot be read, and MachineError for .zst without
    zstandard.
    """
    try:
        with _unpacked(path, shown) as file:
            head = file.peek(4096)[:4096]
            if head or not may_be_empty:
                _refuse_binary(head, shown)
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise data_error(
            shown, [Problem("", "", f"cannot be read: {reason.rstrip('.')}. Give a whole file that may be read.")]
        ) from error


def _unpacked(path: Path, shown: str) -> BufferedReader:
    match path.suffix.lower():
        case ".gz":
            return cast(BufferedReader, gzip.open(path, "rb"))
        case ".zst":
            return open_zstd(path, shown)
    return path.open("rb")


def _refuse_binary(head: bytes, shown: str) -> None:
    if not head:
        raise data_error(shown, [Problem("", "", "the file is empty. Give a file with at least one row.")])
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise data_error(shown, [Problem("", "", f"this is {what}")])
    if b"\0" in head:
        message = f"byte {head.index(0) + 1} is zero, so this is no text. Give a text file in UTF-8."
        raise data_error(shown, [Problem("", "", message)])


def _decoded(raw: bytes, shown: str, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = (
            f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8. "
            "Save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8."
        )
        raise data_error(shown, [Problem(f"line {number}", "", message)]) from error
