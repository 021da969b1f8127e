"""Expected calibration error (Guo et al. 2017): how far confidence is from the share of right answers; lower is better.

Top-label confidence in 15 bins of equal width, (0, 1/15], (1/15, 2/15], …; the error is the mean over the bins of
|accuracy - confidence|, weighted by rows. It judges the probabilities, so the answer is the most probable label,
whatever threshold the predictions use. Multi-label: over all label decisions, with confidence max(p, 1 - p).
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

BINS = 15
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Ece(evaluate.Metric):
    """The gap between confidence and accuracy."""

    def _info(self) -> Any:
        row = datasets.Value("int32")
        column = datasets.Sequence(row) if str(self.config_name).startswith("multilabel") else row
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Guo, Pleiss, Sun, & Weinberger (2017). On calibration of modern neural networks.",
            inputs_description="references: [n] label numbers, or [n, K] of 0 and 1; probabilities: [n, K].",
            features=datasets.Features(
                {"references": column, "probabilities": datasets.Sequence(datasets.Value("float64"))}
            ),
        )

    def _compute(self, *, references: Any, probabilities: Any, **_others: Any) -> dict[str, float]:
        once = np.ones((1, len(references)))
        value = self.resample(once, references=np.asarray(references), probabilities=np.asarray(probabilities))
        return {"ece": float(value[0])}

    def resample(self, weights: Floats, *, references: Array, probabilities: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        if references.ndim == 2:
            confidence = np.maximum(probabilities, 1 - probabilities)  # [n, K]
            right = (probabilities >= 0.5) == (references == 1)
        else:
            confidence = probabilities.max(axis=1, keepdims=True)  # [n, 1]
            right = probabilities.argmax(axis=1, keepdims=True) == references[:, None]
        edges = np.arange(1, BINS) / BINS
        bins = np.searchsorted(edges, confidence, side="left")  # a bin holds its upper edge
        gap = right - confidence
        gaps = np.stack([np.where(bins == index, gap, 0).sum(axis=1) for index in range(BINS)], axis=1)  # [n, 15]
        decisions = weights.sum(axis=1) * confidence.shape[1]
        return np.asarray(np.abs(weights @ gaps).sum(axis=1) / decisions)
