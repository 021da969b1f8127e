"""Merges a language model's adapter; the result gets its name only when it is proved to be the same."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import NotProved
from ftkit.evals.language import ScoredWindows
from ftkit.files import sha256_files, write_json, writing_folder
from ftkit.merging import MARGIN, holds, shortfalls, stored_dtype, tolerance, write_merged
from ftkit.models.adapters import Adapter
from ftkit.models.base import inference_mode, with_saved_adapter
from ftkit.models.hardware import Machine, peak_rss_mb
from ftkit.models.locate import BaseFiles
from ftkit.plan.text import TextPlan
from ftkit.pretrain.evaluate import Evaluation, scored_on
from ftkit.pretrain.prepare import Prepared, load_base
from ftkit.proof import FreshProcess, read_scores, write_windows
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir
from ftkit.tasks.heldout import score_held_out
from ftkit.tasks.language import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_METRIC = "perplexity"
_EVERY = -1.0  # a margin that every token has


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
    started = time.perf_counter()
    model, expected = _full_precision(plan, prepared, run, evaluation, adapter, machine)
    dtype = stored_dtype(files)
    with writing_folder(run.merged) as folder:
        write_merged(model, prepared.tokenizer, folder, dtype)
        seconds = time.perf_counter() - started
        console.note("a fresh process scores the merged model from disk")
        found, peak = _scored_afresh(plan, prepared, evaluation, folder, process)
        scored = scored_on(plan, prepared, found.nll)
        document = _document(run, evaluation, expected, found, scored, adapter, str(dtype).removeprefix("torch."))
        document |= {
            "base_sha256": files.sha256(),
            "peak_rss_mb": max(peak_rss_mb(), peak),
            "seconds": round(seconds, 3),
            "bytes_read": sum(path.stat().st_size for path in files.weights()),
            "bytes_written": sum(path.stat().st_size for path in folder.iterdir()),
        }
        if not document["passed"]:
            write_json(run.merge, document)
            raise NotProved("the merged model is not shown to be the trained one", shortfalls(document))
    write_json(run.merge, document)
    report = replace(evaluation.report, models={**evaluation.report.models, "merged": scored.scores})
    write_json(run.eval, as_json(report))
    return report


def _full_precision(
    plan: TextPlan, prepared: Prepared, run: RunDir, evaluation: Evaluation, adapter: Adapter, machine: Machine
) -> tuple[PreTrainedModel, Scores]:
    """The unquantised base with the adapter, and its scores: what the merged model must equal."""
    if not adapter.quantize:
        return evaluation.model, evaluation.scores
    seed = plan.recipe.train.seed
    loaded = load_base(plan, seed=seed + 1, quantize=False, machine=machine, tokenizer=prepared.tokenizer)
    model = with_saved_adapter(loaded.model, run.adapter)
    inference_mode(model)
    pad = prepared.pad_token_id
    return model, score_held_out(model, prepared.test, pad_token_id=pad, positions=evaluation.positions)


def _scored_afresh(
    plan: TextPlan, prepared: Prepared, evaluation: Evaluation, folder: Any, process: FreshProcess
) -> tuple[Scores, int]:
    """The merged model's scores from a fresh process, and the most memory that it held, in MiB."""
    windows, out = folder / "windows.json", folder / "scores.npz"
    write_windows(
        windows,
        prepared.test.rows if prepared.test.hidden is None else prepared.test.hidden,
        evaluation.positions,
        pad_token_id=prepared.pad_token_id,
        objective=plan.task.objective,
    )
    trusted = bool(getattr(plan.base, "trust_remote_code", False))
    result = process.windows(folder, windows, out, trust_remote_code=trusted)
    found = read_scores(out)
    windows.unlink()
    out.unlink()
    return found, int(result["peak_rss_mb"])


def _document(
    run: RunDir,
    evaluation: Evaluation,
    expected: Scores,
    found: Scores,
    scored: ScoredWindows,
    adapter: Adapter,
    dtype: str,
) -> dict[str, Any]:
    """merge.json but for time, memory and the base's hash. The full-precision base plus adapter is compared with.

    ``metric_diff`` is relative here: perplexities of any size are rounded alike.
    """
    allowed = tolerance(dtype)
    differences = _differences(expected, found, margin=MARGIN if dtype == "float32" else -1.0)
    before, after = evaluation.report.models["adapter"].metrics[_METRIC], scored.scores.metrics[_METRIC]
    assert before is not None
    assert after is not None
    rise = after / before - 1
    # Against quantised weights only a rise counts: full-precision weights may well score better.
    metric_diff = rise if adapter.quantize else abs(rise)
    quantised = {"quantised": _differences(evaluation.scores, found, margin=_EVERY)} if adapter.quantize else {}
    return {
        "method": adapter.type,
        "dtype": dtype,
        "unit": "window",
        **differences,
        "metric": _METRIC,
        "metric_diff": metric_diff,
        "tolerance": allowed,
        "passed": holds({**differences, "metric_diff": metric_diff}, allowed),
        "rows": len(found.nll),
        "tokens": sum(map(len, found.best)),
        "adapter_sha256": sha256_files(sorted(run.adapter.glob("*.safetensors"))),
        **quantised,
    }


def _differences(expected: Scores, found: Scores, *, margin: float) -> dict[str, float]:
    """The largest difference of a kept logit, and the share of the predicted tokens with the same likeliest token.

    Where the two likeliest are nearer than ``margin``, rounding decides between them: such tokens do not count.
    """
    import numpy as np

    same = np.concatenate([ours == theirs for ours, theirs in zip(expected.best, found.best, strict=True)])
    clear = same[np.concatenate(expected.margins) > margin]
    return {
        "max_abs_logit_diff": float(np.abs(expected.logits - found.logits).max()),
        "argmax_agreement": float(clear.mean()) if clear.size else 1.0,
    }
