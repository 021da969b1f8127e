"""Merges the adapter of a language model; the merged model must find the test texts as likely as the adapter does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ftkit.console import Console
from ftkit.merge_language import Trained, merge_language
from ftkit.merging import Chooser, Unquantised, base_to_merge_into, unquantised
from ftkit.models.adapters import Adapter
from ftkit.models.base import Loaded
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.models.placement import release
from ftkit.plan.text import TextPlan
from ftkit.pretrain.evaluate import Evaluation, scored_on
from ftkit.pretrain.prepare import Prepared, load_base
from ftkit.pretrain.train import validator
from ftkit.proof import Afresh, FreshProcess, HeldOutRows
from ftkit.records import EvalReport, ModelScores
from ftkit.rundir import RunDir
from ftkit.tasks.heldout import score_held_out
from ftkit.tasks.language import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(
    plan: TextPlan,
    prepared: Prepared,
    run: RunDir,
    evaluation: Evaluation,
    *,
    adapter: Adapter,
    files: BaseFiles,
    machine: Machine,
    console: Console,
    process: FreshProcess,
) -> EvalReport:
    """Merges, has a fresh process score the merged model on the test windows, and writes merge.json.

    Returns the report with the merged model beside the adapter. Raises NotProved where the merged model is not shown
    to be the adapter's; then there is no folder called merged.
    """
    pad = prepared.pad_token_id

    def rescore(model: PreTrainedModel) -> Scores:
        return score_held_out(model, prepared.test, pad_token_id=pad, positions=evaluation.positions)

    chosen, expected = _full_precision(plan, prepared, run, evaluation, adapter, machine, rescore)
    trained = Trained(
        chosen=chosen,
        expected=expected,
        measured=evaluation.scores,
        rescore=rescore,
        tokenizer=prepared.tokenizer,
        adapter=adapter,
        files=files,
        trust_remote_code=bool(getattr(plan.base, "trust_remote_code", False)),
        tolerance=plan.recipe.merging.tolerance,
    )
    rows = HeldOutRows(
        rows=prepared.test.rows if prepared.test.hidden is None else prepared.test.hidden,
        positions=evaluation.positions,
        pad_token_id=pad,
        objective=plan.task.objective,
    )

    def score(found: Afresh) -> ModelScores:
        return scored_on(plan, prepared, found.scores.nll).scores

    return merge_language(run, evaluation.report, trained, rows, score, console=console, process=process)


def _full_precision(
    plan: TextPlan,
    prepared: Prepared,
    run: RunDir,
    evaluation: Evaluation,
    adapter: Adapter,
    machine: Machine,
    rescore: Callable[[PreTrainedModel], Scores],
) -> tuple[Unquantised, Scores]:
    """An unquantised base with the adapter, and its scores: what the merged model must equal."""
    into = base_to_merge_into(adapter, plan.recipe.merging)
    if not adapter.quantize:
        return Unquantised(evaluation.model), evaluation.scores

    def load(quantize: bool) -> Loaded:
        seed = plan.recipe.train.seed + 1
        return load_base(plan, seed=seed, quantize=quantize, machine=machine, tokenizer=prepared.tokenizer)

    validate = validator(prepared, prepared.valid) if len(prepared.valid) else None
    release(evaluation.model)  # the base in full precision needs its room
    chosen = unquantised(load, run.adapter, into, Chooser(validate, plan.best_by, lowest=True))
    return chosen, rescore(chosen.model)
