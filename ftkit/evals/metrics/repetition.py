"""Repetition: the share of runs of four words that stand earlier in the same answer; lower is better.

A model that is caught in a loop comes near 1 (seq-rep-4 of Welleck et al. 2020, over the runs of all answers together
rather than as a mean over answers). Words stand between white space. Undefined (None) where no answer has four words.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

ORDER = 4
Floats = npt.NDArray[np.float64]


class Repetition(evaluate.Metric):
    """1 - different runs of four words / runs of four words, counted in each answer and summed over the answers."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Welleck et al. (2020). Neural text generation with unlikelihood training.",
            inputs_description="predictions: [n] texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, *, predictions: Any, **_others: Any) -> dict[str, float | None]:
        statistics = self.statistics(predictions=predictions)
        value = float(self.resample(np.ones((1, len(statistics))), statistics=statistics)[0])
        return {"repetition": None if np.isnan(value) else value}

    def statistics(self, *, predictions: Any, **_others: Any) -> Floats:
        """Repeated runs of each answer, and all its runs [n, 2]."""
        return np.array([_runs(answer.split()) for answer in predictions], dtype=np.float64)

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B], nan where no answer of four words was drawn."""
        repeated, runs = (weights @ statistics).T  # [B] each
        return np.asarray(np.divide(repeated, runs, out=np.full(len(weights), np.nan), where=runs > 0))


def _runs(words: list[str]) -> tuple[int, int]:
    runs = [tuple(words[start : start + ORDER]) for start in range(len(words) - ORDER + 1)]
    return len(runs) - len(set(runs)), len(runs)
