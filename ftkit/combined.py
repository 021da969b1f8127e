"""A model made of several runs' adapters, measured on each run's own test rows beside that run's own model.

Language models only: pretraining, answers, and classification by words. The heads of other classifiers differ, so their
adapters cannot be combined in the first place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.evals.answers import ScoredAnswers, compare_answers
from ftkit.evals.classification import Scored, compare
from ftkit.evals.language import ScoredWindows, compare_language
from ftkit.files import read_json
from ftkit.ladder.scoring import AnsweredRows, LabelledRows, Outcome, Rows, Windows, own_rows
from ftkit.models.base import inference_mode, with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.records import Comparison
from ftkit.rundir import RunDir, read_predictions, task_of
from ftkit.trained import Trained, trained_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one run's test rows. ``baseline``: as the run reported it; ``difference``: combined minus own.

    The difference and its 95% interval by the paired bootstrap on the same rows; None where there is none.
    """

    run: str
    task: str
    n: int
    metric: str
    baseline: float | None
    own: float | None
    combined: float | None
    difference: float | None
    ci95: tuple[float, float] | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class RunRows:
    """A run whose model is part of a combination, with its test rows."""

    trained: Trained
    rows: Rows


def read_rows(runs: Sequence[RunDir]) -> list[RunRows]:
    """The test rows of each run, before anything is combined.

    Raises RecipeError for a run whose model cannot be measured within a combination, or that was not evaluated,
    DataError where its rows are not what they were.
    """
    found = []
    for run in runs:
        read_predictions(run)
        trained = trained_by(run)
        if not run.adapter.is_dir():
            fix = "It was trained from scratch. Give runs with adapters on one base."
            raise RecipeError(f"{run.folder} has no adapter", [Problem("", "RUN", fix)])
        if task_of(run) == "classify" and read_json(trained.folder / "labels.json").get("words") is None:
            fix = "It has a head of its own, which no sum can share. Give runs with task.words, or of language models."
            raise RecipeError(f"{run.folder} cannot be combined", [Problem("", "RUN", fix)])
        try:
            found.append(RunRows(trained, own_rows(trained)))
        except RecipeError as error:
            fix = "They are gone or have changed since it was trained. Put them back as they were."
            raise DataError("a run's own rows cannot be read again", [Problem("", str(run.folder), fix)]) from error
    return found


def evaluate_combined(runs: Sequence[RunRows], folder: Path, machine: Machine, console: Console) -> list[Line]:
    """Scores the rows of each run by its own model and by the one in ``folder``: merged weights, or an adapter.

    One model is in memory at a time. Raises TrainingFailed where a score is not finite.
    """
    found: list[Line] = []
    for run in runs:
        console.stage(f"measuring on the test rows of {run.trained.run.folder}")
        own, combined = _both(run, folder, machine, console)
        found += _lines(run.trained.run, own, combined)
    return found


def as_document(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The table as JSON."""
    return [asdict(line) for line in lines]


def _lines(run: RunDir, own: Outcome, combined: Outcome) -> Iterator[Line]:
    report, compared = read_json(run.eval), {item.metric: item for item in _compared(combined, own)}
    before = report["models"].get("baseline", {}).get("metrics", {})
    for metric, value in own.scores.metrics.items():
        item = compared.get(metric)
        yield Line(
            run=str(run.folder),
            task=str(report["task"]),
            n=own.scored.draws[0],
            metric=metric,
            baseline=before.get(metric),
            own=value,
            combined=combined.scores.metrics[metric],
            difference=item.difference if item else None,
            ci95=item.ci95 if item else None,
            p_value=item.p_value if item else None,
        )


def _both(run: RunRows, folder: Path, machine: Machine, console: Console) -> tuple[Outcome, Outcome]:
    """What the run's own model and the combined one make of its test rows."""
    trained, rows = run.trained, run.rows

    def score(model: Any, who: str) -> Outcome:
        with console.progress(f"scoring {who}", rows.steps) as advance:
            return rows.score(model, advance)

    own = score(rows.load(trained, machine), "the run's own model")
    return own, score(_model(trained, rows, folder, machine), "the combined model")


def _model(trained: Trained, rows: Rows, folder: Path, machine: Machine) -> PreTrainedModel:
    """The combined model, loaded as the run's own is: a merged one, or its base with the combined adapter."""
    tokenizer, objective = _tokenizer(rows), trained.plan["recipe"]["task"].get("objective", "causal")
    pad = int(str(tokenizer.pad_token_id))
    load = trained.language_loader(objective, pad_token_id=pad, vocab=len(tokenizer), machine=machine)
    if not (folder / "adapter_config.json").exists():
        return replace(trained, folder=folder).model(load, machine)
    model = with_saved_adapter(load(trained.base(), False).model, folder)
    model.to(machine.device)
    inference_mode(model)
    return model


def _tokenizer(rows: Rows) -> PreTrainedTokenizerBase:
    if isinstance(rows, AnsweredRows):
        return rows.exam.chat.tokenizer
    if isinstance(rows, LabelledRows):
        return rows.reader.tokenizer
    assert isinstance(rows, Windows)
    return rows.tokenizer


def _compared(combined: Outcome, own: Outcome) -> tuple[Comparison, ...]:
    match combined.scored, own.scored:
        case Scored() as first, Scored() as second:
            return compare(first, second)
        case ScoredAnswers() as first, ScoredAnswers() as second:
            return compare_answers(first, second)
        case ScoredWindows() as first, ScoredWindows() as second:
            return compare_language(first, second)
    raise TypeError(f"{type(combined.scored)} and {type(own.scored)} are not of the same rows")
