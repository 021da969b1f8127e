"""Matthews correlation coefficient for any number of labels (Gorodkin 2004); single-label only.

0 where every reference, or every prediction, is the same label: then nothing correlates (as in scikit-learn).
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import matthews_corrcoef

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Mcc(evaluate.Metric):
    """The correlation of references and predictions over the confusion matrix."""

    def _info(self) -> Any:
        if str(self.config_name).startswith("multilabel"):
            raise ValueError("mcc is for one label a row; it has no multilabel configuration.")
        row = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Gorodkin (2004). Comparing two K-category assignments by a K-category correlation coefficient.",
            inputs_description="references and predictions: [n] label numbers.",
            features=datasets.Features({"references": row, "predictions": row}),
        )

    def _compute(self, *, references: Any, predictions: Any, **_others: Any) -> dict[str, float]:
        if len({*references, *predictions}) == 1:  # scikit-learn gives 0 as well, with a warning
            return {"mcc": 0.0}
        return {"mcc": float(matthews_corrcoef(references, predictions))}

    def resample(self, weights: Floats, *, references: Array, predictions: Array, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        one_hot = np.eye(1 + int(max(references.max(), predictions.max())))
        actual, predicted = weights @ one_hot[references], weights @ one_hot[predictions]  # [B, K]
        rows, right = weights.sum(axis=1), weights @ (references == predictions)  # [B]
        shared = right * rows - (actual * predicted).sum(axis=1)
        spread = (rows**2 - (actual**2).sum(axis=1)) * (rows**2 - (predicted**2).sum(axis=1))
        return np.asarray(np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0))
