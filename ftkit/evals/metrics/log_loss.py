"""Log loss: the mean of -log(probability given to what is true); lower is better.

Multi-label: the mean binary cross-entropy over all rows and labels. Probabilities are clipped to the float64 epsilon
(scikit-learn's rule), so that one confident mistake costs 36 and not infinity; single-label rows are scaled to sum to
1, because a softmax in float32 does so only to 1e-7.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class LogLoss(evaluate.Metric):
    """The negative log-likelihood of a row."""

    def _info(self) -> Any:
        row = datasets.Value("int32")
        column = datasets.Sequence(row) if str(self.config_name).startswith("multilabel") else row
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Good (1952). Rational decisions. Journal of the Royal Statistical Society B.",
            inputs_description="references: [n] label numbers, or [n, K] of 0 and 1; probabilities: [n, K].",
            features=datasets.Features(
                {"references": column, "probabilities": datasets.Sequence(datasets.Value("float64"))}
            ),
        )

    def _compute(self, *, references: Any, probabilities: Any, **_others: Any) -> dict[str, float]:
        actual, given = np.asarray(references), np.asarray(probabilities)
        if actual.ndim == 2:
            losses = [log_loss(*label, labels=[0, 1]) for label in zip(actual.T, given.T, strict=True)]
            return {"log_loss": float(np.mean(losses))}
        return {"log_loss": float(log_loss(actual, _scaled(given), labels=range(given.shape[1])))}

    def resample(self, weights: Floats, *, references: Array, probabilities: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        if references.ndim == 2:
            of_truth = np.where(references == 1, probabilities, 1 - probabilities)  # [n, K]
        else:
            of_truth = _scaled(probabilities)[np.arange(len(references)), references][:, None]  # [n, 1]
        epsilon = np.finfo(np.float64).eps
        losses = -np.log(np.clip(of_truth, epsilon, 1 - epsilon)).mean(axis=1)  # [n]
        return np.asarray((weights @ losses) / weights.sum(axis=1))


def _scaled(probabilities: Floats) -> Floats:
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))
