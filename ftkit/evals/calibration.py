"""The bins of a reliability diagram: the ones that the calibration error (metrics/ece.py) is computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftkit.records import Reliability

if TYPE_CHECKING:
    from ftkit.evals.statistics import Floats, Integers

BINS = 15


def reliability(references: Integers, probabilities: Floats) -> tuple[Reliability, ...]:
    """Mean confidence and accuracy in 15 bins of equal width, empty bins left out (Guo et al. 2017, figure 4).

    references [n] and probabilities [n, K]: of the most probable label. references [n, K] of 0 and 1: of every label
    decision at 0.5, with confidence max(p, 1 - p).
    """
    import numpy as np

    if references.ndim == 2:
        confidence = np.maximum(probabilities, 1 - probabilities).ravel()
        right = ((probabilities >= 0.5) == (references == 1)).ravel()
    else:
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == references
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")  # a bin holds its upper edge
    inside = [bins == index for index in range(BINS)]
    return tuple(
        Reliability(float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum()))
        for rows in inside
        if rows.any()
    )
