"""Rows of CSV and TSV files, streamed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ftkit.data.rows import Place, RawRow, data_error, text_lines
from ftkit.errors import Problem

_LARGEST_FIELD = 2**31 - 1  # the csv module's own limit is 131,072 characters; a C long bounds it on Windows
_NAMES = {",": "comma", "\t": "tab"}


def read_delimited(path: Path, shown: str, *, delimiter: str, quoting: Literal["minimal", "none"]) -> Iterator[RawRow]:
    """The rows below the header, each with the line it begins on. Blank lines are skipped.

    Raises DataError with the line for a row of another width than the header, broken quotes, a header with a name
    twice, and a file without rows. After the first bad row the rest of the file is only checked.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    problems: list[Problem] = []
    records = _records(path, shown, delimiter, quoting, problems)
    _, first = next(records, (0, []))
    header = _header(first, shown, delimiter)
    kept = [(index, name) for index, name in enumerate(header) if name]
    rows = 0
    for rows, (line, fields) in enumerate(records, 1):  # noqa: B007 (counted for the check below)
        if len(fields) != len(header):
            problems.append(_ragged(line, len(fields), header, delimiter, quoting))
        elif not problems:
            yield RawRow(Place(shown, "line", line), {name: fields[index] for index, name in kept})
    if problems:
        raise data_error(shown, problems)
    if not rows:
        raise data_error(shown, [Problem("", "", "there is a header and no row below it. Add rows.")])


def _records(
    path: Path, shown: str, delimiter: str, quoting: Literal["minimal", "none"], problems: list[Problem]
) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the number of the line it begins on."""
    # strict: without it a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(
        text_lines(path, shown),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            problems.append(Problem(f"line {line}", "", _broken(str(error))))
            raise data_error(shown, problems) from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _broken(reason: str) -> str:
    if "new-line character" in reason:
        return "a carriage return stands inside a field. Save the file with line ends \\n or \\r\\n."
    if "unexpected end" in reason:
        return 'a quoted field is never closed. Close it, write " inside it as "", or set data.quoting: none.'
    if "expected after" in reason:
        return 'text follows a closing quote. Write a quote inside a quoted field as "", or set data.quoting: none.'
    return f"{reason}."


def _header(fields: list[str], shown: str, delimiter: str) -> list[str]:
    # A column without a name (an index that pandas wrote, Excel's trailing commas) cannot be asked for: left out.
    header = [name.strip() for name in fields]
    if not any(header):
        raise data_error(shown, [Problem("", "", "there is no header. The first line names the columns.")])
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        message = f"the header names a column twice: {', '.join(twice)}. Rename or remove one."
        raise data_error(shown, [Problem("line 1", "", message)])
    other = next((sign for sign in (";", "\t", ",") if sign != delimiter and sign in header[0]), None)
    if len(header) == 1 and other:
        name = _NAMES.get(other, "semicolon")
        suffix = {"\t": "Name the file .tsv.", ",": "Name the file .csv."}.get(other, "Save it with commas.")
        message = f"the columns are separated by a {name}, where a {_NAMES[delimiter]} is expected. {suffix}"
        raise data_error(shown, [Problem("line 1", "", message)])
    return header


def _ragged(line: int, found: int, header: list[str], delimiter: str, quoting: str) -> Problem:
    sign = _NAMES[delimiter]
    if found < len(header):
        fix = "Add what is missing."
    elif quoting == "none":
        fix = f"Remove the {sign} inside a field, or quote the field and set data.quoting: minimal."
    else:
        fix = f'Put the field that holds a {sign} in quotes (").'
    names = ", ".join(header[:6]) + (", …" if len(header) > 6 else "")
    fields = f"{found} field{'' if found == 1 else 's'}"
    return Problem(f"line {line}", "", f"{fields} where the header has {len(header)} ({names}). {fix}")
