"""Accuracy: the share of rows whose prediction is right; multi-label, all labels of the row (exact match)."""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Accuracy(evaluate.Metric):
    """Right rows / rows."""

    def _info(self) -> Any:
        row = datasets.Value("int32")
        column = datasets.Sequence(row) if str(self.config_name).startswith("multilabel") else row
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="references and predictions: [n] label numbers, or [n, K] of 0 and 1 (multilabel).",
            features=datasets.Features({"references": column, "predictions": column}),
        )

    def _compute(self, *, references: Any, predictions: Any, **_others: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}

    def resample(self, weights: Floats, *, references: Array, predictions: Array, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        right = (references == predictions).reshape(len(references), -1).all(axis=1)  # [n]
        return np.asarray((weights @ right) / weights.sum(axis=1))
