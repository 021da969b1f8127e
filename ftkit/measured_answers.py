"""Models that answer, after they were made: measured on other rows or again on their own, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.answer import chat_of, loader_of
from ftkit.console import Console
from ftkit.data.conversations import to_conversations
from ftkit.data.section import Data
from ftkit.data.source import read_rows
from ftkit.data.splits import Mapper, examples_sha256, make_splits
from ftkit.errors import DataError, MachineError, Problem, RecipeError
from ftkit.evals.answers import ScoredAnswers, compare_answers, score_answers
from ftkit.evals.section import Eval, MetricName
from ftkit.files import read_json
from ftkit.models.base import inference_mode
from ftkit.models.hardware import Machine
from ftkit.plan.chat import AnsweredSide, answered_side
from ftkit.provenance import recipe_of
from ftkit.records import Conversation, EvalReport, Verdict
from ftkit.rundir import RunDir, read_predictions
from ftkit.sft.exam import Exam, Result
from ftkit.tasks.section import Sft
from ftkit.trained import Trained, trained_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far rows measured again are from predictions.jsonl.

    ``largest``: of a probability, or of the nats of a right answer; ``answers``: how many generated ones are others.
    """

    largest: float
    answers: int | None = None


def evaluate_chats(
    run: RunDir, source: str | None, machine: Machine, console: Console
) -> tuple[EvalReport, Difference | None]:
    """The run's model, as it is used, and its base on the rows of ``source`` or, for None, on the run's own test rows.

    By the metrics of the run's recipe; the base is in 4 bits where the run's model is on such a one. For its own rows
    also how far they are from what the run reported. Raises RecipeError where these cannot be read again, DataError for
    rows that cannot be used.
    """
    trained = trained_by(run)
    exam = exam_of(trained, source)
    load = loader_of(trained, exam.chat, machine)
    base = load(trained.base(), trained.quantised).model
    inference_mode(base)
    baseline = _sit(exam, base, console, "the base")
    del base  # two models need not stand in memory at once
    ours = _sit(exam, trained.model(load, machine), console, "the trained model")
    scored = {"baseline": baseline.scored, trained.name: ours.scored}
    comparison = {f"{trained.name}_vs_baseline": compare_answers(ours.scored, baseline.scored)}
    report = _report(scored, comparison, source or "test", examples_sha256(exam.side.rows), exam.seed)
    return report, None if source else _difference(run, ours)


def exam_of(trained: Trained, source: str | None) -> Exam:
    """The rows of ``source``, or the run's own test rows, as its evaluation asked them.

    Raises RecipeError where its own rows cannot be read again, DataError for rows that cannot be used.
    """
    rows = _own_rows(trained) if source is None else _rows_of(trained, source)
    chat, data = chat_of(trained), trained.plan["data"]
    limit = data["lengths"]["positions"]
    side = answered_side(chat, trained.section("task", Sft), rows, limit)
    if source is None:
        _check_same(trained, side)
    settings, seed = trained.section("eval", Eval), int(trained.plan["seed"])
    return Exam(chat, side, limit, int(data["max_new_tokens"]), settings, seed)


def compare_chats(runs: Sequence[RunDir], names: Sequence[str]) -> EvalReport:
    """The adapters of several runs on the same rows, each compared with the first, by the metrics that all have.

    Where tokenizers cut the answers differently, perplexity is not compared. Raises RecipeError for a run that was not
    evaluated, DataError where they were not measured on the same rows.
    """
    rows = {name: read_predictions(run) for name, run in zip(names, runs, strict=True)}
    reports = {name: read_json(run.eval) for name, run in zip(names, runs, strict=True)}
    first = names[0]
    for name in names:
        if _asked(rows[name]) != _asked(rows[first]) or reports[name]["data_sha256"] != reports[first]["data_sha256"]:
            message = (
                f"{name} was measured on other rows or prompts than {first}. Measure both on one file: ftkit eval RUN."
            )
            raise DataError("the runs cannot be compared", [Problem("", name, message)])
    measured = [reports[name]["models"]["adapter"]["metrics"] for name in names]
    metrics = tuple(metric for metric in measured[0] if all(metric in other for other in measured))
    if not metrics:
        fix = "They have no metric in common. Measure both on one file: ftkit eval RUN."
        raise DataError("the runs cannot be compared", [Problem("", names[1], fix)])
    seed = int(reports[first]["seed"])
    scored = {name: _scored(own, metrics, seed) for name, own in rows.items()}
    comparison = {f"{name}_vs_{first}": compare_answers(scored[name], scored[first]) for name in names[1:]}
    return _report(scored, comparison, "test", str(reports[first]["data_sha256"]), seed)


def _asked(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    return [(row["id"], row["reference"]) for row in rows]


def _mapper(trained: Trained) -> Mapper:
    data: Data = trained.section("data", Data)
    task: Sft = trained.section("task", Sft)
    return lambda rows, shown: to_conversations(rows, shown, data, prompt=task.prompt, system=task.system)


def _rows_of(trained: Trained, source: str) -> tuple[Conversation, ...]:
    data: Data = trained.section("data", Data)
    rows = read_rows(source, Path.cwd(), quoting=data.quoting, hub_split="test")
    return _conversations(_mapper(trained)(rows, source).examples)


def _own_rows(trained: Trained) -> tuple[Conversation, ...]:
    """The run's test rows, read again from the sources of its recipe: predictions.jsonl has no turns."""
    plan = trained.plan
    folder = Path(recipe_of(plan["command"])).resolve().parent
    try:
        splits = make_splits(
            trained.section("data", Data), folder, _mapper(trained), seed=int(plan["seed"]), multi_label=False
        )
    except (DataError, MachineError) as error:
        raise _nothing(f"the run's own rows cannot be read again: {error.headline}") from error
    return _conversations(splits.test)


def _conversations(rows: Sequence[Any]) -> tuple[Conversation, ...]:
    return tuple(row for row in rows if isinstance(row, Conversation))


def _check_same(trained: Trained, side: AnsweredSide) -> None:
    if examples_sha256(side.rows) != trained.plan["data"]["sha256"]:
        raise _nothing("the run's own rows have changed since")


def _nothing(why: str) -> RecipeError:
    fix = f"{why[0].upper()}{why[1:]}. Name rows to measure on: --data FILE. The run's own figures: ftkit show."
    return RecipeError("nothing to measure on", [Problem("", "--data", fix)])


def _sit(exam: Exam, model: PreTrainedModel, console: Console, who: str) -> Result:
    with console.progress(f"scoring {who}", (2 if exam.generates else 1) * len(exam.side)) as advance:
        return exam.sit(model, advance=advance)


def _difference(run: RunDir, found: Result) -> Difference:
    before = read_predictions(run)
    largest = max(abs(row["nll"] - float(nll)) for row, nll in zip(before, found.scores.nll, strict=True))
    if found.texts is None:
        return Difference(largest)
    changed = sum(row["prediction"] != text for row, text in zip(before, found.texts, strict=True))
    return Difference(largest, changed)


def _scored(rows: Sequence[Row], metrics: tuple[MetricName, ...], seed: int) -> ScoredAnswers:
    import numpy as np

    answered = rows[0]["prediction"] is not None
    return score_answers(
        references=[row["reference"] for row in rows],
        predictions=[row["prediction"] for row in rows] if answered else None,
        ended=np.array([row["ended"] for row in rows]) if answered else None,
        nll=np.array([row["nll"] for row in rows]),
        tokens=np.array([row["tokens"] for row in rows]),
        bytes_=np.array([row["bytes"] for row in rows]),
        settings=Eval(metrics=metrics),
        seed=seed,
    )


def _report(
    scored: dict[str, ScoredAnswers], comparison: dict[str, Any], split: str, digest: str, seed: int
) -> EvalReport:
    return EvalReport(
        task="sft",
        split=split,
        n=len(next(iter(scored.values())).references),
        labels=(),
        multi_label=False,
        data_sha256=digest,
        metrics_average="",
        seed=seed,
        models={name: each.scores for name, each in scored.items()},
        comparison=comparison,
        gate=Verdict(passed=True),
    )
