"""The bootstrap of a model's metrics, and the paired comparison of two models by it.

Shared by classifiers, language models and answers. Knows a metric as a function of draws, and nothing of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ftkit.evals import statistics
from ftkit.evals.section import MetricName
from ftkit.records import Comparison, ModelScores

if TYPE_CHECKING:
    from ftkit.evals.statistics import Floats

# A metric in each resample: weights [B, n], how often each row was drawn -> [B], nan where it is undefined.
Drawn: TypeAlias = "Callable[[Floats], Floats]"

# With fewer rows that all agree, a sign test cannot reach 5% either (2 / 2^6 = 0.03), while a bootstrap would: of one
# row it gives an interval without width.
FEWEST = 6


class Resampled(Protocol):
    """What a comparison needs of a model: its scores, each metric in each resample [B], and what was drawn."""

    @property
    def scores(self) -> ModelScores: ...

    @property
    def resampled(self) -> Mapping[MetricName, Floats]: ...

    @property
    def draws(self) -> tuple[int, int, int]: ...


def resample(metrics: Mapping[MetricName, Drawn], rows: int, *, seed: int, resamples: int) -> dict[MetricName, Floats]:
    """Each metric in each resample of ``rows`` rows [B]; all see the same draws."""
    import numpy as np

    chunks: dict[MetricName, list[Floats]] = {name: [] for name in metrics}
    for weights in statistics.draws(rows, seed=seed, resamples=resamples):
        for name, drawn in metrics.items():
            chunks[name].append(drawn(weights))
    return {name: np.concatenate(values) for name, values in chunks.items()}


def intervals(resampled: Mapping[MetricName, Floats]) -> dict[str, tuple[float, float]]:
    """The 95% interval of each metric that has one."""
    found = {name: statistics.percentile_interval(drawn) for name, drawn in resampled.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def paired(first: Resampled, second: Resampled, *, unit: str = "rows") -> tuple[Comparison, ...]:
    """Each metric's difference, first minus second, by the paired bootstrap on the same rows.

    A metric that is undefined for one of the two is left out. Raises ValueError where the draws of the two differ;
    ``unit``: what was drawn.
    """
    if first.draws != second.draws:
        raise ValueError(f"not paired: {unit}, resamples and seed are {first.draws} and {second.draws}")
    shared = [name for name in first.resampled if name in second.resampled]
    found = (_comparison(name, first, second) for name in shared)
    return tuple(comparison for comparison in found if comparison is not None)


def _comparison(name: MetricName, first: Resampled, second: Resampled) -> Comparison | None:
    ours, theirs = first.scores.metrics[name], second.scores.metrics[name]
    differences = first.resampled[name] - second.resampled[name]
    interval = statistics.percentile_interval(differences)
    if ours is None or theirs is None or interval is None:
        return None
    p_value = statistics.paired_bootstrap_p(differences)
    return Comparison("paired_bootstrap", name, p_value, ours - theirs, interval)
