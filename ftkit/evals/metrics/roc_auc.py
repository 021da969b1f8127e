"""Area under the ROC curve: the chance that a row with the label scores above one without it, ties counting half.

Two labels: of the second. More: the mean over the labels, each against the rest (macro one-vs-rest).
Multi-label: the mean over the labels. Undefined (None) where a label is on every row or on none.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class RocAuc(evaluate.Metric):
    """The Mann-Whitney statistic of the scores of rows with and without a label, as a share."""

    def _info(self) -> Any:
        row = datasets.Value("int32")
        column = datasets.Sequence(row) if str(self.config_name).startswith("multilabel") else row
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Hanley & McNeil (1982). The meaning and use of the area under a ROC curve.",
            inputs_description="references: [n] label numbers, or [n, K] of 0 and 1; probabilities: [n, K].",
            features=datasets.Features(
                {"references": column, "probabilities": datasets.Sequence(datasets.Value("float64"))}
            ),
        )

    def _compute(self, *, references: Any, probabilities: Any, **_others: Any) -> dict[str, float | None]:
        has_label, scores = _sides(np.asarray(references), np.asarray(probabilities))
        if has_label.all(axis=0).any() or not has_label.any(axis=0).all():
            return {"roc_auc": None}
        return {"roc_auc": float(roc_auc_score(has_label, scores, average="macro"))}

    def resample(self, weights: Floats, *, references: Array, probabilities: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B], nan where a resample lacks one side of a label."""
        has_label, scores = _sides(references, probabilities)
        areas = [_area(weights, *label) for label in zip(has_label.T, scores.T, strict=True)]
        return np.asarray(np.mean(areas, axis=0))


def _sides(references: Array, probabilities: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which rows have each label [n, K], and how they score for it [n, K]; of two labels only the second, K = 1."""
    if references.ndim == 2:
        return references == 1, probabilities
    first = 1 if probabilities.shape[1] == 2 else 0
    return references[:, None] == np.arange(first, probabilities.shape[1]), probabilities[:, first:]


def _area(weights: Floats, has_label: npt.NDArray[np.bool_], scores: Floats) -> Floats:
    """weights [B, n], has_label [n], scores [n] -> [B]. Each row with the label meets those without that score less."""
    without = np.flatnonzero(~has_label)
    without = without[np.argsort(scores[without])]
    up_to = np.zeros((len(weights), len(without) + 1))  # [B, rows without + 1]
    np.cumsum(weights[:, without], axis=1, out=up_to[:, 1:])
    below = np.searchsorted(scores[without], scores[has_label], side="left")
    below_or_tied = np.searchsorted(scores[without], scores[has_label], side="right")
    with_label = weights[:, has_label]  # [B, rows with]
    won = ((up_to[:, below] + up_to[:, below_or_tied]) * with_label).sum(axis=1) / 2
    pairs = with_label.sum(axis=1) * up_to[:, -1]
    return np.asarray(np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0))
