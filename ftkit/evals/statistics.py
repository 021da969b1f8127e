"""Intervals and paired tests: percentile bootstrap over rows, and McNemar's test.

A resample is held as how often it drew each row, so that every metric in it is a few matrix products
(ftkit/evals/metrics). Everybody who asks for the same rows, resamples and seed gets the same draws: differences between
models, and between metrics, are paired. Does not know what a label or a metric is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Integers: TypeAlias = npt.NDArray[np.integer]
    Bools: TypeAlias = npt.NDArray[np.bool_]

RESAMPLES = 2_000
LEVEL = 0.95
# Elements of one chunk of draws (16 MB as float64); a metric holds a few arrays of this size at a time.
CHUNK = 2_000_000


def draws(rows: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """Resamples of ``rows`` rows with replacement, in chunks [b, rows] of how often each row was drawn.

    float64 holds counts exactly, and makes products with them BLAS calls. The draws do not depend on the chunks' size:
    the generator is read row by row.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    at_once = max(1, CHUNK // rows)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = generator.integers(rows, size=(count, rows))
        drawn += np.arange(count)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def percentile_interval(values: Floats, *, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle ``level`` of the resampled values [B] (Efron 1979, the percentile method).

    Resamples in which the metric is undefined (nan) are left out. None where that is more than half of them: what is
    left would describe other data.
    """
    import numpy as np

    defined = values[~np.isnan(values)]
    if not len(defined) or len(defined) < len(values) / 2:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value of "no difference" from a metric's paired bootstrap differences [B].

    Twice the share of resamples on the rarer side of 0, resamples at 0 counting for both sides and one added above and
    below the line, so that p is never 0 (Davison & Hinkley 1997, section 4.2). Undefined resamples (nan) are left out.
    """
    import numpy as np

    defined = differences[~np.isnan(differences)]
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(defined) + 1))


def mcnemar(first_correct: Bools, second_correct: Bools) -> float:
    """Two-sided p-value of "both models are right equally often" on the same rows (McNemar 1947).

    The exact binomial test on the rows where one model is right and the other wrong, for any number of them: it needs
    no approximation for few such rows, keeps its level (it is conservative), and costs nothing for many.
    """
    from scipy.stats import binomtest

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)
