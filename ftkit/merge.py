"""Merges an adapter into the full-precision base; the result gets its name only when it is proved to be the same."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import NotProved, Problem
from ftkit.evals.classification import Scored
from ftkit.evaluate_run import Evaluation, load_base, scored_on
from ftkit.files import sha256_files, write_json, writing_folder
from ftkit.models.base import inference_mode, with_saved_adapter
from ftkit.models.hardware import Machine, peak_rss_mb
from ftkit.plan import Plan
from ftkit.proof import FreshProcess
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir
from ftkit.tasks.classify import encode, probabilities, score, targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats

# Largest |logit difference| and least agreement of the most probable label, by the merged weights' dtype.
_FLOAT32 = {"max_abs_logit_diff": 1e-3, "argmax_agreement": 1.0, "metric_diff": 0.005}
_ROUNDED = {"argmax_agreement": 0.995, "metric_diff": 0.005}


def merge(
    plan: Plan, run: RunDir, evaluation: Evaluation, *, machine: Machine, console: Console, process: FreshProcess
) -> EvalReport:
    """Merges, has a fresh process score the merged model on the test rows, and writes merge.json.

    Returns the report with the merged model beside the adapter. Raises NotProved where the merged model is not shown
    to be the adapter's; then there is no folder called merged.
    """
    started = time.perf_counter()
    model, expected = _full_precision(plan, run, evaluation, machine)
    dtype = _stored_dtype(plan)
    with writing_folder(run.merged) as folder:
        merged = model.merge_and_unload(safe_merge=True)
        merged.to("cpu", dtype=dtype)
        merged.config.dtype = dtype
        merged.save_pretrained(folder)
        evaluation.tokenizer.save_pretrained(folder)
        seconds = time.perf_counter() - started
        logits_file = folder / "logits.npy"
        console.note("a fresh process scores the merged model from disk")
        trusted = plan.recipe.base.trust_remote_code
        result = process.logits(folder, run.predictions, logits_file, trust_remote_code=trusted)
        found = _load_and_forget(logits_file)
        scored = _scored(plan, evaluation, found)
        document = _document(plan, run, evaluation, expected, found, scored, str(dtype).removeprefix("torch."))
        document |= {
            "peak_rss_mb": max(peak_rss_mb(), int(result["peak_rss_mb"])),
            "seconds": round(seconds, 3),
            "bytes_read": sum(path.stat().st_size for path in plan.files.weights()),
            "bytes_written": sum(path.stat().st_size for path in folder.iterdir()),
        }
        if not document["passed"]:
            write_json(run.merge, document)
            raise NotProved("the merged model is not shown to be the trained one", _shortfalls(document))
        write_json(folder / "labels.json", plan.labels_document(evaluation.report.thresholds))
    write_json(run.merge, document)
    report = replace(evaluation.report, models={**evaluation.report.models, "merged": scored.scores})
    write_json(run.eval, as_json(report))
    return report


def _full_precision(
    plan: Plan, run: RunDir, evaluation: Evaluation, machine: Machine
) -> tuple[PreTrainedModel, Floats]:
    """The unquantised base with the adapter, and its logits on the test rows: what the merged model must equal."""
    if not plan.recipe.adapter.quantize:
        return evaluation.model, evaluation.logits
    classifier, tokenizer = load_base(plan, seed=plan.recipe.train.seed + 1, quantize=False, machine=machine)
    model = with_saved_adapter(classifier.model, run.adapter)
    inference_mode(model)
    rows = encode(tokenizer, [example.text for example in plan.splits.test], plan.max_length)
    return model, score(model, rows, pad_token_id=tokenizer.pad_token_id)


def _stored_dtype(plan: Plan) -> torch.dtype:
    """The number format of the base's weights on disk."""
    import torch
    from safetensors import safe_open

    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(plan.files.weights()[0], framework="pt") as file:
        found = {file.get_slice(name).get_dtype() for name in file.keys()}
    return next((kinds[name] for name in ("BF16", "F16", "F32") if name in found), torch.float32)


def _load_and_forget(path: Path) -> Floats:
    import numpy as np

    found: Floats = np.load(path)
    path.unlink()
    return found


def _scored(plan: Plan, evaluation: Evaluation, logits: Floats) -> Scored:
    multi_label = plan.recipe.task.multi_label
    references = targets(plan.splits.test, plan.labels, multi_label=multi_label)
    return scored_on(plan, references, probabilities(logits, multi_label=multi_label), evaluation.report.thresholds)


def _document(
    plan: Plan, run: RunDir, evaluation: Evaluation, expected: Floats, found: Floats, scored: Scored, dtype: str
) -> dict[str, Any]:
    """merge.json but for time and memory. The logits are compared with the full-precision base plus adapter."""
    tolerance = _FLOAT32 if dtype == "float32" else _ROUNDED
    differences = _differences(plan, expected, found, margin=2e-3 if dtype == "float32" else 0.0)
    before = evaluation.report.models["adapter"].metrics
    after = scored.scores.metrics
    named = "f1" if before.get("f1") is not None else next(iter(before))
    fall = (before[named] or 0.0) - (after[named] or 0.0)
    quantised = plan.recipe.adapter.quantize is not None
    # Against quantised weights only a fall counts: full-precision weights may well score better.
    metric_diff = fall if quantised else abs(fall)
    passed = (
        differences["max_abs_logit_diff"] <= tolerance.get("max_abs_logit_diff", float("inf"))
        and differences["argmax_agreement"] >= tolerance["argmax_agreement"]
        and metric_diff <= tolerance["metric_diff"]
    )
    return {
        "method": plan.recipe.adapter.type,
        "dtype": dtype,
        **differences,
        "metric": named,
        "metric_diff": metric_diff,
        "tolerance": tolerance,
        "passed": passed,
        "rows": len(found),
        "base_sha256": plan.files.sha256(),
        "adapter_sha256": sha256_files(sorted(run.adapter.glob("*.safetensors"))),
        **({"quantised": _differences(plan, evaluation.logits, found, margin=0.0)} if quantised else {}),
    }


def _differences(plan: Plan, expected: Floats, found: Floats, *, margin: float) -> dict[str, float]:
    """The largest logit difference, and the share of rows with the same answer where it is clear by ``margin``."""
    import numpy as np

    if plan.recipe.task.multi_label:
        clear = np.abs(expected) > margin
        same = ((expected > 0) == (found > 0))[clear]
    else:
        ordered = np.sort(expected, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > margin
        same = (expected.argmax(1) == found.argmax(1))[clear]
    return {
        "max_abs_logit_diff": float(np.abs(expected - found).max()),
        "argmax_agreement": float(same.mean()) if same.size else 1.0,
    }


def _shortfalls(document: dict[str, Any]) -> list[Problem]:
    return [
        Problem(
            "", name, f"got {document[name]:.6g}, tolerated {limit:g}. The adapter is kept; merge.json has the figures."
        )
        for name, limit in document["tolerance"].items()
        if (document[name] < limit if name == "argmax_agreement" else document[name] > limit)
    ]
