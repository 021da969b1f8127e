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
from ftkit.data.conversations import to_prompts
from ftkit.data.section import Columns, Data
from ftkit.data.source import read_rows
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.files import writing
from ftkit.models.hardware import settle_environment, settle_machine
from ftkit.records import Prompt, Turn
from ftkit.report import untrusted
from ftkit.rundir import RunDir, find_run, task_of
from ftkit.tasks.section import Sft
from ftkit.trained import Trained, trained_by

Row = dict[str, Any]
Placed = tuple[str, str]
"""A text, behind where it stands."""


def predict_texts(
    run: str, texts: list[str], file: Path | None, out: Path | None, column: str | None, *, json: bool
) -> None:
    """Labels, continues or answers texts from the command line, a file or stdin, in constant memory.

    Written as JSON lines or CSV.

    Raises RecipeError for options that contradict each other, DataError for input that cannot be read.
    """
    warnings.simplefilter("ignore")
    if texts and file:
        raise RecipeError("two inputs", [Problem("", "--in", "Give --text or --in, not both.")])
    if out is not None and out.suffix not in (".jsonl", ".csv"):
        raise RecipeError(f"cannot write {out}", [Problem("", "--out", "Give a name that ends in .jsonl or .csv.")])
    found = find_run(run)
    task = task_of(found)
    given = ((f"--text {number}", text) for number, text in enumerate(texts, 1)) if texts else _from_stdin()
    settle_environment()
    # The first row is read before a model is loaded: a wrong file is told at once.
    if task == "sft":
        trained = trained_by(found)
        rows = _answered(trained, _begun(_prompts(trained, file, column) if file else _asked(trained, given)))
    else:
        source = _begun(_from_file(file, column)) if file else (text for _, text in given)
        rows = _read(found, task, source)
    if out is not None:
        _to_file(rows, out)
    else:
        _to_stdout(rows, Console(), as_json=json)


def _read(run: RunDir, task: str, texts: Iterable[str]) -> Iterator[Row]:
    """What the run's model makes of each text: labels with their scores, or how the text goes on."""
    _quiet()
    if task == "classify":
        from ftkit.predict import load_predictor

        return load_predictor(run, settle_machine()).predict(texts)
    from ftkit.generate import load_generator

    return load_generator(run, settle_machine()).predict(texts)


def _answered(trained: Trained, prompts: Iterable[Prompt]) -> Iterator[Row]:
    """What the run's model answers to each prompt."""
    _quiet()
    from ftkit.answer import load_answerer

    return load_answerer(trained, settle_machine()).predict(prompts)


def _quiet() -> None:
    from ftkit.models.base import quiet_libraries

    quiet_libraries()


def _prompts(trained: Trained, file: Path, column: str | None) -> Iterator[Prompt]:
    """The prompts of a file in the form of the training rows, or of its ``column``, which holds all that is said."""
    data: Data = trained.section("data", Data)
    task: Sft = trained.section("task", Sft)
    rows = read_rows(str(file), Path.cwd(), quoting=data.quoting)
    if column is None:
        return to_prompts(rows, str(file), data.columns, prompt=task.prompt, system=task.system)
    _say_whole(task)
    return to_prompts(rows, str(file), Columns(prompt=column), prompt=None, system=task.system)


def _asked(trained: Trained, texts: Iterable[Placed]) -> Iterator[Prompt]:
    """Each text as what the user says, behind the recipe's system turn."""
    task: Sft = trained.section("task", Sft)
    _say_whole(task)
    system = () if task.system is None else (Turn("system", task.system),)
    for where, text in texts:
        yield Prompt(where, text, (*system, Turn("user", text)))


def _say_whole(task: Sft) -> None:
    if task.prompt is not None:
        sys.stderr.write(f"Each text is all that the user says: task.prompt ({task.prompt!r}) is not put around it.\n")


def _begun(rows: Iterator[Any]) -> Iterator[Any]:
    return chain(list(islice(rows, 1)), rows)


def _from_stdin() -> Iterator[Placed]:
    if sys.stdin.isatty():
        sys.stderr.write("Reading texts from the terminal, one a line; end with Ctrl-D.\n")
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError.in_file("standard input", [Problem(f"line {number}", "", "is not UTF-8.")]) from None
        if text.strip():
            yield f"standard input line {number}", text


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
            writer.writerow([name for name in row if name != "scores"] + [*row.get("scores", {})])
            begun = True
        answer = row["prediction"]
        said = answer if isinstance(answer, str) else "|".join(answer)
        more = [str(row["ended"]).lower()] if "ended" in row else [*row.get("scores", {}).values()]
        writer.writerow([row["input"], said, *more])

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
