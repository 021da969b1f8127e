"""``ftkit predict``."""

from __future__ import annotations

import csv
import json as jsonlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ftkit.console import Console
from ftkit.data.columns import find_column
from ftkit.data.source import read_rows
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.files import writing
from ftkit.models.hardware import inspect_machine, settle_environment
from ftkit.report import untrusted
from ftkit.rundir import RunDir, find_run, task_of

Row = dict[str, Any]


def predict_texts(
    run: str, texts: list[str], file: Path | None, out: Path | None, column: str | None, *, json: bool
) -> None:
    """Labels or continues texts from the command line, a file or stdin: JSON lines or CSV, in constant memory.

    Raises RecipeError for options that contradict each other, DataError for input that cannot be read.
    """
    warnings.simplefilter("ignore")
    if texts and file:
        raise RecipeError("two inputs", [Problem("", "--in", "Give --text or --in, not both.")])
    if out is not None and out.suffix not in (".jsonl", ".csv"):
        raise RecipeError(f"cannot write {out}", [Problem("", "--out", "Give a name that ends in .jsonl or .csv.")])
    found = find_run(run)
    # The first row is read before a model is loaded: a wrong file is told at once.
    source = iter(texts) if texts else _begun(_from_file(file, column)) if file else _from_stdin()
    settle_environment()
    from ftkit.models.base import quiet_libraries

    quiet_libraries()
    rows = _answers(found, source)
    if out is not None:
        _to_file(rows, out)
    else:
        _to_stdout(rows, Console(), as_json=json)


def _answers(run: RunDir, texts: Iterable[str]) -> Iterator[Row]:
    """What the run's model says to each text: labels with their scores, or how the text goes on."""
    if task_of(run) == "classify":
        from ftkit.predict import load_predictor

        return load_predictor(run, inspect_machine()).predict(texts)
    from ftkit.generate import load_generator

    return load_generator(run, inspect_machine()).predict(texts)


def _begun(texts: Iterator[str]) -> Iterator[str]:
    return chain(list(islice(texts, 1)), texts)


def _from_stdin() -> Iterator[str]:
    if sys.stdin.isatty():
        sys.stderr.write("Reading texts from the terminal, one a line; end with Ctrl-D.\n")
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError.in_file("standard input", [Problem(f"line {number}", "", "is not UTF-8.")]) from None
        if text.strip():
            yield text


def _from_file(file: Path, column: str | None) -> Iterator[str]:
    name = None
    for row in read_rows(str(file), Path.cwd(), quoting=None):
        name = name or find_column("text", list(row.values), column, shown=str(file))
        text = row.values.get(name)
        if not isinstance(text, str):
            message = f"holds no text. Columns here: {', '.join(row.values)}. Name one with --column."
            raise DataError.in_file(str(file), [Problem(row.where.position, name, message)])
        yield text


def _to_file(rows: Iterable[Row], out: Path) -> None:
    with writing(out) as file:
        write = _csv_writer(file) if out.suffix == ".csv" else _json_writer(file)
        for row in rows:
            write(row)


def _json_writer(file: Any) -> Callable[[Row], None]:
    return lambda row: file.write(jsonlib.dumps(row, ensure_ascii=False) + "\n")


def _csv_writer(file: Any) -> Callable[[Row], None]:
    writer = csv.writer(file, lineterminator="\n")
    begun = False

    def write(row: Row) -> None:
        nonlocal begun
        if not begun:
            writer.writerow(["input", "prediction", *row.get("scores", {})])
            begun = True
        answer = row["prediction"]
        said = answer if isinstance(answer, str) else "|".join(answer)
        writer.writerow([row["input"], said, *row.get("scores", {}).values()])

    return write


def _to_stdout(rows: Iterable[Row], console: Console, *, as_json: bool) -> None:
    for row in rows:
        if as_json:
            console.result(jsonlib.dumps(row, ensure_ascii=False))
            continue
        if "scores" not in row:
            console.result(untrusted.visible(row["prediction"]))
            continue
        best = ", ".join(row["prediction"]) or "(no label)"
        scores = "  ".join(f"{label} {share:.3f}" for label, share in row["scores"].items())
        console.result(f"{best:12} {scores}   {row['input']}")
