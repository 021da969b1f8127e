"""Out of label: the share of answers, written freely, that are none of the label words; lower is better.

For a decoder that classifies. Its label is the likeliest of the words, so that every row has one; this says how often
the model would have written something else, had it been let.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class OutOfLabel(evaluate.Metric):
    """Answers outside the label set / answers."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="outside: [n] whether the free answer is none of the labels.",
            features=datasets.Features({"outside": datasets.Value("bool")}),
        )

    def _compute(self, *, outside: Any, **_others: Any) -> dict[str, float]:
        return {"out_of_label": float(np.mean(outside))}

    def resample(self, weights: Floats, *, outside: Array, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return np.asarray((weights @ outside) / weights.sum(axis=1))
