"""Scores one language model on the windows of the test texts, and compares two on the same windows.

Takes arrays and knows nothing of models, files or recipes other than its own section. A window is a stretch of text
that the model sees at once; the bootstrap draws whole windows, because the tokens in one are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.evals import statistics
from ftkit.evals.loading import Metric, load_language_metrics, measure
from ftkit.evals.section import Eval, MetricName, selected_language_metrics
from ftkit.records import Comparison, ModelScores

if TYPE_CHECKING:
    from ftkit.evals.statistics import Floats, Integers

# With fewer windows that all agree, a sign test cannot reach 5% either (2 / 2^6 = 0.03), while a bootstrap would: of
# one window it gives an interval without width.
FEWEST = 6


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
    defined = {name: metrics[name] for name, value in values.items() if enough and value is not None}
    resampled = _resample(defined, inputs, seed=seed, resamples=resamples)
    intervals = {name: statistics.percentile_interval(drawn) for name, drawn in resampled.items()}
    scores = ModelScores(
        metrics={name: value for name, value in values.items()},
        ci95={name: interval for name, interval in intervals.items() if interval is not None},
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

    if first.draws != second.draws:
        raise ValueError(f"not paired: windows, resamples and seed are {first.draws} and {second.draws}")
    if not np.array_equal(first.tokens, second.tokens):
        raise ValueError("not paired: the windows of the two hold different numbers of tokens")
    shared = [name for name in first.resampled if name in second.resampled]
    found = (_comparison(name, first, second) for name in shared)
    return tuple(comparison for comparison in found if comparison is not None)


def _comparison(name: MetricName, first: ScoredWindows, second: ScoredWindows) -> Comparison | None:
    ours, theirs = first.scores.metrics[name], second.scores.metrics[name]
    differences = first.resampled[name] - second.resampled[name]
    interval = statistics.percentile_interval(differences)
    if ours is None or theirs is None or interval is None:
        return None
    p_value = statistics.paired_bootstrap_p(differences)
    return Comparison("paired_bootstrap", name, p_value, ours - theirs, interval)


def _resample(
    metrics: Mapping[MetricName, Metric], inputs: Mapping[str, Floats | Integers], *, seed: int, resamples: int
) -> dict[MetricName, Floats]:
    """Each metric in each resample [B]; all see the same draws."""
    import numpy as np

    windows = len(inputs["nll"])
    chunks: dict[MetricName, list[Floats]] = {name: [] for name in metrics}
    for weights in statistics.draws(windows, seed=seed, resamples=resamples):
        for name, metric in metrics.items():
            chunks[name].append(metric.resample(weights, **inputs))
    return {name: np.concatenate(values) for name, values in chunks.items()}


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
