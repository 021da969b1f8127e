"""Merges an adapter that answers; the merged model is shown to find the same answers likely, and answers itself."""

from __future__ import annotations

from typing import Any

from ftkit.console import Console
from ftkit.merge_language import Trained, merge_language
from ftkit.merging import Chooser, Unquantised, base_to_merge_into, unquantised
from ftkit.models.base import Loaded
from ftkit.models.hardware import Machine
from ftkit.models.placement import release
from ftkit.plan.chat import ChatPlan
from ftkit.proof import Afresh, Dialogues, FreshProcess, HeldOutRows
from ftkit.records import EvalReport, ModelScores
from ftkit.rundir import RunDir
from ftkit.sft.evaluate import Evaluation
from ftkit.sft.exam import Exam
from ftkit.sft.train import load_base, validator
from ftkit.tasks.rendering import as_message


def merge(
    plan: ChatPlan,
    run: RunDir,
    evaluation: Evaluation,
    *,
    machine: Machine,
    console: Console,
    process: FreshProcess,
) -> EvalReport:
    """Merges, and has a fresh process score and answer the test rows with the merged model; writes merge.json.

    Returns the report with the merged model beside the adapter. Raises NotProved where the merged model is not shown
    to be the adapter's; then there is no folder called merged.
    """
    exam = evaluation.exam
    rows = HeldOutRows(
        rows=[row.ids for row in exam.side.answers],
        labels=exam.labels,
        positions=evaluation.positions,
        pad_token_id=exam.chat.pad_token_id,
        objective="causal",
        dialogues=Dialogues(
            messages=[_messages(exam, number) for number in range(len(exam.side))],
            tools=[list(row.tools) for row in exam.side.rows],
            prompts=exam.prompts,
            max_new_tokens=exam.max_new_tokens if exam.generates else 0,
            limit=exam.limit,
            stop_ids=exam.chat.stop_ids,
        ),
    )

    def score(found: Afresh) -> ModelScores:
        return exam.result(found.scores, found.generated if exam.generates else None).scored.scores

    trained = _full_precision(plan, run, evaluation, machine)
    return merge_language(run, evaluation.report, trained, rows, score, console=console, process=process)


def _messages(exam: Exam, number: int) -> list[dict[str, Any]] | None:
    """What plain transformers must render a row's prompt from; None where the prompt was cut to fit."""
    row = exam.side.rows[number]
    if exam.chat.prompt(row.turns[:-1], row.tools) != exam.side.answers.prompt(number):
        return None
    return [as_message(turn) for turn in row.turns[:-1]]


def _full_precision(plan: ChatPlan, run: RunDir, evaluation: Evaluation, machine: Machine) -> Trained:
    """The adapter on an unquantised base, and its scores: what the merged model must equal."""
    chosen, measured, section = Unquantised(evaluation.model), evaluation.result.scores, plan.recipe.merging
    into, expected = base_to_merge_into(plan.adapter, section), measured
    if plan.adapter.quantize:

        def load(quantize: bool) -> Loaded:
            return load_base(plan, seed=plan.recipe.train.seed + 1, quantize=quantize, machine=machine)

        release(evaluation.model)  # the base in full precision needs its room
        chosen = unquantised(load, run.adapter, into, Chooser(validator(plan), plan.best_by, plan.lowest))
        expected = evaluation.exam.score(chosen.model, positions=evaluation.positions)
    return Trained(
        chosen=chosen,
        expected=expected,
        measured=measured,
        rescore=lambda model: evaluation.exam.score(model, positions=evaluation.positions),
        tokenizer=plan.chat.tokenizer,
        adapter=plan.adapter,
        files=plan.files,
        trust_remote_code=plan.base.trust_remote_code,
        tolerance=section.tolerance,
    )
