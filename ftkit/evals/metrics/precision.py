"""Precision: of the rows that were given a label, the share that have it.

An average is over the whole label set: a label that the rows do not hold and that is never predicted counts as 0 in
the macro average (scikit-learn's ``labels=range(K)`` with ``zero_division=0``).
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_score

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Precision(evaluate.Metric):
    """tp / (tp + fp) for each label, averaged."""

    def __init__(self, *args: Any, labels: int | None = None, **kwargs: Any) -> None:
        """``labels``: how many labels there are; left out, as many as references and predictions show."""
        self.labels = labels
        super().__init__(*args, **kwargs)
        if self._average() not in ("macro", "micro", "weighted"):
            raise ValueError(f"Unknown configuration {self.config_name!r}. Use macro, micro or weighted.")

    def _info(self) -> Any:
        row = datasets.Value("int32")
        column = datasets.Sequence(row) if self._multi_label() else row
        return evaluate.MetricInfo(
            description=__doc__,
            citation="van Rijsbergen (1979). Information Retrieval, 2nd edition.",
            inputs_description="references and predictions: [n] label numbers, or [n, K] of 0 and 1 (multilabel).",
            features=datasets.Features({"references": column, "predictions": column}),
        )

    def _compute(self, *, references: Any, predictions: Any, **_others: Any) -> dict[str, float]:
        labels = None if self._multi_label() else range(self._label_count(references, predictions))
        value = precision_score(references, predictions, labels=labels, average=self._average(), zero_division=0)
        return {"precision": float(value)}

    def resample(self, weights: Floats, *, references: Array, predictions: Array, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        if not self._multi_label():
            one_hot = np.eye(self._label_count(references, predictions))
            references, predictions = one_hot[references], one_hot[predictions]  # [n, K]
        hits = weights @ (references * predictions)  # [B, K]
        predicted, actual = weights @ predictions, weights @ references  # [B, K]
        if self._average() == "micro":
            hits, predicted, actual = (counts.sum(axis=1, keepdims=True) for counts in (hits, predicted, actual))
        values = _ratio(hits, predicted)  # [B, K]
        if self._average() == "weighted":
            return _ratio((values * actual).sum(axis=1), actual.sum(axis=1))
        return np.asarray(values.mean(axis=1))

    def _multi_label(self) -> bool:
        return str(self.config_name).startswith("multilabel")

    def _average(self) -> str:
        name = str(self.config_name).removeprefix("multilabel").removeprefix("-")
        return "macro" if name in ("", "default") else name

    def _label_count(self, references: Any, predictions: Any) -> int:
        return self.labels or 1 + int(max(np.max(references), np.max(predictions)))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, and 0 where there is nothing to divide by."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
