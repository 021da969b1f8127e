"""Merges an adapter into the full-precision base; the result gets its name only when it is proved to be the same."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.classify.evaluate import Evaluation, scored_on, validator
from ftkit.classify.prepare import labels_document, load_base
from ftkit.classify.reader import Reader, WordsReader
from ftkit.console import Console
from ftkit.errors import NotProved
from ftkit.evals.classification import Scored
from ftkit.files import sha256_files, write_json, writing_folder
from ftkit.merging import (
    EVERY,
    Chooser,
    Unquantised,
    against_quantised,
    apart,
    base_to_merge_into,
    holds,
    margin,
    rounding_alone,
    shortfalls,
    stored_dtype,
    tolerance,
    unquantised,
    write_merged,
)
from ftkit.models.base import Loaded
from ftkit.models.hardware import Machine, peak_rss_mb
from ftkit.models.placement import Placement, placement_of, release
from ftkit.plan.labelled import LabelledPlan
from ftkit.proof import FreshProcess
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir
from ftkit.tasks.classify import probabilities, targets

if TYPE_CHECKING:
    from ftkit.evals.statistics import Floats


def merge(
    plan: LabelledPlan,
    reader: Reader,
    run: RunDir,
    evaluation: Evaluation,
    *,
    machine: Machine,
    console: Console,
    process: FreshProcess,
) -> EvalReport:
    """Merges, has a fresh process score the merged model on the test rows, and writes merge.json.

    Returns the report with the merged model beside the adapter. Raises NotProved where the merged model is not shown
    to be the adapter's; then there is no folder called merged.
    """
    started = time.perf_counter()
    chosen, expected = _full_precision(plan, reader, run, evaluation, machine)
    dtype, placement = stored_dtype(plan.files), placement_of(chosen.model)
    with writing_folder(run.merged) as folder:
        how = write_merged(chosen, run.adapter, plan.files, reader.tokenizer, folder)
        seconds = time.perf_counter() - started
        rounding = rounding_alone(
            chosen,
            how,
            placement,
            lambda model: _differences(plan, expected, reader.score(model, evaluation.rows), lead=EVERY),
        )
        release(chosen.model)
        console.note(f"a fresh process scores the merged model from disk, in {placement}")
        found, peak = _scored_afresh(plan, reader, run, evaluation, folder, process, placement)
        scored = _scored(plan, evaluation, found)
        stored = str(dtype).removeprefix("torch.")
        document = _document(plan, run, evaluation, expected, found, scored, stored, placement, rounding)
        if plan.adapter.quantize:
            document |= _against_quantised(plan, evaluation, chosen, found, scored, document["metric"])
        document |= {
            "merge": how,
            "peak_rss_mb": max(peak_rss_mb(), peak),
            "seconds": round(seconds, 3),
            "bytes_read": sum(path.stat().st_size for path in plan.files.weights()),
            "bytes_written": sum(path.stat().st_size for path in folder.iterdir()),
        }
        if not document["passed"]:
            write_json(run.merge, document)
            raise NotProved("the merged model is not shown to be the trained one", shortfalls(document))
        write_json(folder / "labels.json", labels_document(plan, reader, evaluation.report.thresholds))
    write_json(run.merge, document)
    report = replace(evaluation.report, models={**evaluation.report.models, "merged": scored.scores})
    write_json(run.eval, as_json(report))
    return report


def _full_precision(
    plan: LabelledPlan, reader: Reader, run: RunDir, evaluation: Evaluation, machine: Machine
) -> tuple[Unquantised, Floats]:
    """An unquantised base with the adapter, and its logits on the test rows: what the merged model must equal."""
    into = base_to_merge_into(plan.adapter, plan.recipe.merging)
    if not plan.adapter.quantize:
        return Unquantised(evaluation.model), evaluation.logits

    def load(quantize: bool) -> Loaded:
        return load_base(plan, reader, seed=plan.recipe.train.seed + 1, quantize=quantize, machine=machine)

    chooser = Chooser(validator(plan, reader), plan.best_by, plan.lowest)
    release(evaluation.model)  # the base in full precision needs its room
    chosen = unquantised(load, run.adapter, into, chooser)
    return chosen, reader.score(chosen.model, evaluation.rows)


def _scored_afresh(
    plan: LabelledPlan,
    reader: Reader,
    run: RunDir,
    evaluation: Evaluation,
    folder: Path,
    process: FreshProcess,
    placement: Placement,
) -> tuple[Floats, int]:
    """The merged model's scores of the test rows from a fresh process, and the most memory that it held, in MiB."""
    how: dict[str, Any] = {"placement": placement, "trust_remote_code": plan.base.trust_remote_code}
    if not isinstance(reader, WordsReader):
        return process.logits(folder, run.predictions, **how)
    pad = reader.chat.pad_token_id
    return process.label_scores(folder, evaluation.rows, reader.answers(), pad_token_id=pad, **how)


def _scored(plan: LabelledPlan, evaluation: Evaluation, logits: Floats) -> Scored:
    multi_label = plan.task.multi_label
    references = targets(plan.splits.test, plan.labels, multi_label=multi_label)
    return scored_on(plan, references, probabilities(logits, multi_label=multi_label), evaluation.report.thresholds)


def _document(
    plan: LabelledPlan,
    run: RunDir,
    evaluation: Evaluation,
    expected: Floats,
    found: Floats,
    scored: Scored,
    dtype: str,
    placement: Placement,
    rounding: dict[str, float] | None,
) -> dict[str, Any]:
    """merge.json but for time and memory. The logits are compared with the full-precision base plus adapter."""
    allowed = tolerance(dtype, plan.recipe.merging.tolerance, rounding, len(found))
    differences = _differences(plan, expected, found, lead=margin(dtype, placement.dtype))
    before = evaluation.report.models["adapter"].metrics
    after = scored.scores.metrics
    # Free answers are not asked for again: what is measured of them stands for the adapter alone.
    named = "f1" if before.get("f1") is not None else next(name for name in before if name in after)
    fall = (before[named] or 0.0) - (after[named] or 0.0)
    # Against quantised weights only a fall counts: full-precision weights may well score better.
    metric_diff = fall if plan.adapter.quantize else abs(fall)
    return {
        "method": plan.adapter.type,
        "dtype": dtype,
        "computed": str(placement),
        **({"rounding": rounding} if rounding else {}),
        **differences,
        "metric": named,
        "metric_diff": metric_diff,
        "tolerance": allowed,
        "passed": holds({**differences, "metric_diff": metric_diff}, allowed),
        "rows": len(found),
        "base_sha256": plan.files.sha256(),
        "adapter_sha256": sha256_files(sorted(run.adapter.glob("*.safetensors"))),
    }


def _against_quantised(
    plan: LabelledPlan, evaluation: Evaluation, chosen: Unquantised, found: Floats, scored: Scored, metric: str
) -> dict[str, Any]:
    differences = _differences(plan, evaluation.logits, found, lead=EVERY)
    before = evaluation.report.models["adapter"].metrics[metric]
    return against_quantised(chosen, differences, metric, before, scored.scores.metrics[metric])


def _differences(plan: LabelledPlan, expected: Floats, found: Floats, *, lead: float) -> dict[str, float]:
    """The largest logit difference, and the share of rows with the same answer where it leads by more than ``lead``."""
    import numpy as np

    if plan.task.multi_label:
        clear, same = np.abs(expected) > lead, (expected > 0) == (found > 0)
    else:
        ordered = np.sort(expected, axis=1)
        clear, same = ordered[:, -1] - ordered[:, -2] > lead, expected.argmax(1) == found.argmax(1)
    return {
        **apart(expected, found),
        "argmax_agreement": float(same[clear].mean()) if clear.any() else 1.0,
    }
