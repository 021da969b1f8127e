"""Ended: the share of answers that the model ended by itself; the others were cut at the most tokens they may have."""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Ended(evaluate.Metric):
    """Answers that ended in a stop token / answers."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="ended: [n] whether the answer ended by itself.",
            features=datasets.Features({"ended": datasets.Value("bool")}),
        )

    def _compute(self, *, ended: Any, **_others: Any) -> dict[str, float]:
        return {"ended": float(np.mean(ended))}

    def statistics(self, *, ended: Any, **_others: Any) -> Floats:
        """Whether each answer ended by itself [n, 1]."""
        return np.array(ended, dtype=np.float64)[:, None]

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return np.asarray((weights @ statistics[:, 0]) / weights.sum(axis=1))
