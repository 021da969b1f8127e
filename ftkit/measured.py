"""Runs after they were made: measured again on their own rows or on others, and compared with each other.

Nothing is written into a run: what it reported stays what it reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.data.columns import to_examples
from ftkit.data.section import Data
from ftkit.data.source import read_rows
from ftkit.data.splits import examples_sha256
from ftkit.errors import DataError, Problem, RecipeError, did_you_mean
from ftkit.evals.classification import Scored, compare, score_classification
from ftkit.evals.section import Average, Eval
from ftkit.evals.thresholds import apply_thresholds
from ftkit.files import read_json
from ftkit.measured_texts import compare_texts, evaluate_texts
from ftkit.models.hardware import Machine
from ftkit.predict import load_predictor
from ftkit.records import EvalReport, Example, Verdict
from ftkit.rundir import RunDir, task_of
from ftkit.tasks.classify import targets

if TYPE_CHECKING:
    from ftkit.evals.statistics import Floats

_LISTED = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """The test rows of a run and the adapter's probabilities on them [n, K], as predictions.jsonl has them."""

    report: dict[str, Any]
    examples: tuple[Example, ...]
    probabilities: Floats

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.report["labels"])


def read_measured(run: RunDir) -> Measured:
    """Reads eval.json and predictions.jsonl. Raises RecipeError where the run was not evaluated."""
    import numpy as np

    if not run.eval.exists() or not run.predictions.exists():
        fix = f"Go on with it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} was not evaluated", [Problem("", "RUN", fix)])
    with run.predictions.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    report = read_json(run.eval)
    examples = tuple(Example(row["id"], row["id"], row["input"], tuple(row["reference"])) for row in rows)
    found = np.array([[row["scores"][label] for label in report["labels"]] for row in rows])
    return Measured(report, examples, found)


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
    if tasks[names[0]] != "classify":
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
        name: _scored(first, each.probabilities, tuple(each.report["thresholds"])) for name, each in measured.items()
    }
    comparison = {f"{name}_vs_{names[0]}": compare(scored[name], scored[names[0]]) for name in names[1:]}
    return _report(first, scored, comparison)


def evaluate_again(run: RunDir, source: str | None, machine: Machine) -> tuple[EvalReport, float | None]:
    """The run's model, as ``predict`` uses it, on the rows of ``source`` or, for None, on its own test rows.

    For its own rows also the largest difference of a probability to the one that the run reported. Raises DataError for
    rows that cannot be read or have a label outside the run's set.
    """
    import numpy as np

    if task_of(run) != "classify":
        return evaluate_texts(run, source, machine), None
    before = read_measured(run)
    examples = before.examples if source is None else _examples(run, before, source)
    predictor = load_predictor(run, machine)
    answers = predictor.predict(example.text for example in examples)
    found = np.array([list(answer["scores"].values()) for answer in answers])
    now = Measured(before.report, examples, found)
    name = "merged" if run.merged.is_dir() else "adapter"
    report = _report(now, {name: _scored(now, found, predictor.thresholds)}, {}, split=source or "test")
    return report, None if source else float(np.abs(found - before.probabilities).max())


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
        Problem(example.where, "label", _outside(label, measured.labels))
        for example in examples
        for label in example.labels
        if label not in measured.labels
    ]
    if problems:
        raise DataError.in_file(source, problems[:_LISTED])
    return examples


def _outside(label: str, labels: Sequence[str]) -> str:
    hint = did_you_mean(label, labels)
    return " ".join(filter(None, (f"{label!r} is no label of the run ({', '.join(labels)}).", hint, "Correct it.")))


def _scored(measured: Measured, found: Floats, thresholds: tuple[float, ...]) -> Scored:
    report, multi_label = measured.report, bool(measured.report["multi_label"])
    average: Average = report["metrics_average"]
    return score_classification(
        targets(measured.examples, measured.labels, multi_label=multi_label),
        found,
        apply_thresholds(found, thresholds, multi_label=multi_label),
        measured.labels,
        multi_label=multi_label,
        settings=Eval(average=average),
        seed=int(report["seed"]),
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
