"""Rows of JSON and JSON Lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftkit.data.rows import Place, RawRow, data_error, text_lines, whole_text
from ftkit.errors import Problem


def read_jsonl(path: Path, shown: str) -> Iterator[RawRow]:
    """One object a line, streamed; blank lines are skipped.

    Raises DataError with the line where a line is no JSON or no object, and where there is no row at all. After the
    first bad line the rest of the file is only checked.
    """
    problems: list[Problem] = []
    rows = 0
    for number, line in enumerate(text_lines(path, shown), 1):
        if not line.strip():
            continue
        rows += 1
        value, wrong = _parsed(line.rstrip())
        wrong = wrong or _no_object(value)
        if wrong:
            problems.append(Problem(f"line {number}", "", wrong))
        elif not problems:
            yield RawRow(Place(shown, "line", number), value)
    if problems:
        raise data_error(shown, problems)
    if not rows:
        raise data_error(shown, [Problem("", "", "there is no row in it. Write one JSON object a line.")])


def read_json(path: Path, shown: str) -> Iterator[RawRow]:
    """A list of objects, or an object whose ``data`` is one. Read as a whole; rows are counted from 1.

    Raises DataError where the file is no JSON (with the line), holds something else, or holds no row.
    """
    for number, value in enumerate(_json_list(path, shown), 1):
        yield RawRow(Place(shown, "row", number), value)


def _json_list(path: Path, shown: str) -> list[dict[str, Any]]:
    text = whole_text(path, shown)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One object a line is JSON Lines: name the file .jsonl." if error.msg == "Extra data" else ""
        message = f"not JSON: {error.msg} at column {error.colno}.{hint}"
        raise data_error(shown, [Problem(f"line {error.lineno}", "", message)]) from error
    except (ValueError, RecursionError) as error:
        raise data_error(shown, [Problem("", "", f"not readable as JSON: {error}.")]) from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        what = "an object without a list named data" if isinstance(value, dict) else _kind(value)
        message = f'this is {what}. Write [{{…}}, {{…}}] or {{"data": [{{…}}, {{…}}]}}.'
        raise data_error(shown, [Problem("", "", message)])
    if not rows:
        raise data_error(shown, [Problem("", "", "the list is empty. Add rows.")])
    problems = [Problem(f"row {number}", "", wrong) for number, row in enumerate(rows, 1) if (wrong := _no_object(row))]
    if problems:
        raise data_error(shown, problems)
    return rows


def _parsed(line: str) -> tuple[Any, str]:
    try:
        return json.loads(line), ""
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at column {error.colno}. Write one object a line."
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested without end
        return None, f"not readable as JSON: {error}."


def _no_object(value: Any) -> str:
    if isinstance(value, dict):
        return ""
    return f'this is {_kind(value)}, not an object. Write {{"text": …, "label": …}}.'


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(value), "no list")
