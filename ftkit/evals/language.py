"""Scores one language model on the windows of the test texts, and compares two on the same windows.

Takes arrays and knows nothing of models, files or recipes other than its own section. A window is a stretch of text
that the model sees at once; the bootstrap draws whole windows, because the tokens in one are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ftkit.evals import statistics
from ftkit.evals.bootstrap import FEWEST, intervals, paired, resample
from ftkit.evals.loading import load_language_metrics, measure
from ftkit.evals.section import Eval, MetricName, selected_language_metrics
from ftkit.records import Comparison, ModelScores

if TYPE_CHECKING:
    from ftkit.evals.statistics import Floats, Integers


@dataclass(frozen=True, slots=True)
class ScoredWindows:
    """A model's scores, and what a paired comparison needs of it.

    ``nll`` [n]: nats over the predicted tokens of each window; ``tokens`` and ``bytes`` [n]: how many these are.
    ``resampled``: each metric in each resample [B]. ``draws`` names the windows, resamples and seed: two models are
    paired only where these, and the tokens, are equal.
    """

    nll: Floats
    tokens: Integers
    bytes: Integers | None
    scores: ModelScores
    resampled: Mapping[MetricName, Floats]
    draws: tuple[int, int, int]


def score_language(
    nll: Floats,
    tokens: Integers,
    bytes_: Integers | None,
    *,
    settings: Eval,
    seed: int,
    resamples: int = statistics.RESAMPLES,
) -> ScoredWindows:
    """Every selected metric with its 95% interval by the percentile bootstrap over windows.

    ``bytes_`` is None for the masked objective, which has the perplexity of its hidden tokens alone. A metric that
    these windows leave undefined is None; it has no interval, nor has any of fewer than ``FEWEST`` windows. Raises
    RecipeError for a metric of another task.
    """
    _check(nll, tokens, bytes_)
    metrics = load_language_metrics(selected_language_metrics(settings, with_bytes=bytes_ is not None))
    inputs: dict[str, Floats | Integers] = {"nll": nll, "tokens": tokens}
    if bytes_ is not None:
        inputs["bytes"] = bytes_
    values = measure(metrics, **inputs)
    enough = len(nll) >= FEWEST
    defined = {
        name: partial(metrics[name].resample, **inputs)
        for name, value in values.items()
        if enough and value is not None
    }
    resampled = resample(defined, len(nll), seed=seed, resamples=resamples)
    scores = ModelScores(
        metrics={name: value for name, value in values.items()},
        ci95=intervals(resampled),
        per_class=(),
        confusion=(),
    )
    return ScoredWindows(nll, tokens, bytes_, scores, resampled, (len(nll), resamples, seed))


def compare_language(first: ScoredWindows, second: ScoredWindows) -> tuple[Comparison, ...]:
    """Each metric's difference, first minus second, by the paired bootstrap on the same windows.

    A metric that is undefined for one of the two is left out; of fewer than ``FEWEST`` windows, all are. Raises
    ValueError where the two are not paired.
    """
    import numpy as np

    found = paired(first, second, unit="windows")
    if not np.array_equal(first.tokens, second.tokens):
        raise ValueError("not paired: the windows of the two hold different numbers of tokens")
    return found


def _check(nll: Floats, tokens: Integers, bytes_: Integers | None) -> None:
    """A caller that mixes up arrays must not get a score."""
    import numpy as np

    counts = [tokens] if bytes_ is None else [tokens, bytes_]
    if nll.ndim != 1 or len(nll) == 0 or any(count.shape != nll.shape for count in counts):
        shapes = ", ".join(str(array.shape) for array in (nll, *counts))
        raise ValueError(f"nll, tokens and bytes must be of one shape [n], n at least 1; they are {shapes}")
    if not np.isfinite(nll).all() or nll.min() < -1e-3:  # rounding
        raise ValueError("a negative log-likelihood is below 0 or not finite")
    if any(count.min() < 0 for count in counts):
        raise ValueError("a window has fewer than 0 tokens or bytes")
