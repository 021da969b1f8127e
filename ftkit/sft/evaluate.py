"""Base and adapter on the same test rows: how likely the answers are, what they answer themselves, and the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.checkpoints import check_reloaded
from ftkit.console import Console
from ftkit.data.splits import examples_sha256
from ftkit.evals.answers import ScoredAnswers, compare_answers
from ftkit.evals.gate import judge
from ftkit.files import write_json, write_jsonl
from ftkit.merging import spread
from ftkit.models.base import inference_mode, with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.plan.chat import ChatPlan
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir, read_log
from ftkit.sft.exam import Exam, Result
from ftkit.sft.plain import plain_scores
from ftkit.sft.train import exam_on, load_base
from ftkit.stopwatch import timed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The report, and what the merge needs: the model that was measured, and what it made of the test rows."""

    report: EvalReport
    exam: Exam
    model: PreTrainedModel
    result: Result
    positions: list[tuple[int, int]]


def evaluate(
    plan: ChatPlan, run: RunDir, seeds: Mapping[int, Path], *, machine: Machine, console: Console
) -> Evaluation:
    """Loads base and adapter from disk as a user would, and measures both.

    ``seeds``: the adapters of the same training with other seeds. Writes predictions.jsonl and eval.json. Raises
    NotProved where the adapter on disk is not the one that was trained.
    """
    seconds: dict[str, float] = {}
    exam = exam_on(plan, plan.sides["test"])
    answers = enumerate(exam.side.answers)
    positions = spread([(row, at - 1) for row, own in answers for at in range(own.answer, own.end)])
    # Another seed than training's: a module that was not saved would be random here, and show.
    base = load_base(plan, seed=plan.recipe.train.seed + 1, quantize=True, machine=machine).model
    inference_mode(base)
    with timed(seconds, "baseline"):
        baseline = _sit(exam, base, console, "the base")
        plain = plain_scores(exam, base)
    model = with_saved_adapter(base, run.adapter)
    inference_mode(model)
    with timed(seconds, "validation"):
        _check_reload(plan, run, model)
    with timed(seconds, "adapter"):
        adapter = _sit(exam, model, console, "the adapter", positions=positions)
    console.note("metrics, intervals and paired tests")
    others = {seed: _of_seed(plan, exam, folder, machine, console) for seed, folder in seeds.items()}
    report = _report(plan, baseline.scored, plain, adapter.scored, seconds, others)
    write_jsonl(run.predictions, _predictions(exam, baseline, adapter))
    write_json(run.eval, as_json(report))
    return Evaluation(report, exam, model, adapter, positions)


def _sit(
    exam: Exam, model: PreTrainedModel, console: Console, who: str, *, positions: Sequence[tuple[int, int]] = ()
) -> Result:
    what, passes = ("scoring and asking", 2) if exam.generates else ("scoring", 1)
    with console.progress(f"{what} {who}", passes * len(exam.side)) as advance:
        return exam.sit(model, positions=positions, advance=advance)


def _of_seed(plan: ChatPlan, exam: Exam, folder: Path, machine: Machine, console: Console) -> ScoredAnswers:
    base = load_base(plan, seed=plan.recipe.train.seed + 1, quantize=True, machine=machine).model
    model = with_saved_adapter(base, folder)
    inference_mode(model)
    return _sit(exam, model, console, f"the adapter in {folder.parent.name}").scored


def _check_reload(plan: ChatPlan, run: RunDir, model: PreTrainedModel) -> None:
    """The adapter on disk must score the validation rows as the trained model did when it was saved."""
    side = plan.sides["valid"]
    noted: list[Any] = [row["valid"] for row in read_log(run.train_log) if row.get("best")]
    if not len(side) or not noted:
        return
    before, exam = noted[-1]["loss"], exam_on(plan, side)
    now = float(exam.score(model).nll.sum() / exam.tokens)
    check_reloaded(model, run.adapter, "loss", before, now)


def _report(
    plan: ChatPlan,
    baseline: ScoredAnswers,
    plain: ScoredAnswers | None,
    adapter: ScoredAnswers,
    seconds: dict[str, float],
    others: dict[int, ScoredAnswers],
) -> EvalReport:
    against = compare_answers(adapter, baseline)
    rows = len(plan.sides["test"])
    models = {"baseline": baseline.scores, "adapter": adapter.scores}
    comparison = {"adapter_vs_baseline": against}
    if plain is not None:
        models = {"baseline_plain": plain.scores, **models}
        comparison["adapter_vs_baseline_plain"] = compare_answers(adapter, plain)
    return EvalReport(
        task=plan.task.type,
        split="test",
        n=rows,
        labels=(),
        multi_label=False,
        data_sha256=examples_sha256(plan.sides["test"].rows),
        metrics_average="",
        seed=plan.recipe.train.seed,
        models=models,
        comparison=comparison,
        gate=judge(plan.recipe.gate, adapter.scores, baseline.scores, against, n=rows),
        seconds=seconds,
        seeds={str(seed): dict(found.scores.metrics) for seed, found in others.items()},
    )


def _predictions(exam: Exam, baseline: Result, adapter: Result) -> Iterator[dict[str, Any]]:
    """A line for each test row: what was asked, what would be right, and what base and adapter make of it."""
    tokens, sizes = exam.side.answers.answer_tokens, exam.bytes
    for number, (row, rights) in enumerate(zip(exam.side.rows, exam.references, strict=True)):
        scores = _row_scores(adapter, number)
        exact = None if scores is None else scores.get("exact_match")
        yield {
            "id": row.id,
            "where": row.where,
            "input": row.text,
            "reference": list(rights),
            "prediction": None if adapter.texts is None else adapter.texts[number],
            "baseline": None if baseline.texts is None else baseline.texts[number],
            "ended": None if adapter.ended is None else adapter.ended[number],
            "baseline_ended": None if baseline.ended is None else baseline.ended[number],
            "tokens": int(tokens[number]),
            "bytes": int(sizes[number]),
            "nll": float(adapter.scores.nll[number]),
            "baseline_nll": float(baseline.scores.nll[number]),
            "scores": scores,
            "baseline_scores": _row_scores(baseline, number),
            "correct": None if exact is None else exact == 1.0,
        }


def _row_scores(result: Result, row: int) -> dict[str, float] | None:
    return {name: float(values[row]) for name, values in result.scored.rows.items()} or None
