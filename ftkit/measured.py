"""Runs after they were made: measured again on their own rows or on others, and compared with each other.

Nothing is written into a run: what it reported stays what it reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.classify.free import free_answers
from ftkit.classify.reader import WordsReader
from ftkit.console import Console
from ftkit.data.columns import to_examples
from ftkit.data.section import Data
from ftkit.data.source import read_rows
from ftkit.data.splits import examples_sha256
from ftkit.errors import DataError, Problem, RecipeError, did_you_mean
from ftkit.evals.classification import Scored, compare, score_classification
from ftkit.evals.section import Average, Eval
from ftkit.evals.thresholds import apply_thresholds
from ftkit.files import read_json
from ftkit.measured_answers import Difference, compare_chats, evaluate_chats
from ftkit.measured_texts import compare_texts, evaluate_texts
from ftkit.models.hardware import Machine
from ftkit.predict import Predictor, load_predictor
from ftkit.records import EvalReport, Example, Verdict
from ftkit.rundir import RunDir, read_predictions, task_of
from ftkit.tasks.classify import targets
from ftkit.tasks.words import label_named

if TYPE_CHECKING:
    from ftkit.evals.statistics import Bools, Floats

_LISTED = 10
_QUIET = Console(quiet=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """The test rows of a run and the adapter's probabilities on them [n, K], as predictions.jsonl has them.

    ``outside`` [n]: whether what a decoder wrote freely is no label; None of a head, which does not write.
    """

    report: dict[str, Any]
    examples: tuple[Example, ...]
    probabilities: Floats
    outside: Bools | None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.report["labels"])


def read_measured(run: RunDir) -> Measured:
    """Reads eval.json and predictions.jsonl. Raises RecipeError where the run was not evaluated."""
    import numpy as np

    rows = read_predictions(run)
    report = read_json(run.eval)
    examples = tuple(Example(row["id"], row["id"], row["input"], tuple(row["reference"])) for row in rows)
    found = np.array([[row["scores"][label] for label in report["labels"]] for row in rows])
    outside = None
    if "said" in rows[0]:
        words = list(read_json(run.plan)["data"]["words"].values())
        outside = np.array([label_named(row["said"], words) is None for row in rows])
    return Measured(report, examples, found, outside)


def compare_runs(runs: Sequence[RunDir]) -> EvalReport:
    """The adapters of several runs on the same rows, each compared with the first.

    Raises RecipeError for fewer than two runs, DataError where they were not measured on the same rows and labels.
    """
    if len(runs) < 2:
        raise RecipeError("one run alone", [Problem("", "RUN", "Give two runs or more.")])
    names = _names(runs)
    tasks = {name: _task_measured(run) for name, run in zip(names, runs, strict=True)}
    for name, task in tasks.items():
        if task != tasks[names[0]]:
            message = f"its task is {task}, that of {names[0]} is {tasks[names[0]]}. Give runs of one task."
            raise DataError("the runs cannot be compared", [Problem("", name, message)])
    if tasks[names[0]] == "sft":
        return compare_chats(runs, names)
    if tasks[names[0]] == "pretrain":
        return compare_texts(runs, names)
    measured = {name: read_measured(run) for name, run in zip(names, runs, strict=True)}
    first = measured[names[0]]
    for name, other in measured.items():
        if (other.examples, other.labels) != (first.examples, first.labels):
            message = (
                f"{name} was measured on other rows or labels than {names[0]}. Measure both on one: ftkit eval RUN."
            )
            raise DataError("the runs cannot be compared", [Problem("", name, message)])
    scored = {
        name: _scored(
            replace(first, probabilities=each.probabilities, outside=each.outside), tuple(each.report["thresholds"])
        )
        for name, each in measured.items()
    }
    comparison = {f"{name}_vs_{names[0]}": compare(scored[name], scored[names[0]]) for name in names[1:]}
    return _report(first, scored, comparison)


def evaluate_again(
    run: RunDir, source: str | None, machine: Machine, console: Console = _QUIET
) -> tuple[EvalReport, Difference | None]:
    """The run's model, as ``predict`` uses it, on the rows of ``source`` or, for None, on its own test rows.

    For its own rows also how far it is from what the run reported. Raises DataError for rows that cannot be read or
    have a label outside the run's set.
    """
    import numpy as np

    task = task_of(run)
    if task == "sft":
        return evaluate_chats(run, source, machine, console)
    if task == "pretrain":
        return evaluate_texts(run, source, machine), None
    before = read_measured(run)
    examples = before.examples if source is None else _examples(run, before, source)
    predictor = load_predictor(run, machine)
    answers = predictor.predict(example.text for example in examples)
    found = np.array([list(answer["scores"].values()) for answer in answers])
    name = "merged" if run.merged.is_dir() else "adapter"
    now = replace(before, examples=examples, probabilities=found, outside=_outside(predictor, examples, console))
    scored = _scored(now, predictor.thresholds)
    report = _report(now, {name: scored}, {}, split=source or "test")
    return report, None if source else Difference(float(np.abs(found - before.probabilities).max()))


def _outside(predictor: Predictor, examples: Sequence[Example], console: Console) -> Bools | None:
    """Whether what a decoder writes freely to each text is no label [n]; None for a head, which does not write."""
    if not isinstance(predictor.reader, WordsReader):
        return None
    prompts = predictor.reader.rows([example.text for example in examples])
    says = free_answers(predictor.reader, predictor.model, prompts, console, "the model")
    return None if says is None else says.outside


def _task_measured(run: RunDir) -> str:
    if not run.eval.exists():
        read_measured(run)  # says what is missing
    return str(read_json(run.eval)["task"])


def _names(runs: Sequence[RunDir]) -> list[str]:
    names = [f"{run.folder.resolve().parent.name}/{run.folder.resolve().name}" for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError("the same run twice", [Problem("", twice, "Give each run once.")])
    return names


def _examples(run: RunDir, measured: Measured, source: str) -> tuple[Example, ...]:
    """The labelled rows of a source, by the columns of the run's recipe."""
    data = Data.model_validate_json(json.dumps(read_json(run.plan)["recipe"]["data"]))
    multi_label = bool(measured.report["multi_label"])
    rows = read_rows(source, Path.cwd(), quoting=data.quoting, hub_split="test")
    examples = to_examples(rows, source, data, multi_label=multi_label).examples
    problems = [
        Problem(example.where, "label", _stranger(label, measured.labels))
        for example in examples
        for label in example.labels
        if label not in measured.labels
    ]
    if problems:
        raise DataError.in_file(source, problems[:_LISTED])
    return examples


def _stranger(label: str, labels: Sequence[str]) -> str:
    hint = did_you_mean(label, labels)
    return " ".join(filter(None, (f"{label!r} is no label of the run ({', '.join(labels)}).", hint, "Correct it.")))


def _scored(measured: Measured, thresholds: tuple[float, ...]) -> Scored:
    report, found, multi_label = measured.report, measured.probabilities, bool(measured.report["multi_label"])
    average: Average = report["metrics_average"]
    return score_classification(
        targets(measured.examples, measured.labels, multi_label=multi_label),
        found,
        apply_thresholds(found, thresholds, multi_label=multi_label),
        measured.labels,
        multi_label=multi_label,
        settings=Eval(average=average),
        seed=int(report["seed"]),
        outside=measured.outside,
    )


def _report(
    measured: Measured, scored: dict[str, Scored], comparison: dict[str, Any], split: str = "test"
) -> EvalReport:
    return EvalReport(
        task=str(measured.report["task"]),
        split=split,
        n=len(measured.examples),
        labels=measured.labels,
        multi_label=bool(measured.report["multi_label"]),
        data_sha256=examples_sha256(measured.examples),
        metrics_average=str(measured.report["metrics_average"]),
        seed=int(measured.report["seed"]),
        models={name: each.scores for name, each in scored.items()},
        comparison=comparison,
        gate=Verdict(passed=True),
    )
