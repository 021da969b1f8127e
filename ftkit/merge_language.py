"""Merges the adapter of a language model, whatever it was trained on, and proves the result in a fresh process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import NotProved
from ftkit.files import sha256_files, write_json, writing_folder
from ftkit.merging import (
    EVERY,
    Unquantised,
    against_quantised,
    apart,
    holds,
    margin,
    rounding_alone,
    shortfalls,
    stored_dtype,
    tolerance,
    write_merged,
)
from ftkit.models.adapters import Adapter
from ftkit.models.hardware import peak_rss_mb
from ftkit.models.locate import BaseFiles
from ftkit.models.placement import Placement, placement_of, release
from ftkit.proof import Afresh, FreshProcess, HeldOutRows
from ftkit.records import EvalReport, ModelScores, as_json
from ftkit.rundir import RunDir
from ftkit.tasks.language import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Trained:
    """What was trained and measured.

    ``chosen``: the adapter on a base in full precision, which is what is merged, and ``expected`` its scores;
    ``measured``: those of the adapter as it was evaluated, on a quantised base where the recipe asks for one;
    ``rescore``: what scored them; ``tolerance``: by which share the perplexity may differ.
    """

    chosen: Unquantised
    expected: Scores
    measured: Scores
    rescore: Callable[[PreTrainedModel], Scores]
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    files: BaseFiles
    trust_remote_code: bool
    tolerance: float


def merge_language(
    run: RunDir,
    report: EvalReport,
    trained: Trained,
    rows: HeldOutRows,
    score: Callable[[Afresh], ModelScores],
    *,
    console: Console,
    process: FreshProcess,
) -> EvalReport:
    """Merges, has a fresh process score the merged model on the test rows, and writes merge.json.

    ``score`` makes metrics of what that process found. Returns the report with the merged model beside the adapter.
    Raises NotProved where the merged model is not shown to be the adapter's; then there is no folder called merged.
    """
    started = time.perf_counter()
    dtype, placement = stored_dtype(trained.files), placement_of(trained.chosen.model)
    with writing_folder(run.merged) as folder:
        how = write_merged(trained.chosen, run.adapter, trained.files, trained.tokenizer, folder)
        seconds = time.perf_counter() - started
        rounding = rounding_alone(
            trained.chosen,
            how,
            placement,
            lambda model: _differences(trained.expected, trained.rescore(model), lead=EVERY),
        )
        release(trained.chosen.model)
        console.note(f"a fresh process scores the merged model from disk, in {placement}")
        found = process.language(folder, rows, placement=placement, trust_remote_code=trained.trust_remote_code)
        scores = score(found)
        document = _document(run, report, trained, found, str(dtype).removeprefix("torch."), placement, rounding)
        document |= {
            "merge": how,
            "base_sha256": trained.files.sha256(),
            "peak_rss_mb": max(peak_rss_mb(), found.peak_rss_mb),
            "seconds": round(seconds, 3),
            "bytes_read": sum(path.stat().st_size for path in trained.files.weights()),
            "bytes_written": sum(path.stat().st_size for path in folder.iterdir()),
        }
        if not document["passed"]:
            write_json(run.merge, document)
            raise NotProved("the merged model is not shown to be the trained one", shortfalls(document))
    write_json(run.merge, document)
    report = replace(report, models={**report.models, "merged": scores})
    write_json(run.eval, as_json(report))
    return report


def _document(
    run: RunDir,
    report: EvalReport,
    trained: Trained,
    found: Afresh,
    dtype: str,
    placement: Placement,
    rounding: dict[str, float] | None,
) -> dict[str, Any]:
    """merge.json but for time, memory and the base's hash. The full-precision base plus adapter is compared with.

    ``metric_diff``: by which share the perplexity changes, as perplexities of any size are rounded alike.
    """
    differences = _differences(trained.expected, found.scores, lead=margin(dtype, placement.dtype))
    tokens = sum(map(len, found.scores.best))
    allowed = tolerance(dtype, trained.tolerance, rounding, tokens)
    rise = math.expm1((found.scores.nll.sum() - trained.measured.nll.sum()) / tokens)
    # Against quantised weights only a rise counts: full-precision weights may well score better.
    metric_diff = rise if trained.adapter.quantize else abs(rise)
    against = {}
    if trained.adapter.quantize:
        changed = _differences(trained.measured, found.scores, lead=EVERY)
        before, after = (_perplexity(scores, tokens) for scores in (trained.measured, found.scores))
        against = against_quantised(trained.chosen, changed, "perplexity", before, after)
    return {
        "method": trained.adapter.type,
        "dtype": dtype,
        "computed": str(placement),
        "unit": report.unit,
        **({"rounding": rounding} if rounding else {}),
        **differences,
        "metric": "perplexity",
        "metric_diff": metric_diff,
        "tolerance": allowed,
        "passed": holds({**differences, "metric_diff": metric_diff}, allowed),
        "rows": len(found.scores.nll),
        "tokens": tokens,
        "adapter_sha256": sha256_files(sorted(run.adapter.glob("*.safetensors"))),
        **against,
    }


def _perplexity(scores: Scores, tokens: int) -> float:
    return math.exp(min(float(scores.nll.sum()) / tokens, 700))  # e^709 is the largest number


def _differences(expected: Scores, found: Scores, *, lead: float) -> dict[str, float]:
    """The largest difference of a kept logit, and the share of the predicted tokens with the same likeliest token.

    Where the likeliest leads by no more than ``lead``, rounding decides: such tokens do not count.
    """
    import numpy as np

    same = np.concatenate([ours == theirs for ours, theirs in zip(expected.best, found.best, strict=True)])
    clear = same[np.concatenate(expected.margins) > lead]
    return {
        **apart(expected.logits, found.logits),
        "argmax_agreement": float(clear.mean()) if clear.size else 1.0,
    }
