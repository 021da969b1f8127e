"""From probabilities to decisions, and the choice of the probability from which a label is given.

Thresholds are chosen on validation rows only; nothing here may see a test row before ``apply_thresholds``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftkit.errors import Problem, RecipeError
from ftkit.evals.section import Average

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ftkit.evals.statistics import Floats, Integers

FIXED = 0.5


def apply_thresholds(
    probabilities: Floats, thresholds: tuple[float, ...] = (), *, multi_label: bool
) -> npt.NDArray[np.int64]:
    """The predictions: label numbers [n], or 0 and 1 [n, K] for a multi-label task.

    No thresholds: the most probable label, or every label from 0.5 on. With thresholds, a label is given from its
    threshold on: one for each label of a multi-label task, or one for the second of two labels.
    """
    import numpy as np

    columns = probabilities.shape[1]
    if multi_label:
        if len(thresholds) not in (0, columns):
            raise ValueError(f"{len(thresholds)} thresholds for {columns} labels")
        return np.asarray(probabilities >= np.array(thresholds or FIXED), dtype=np.int64)
    if not thresholds:
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    if columns != 2 or len(thresholds) != 1:
        raise ValueError(f"{len(thresholds)} thresholds for one of {columns} labels")
    return np.asarray(probabilities[:, 1] >= thresholds[0], dtype=np.int64)


def tune_thresholds(
    references: Integers, probabilities: Floats, *, average: Average, multi_label: bool
) -> tuple[float, ...]:
    """The thresholds with the best F1 on the validation rows (references [n] or [n, K], probabilities [n, K]).

    Two labels: one threshold, on the second label's probability, for the F1 that is reported (``average``).
    Multi-label: one for each label, for that label's F1, which makes the macro average the best there is (Lipton et al.
    2014); a label without a row keeps 0.5.
    """
    if multi_label:
        columns = zip((references == 1).T, probabilities.T, strict=True)
        return tuple(_best(positive, scores, average=None) for positive, scores in columns)
    if probabilities.shape[1] != 2:
        message = "tune needs two labels, or a multi-label task. Write threshold: fixed, or leave it out."
        raise RecipeError.in_file("the recipe", [Problem("", "eval.threshold", message)])
    return (_best(references == 1, probabilities[:, 1], average=average),)


def _best(positive: npt.NDArray[np.bool_], scores: Floats, *, average: Average | None) -> float:
    """The threshold with the best F1 of positive [n] by scores [n]: 0.5, or midway between two neighbouring scores.

    Of equally good ones, the nearest to 0.5. ``average``: over both sides; None: of the positive side alone.
    """
    import numpy as np

    if not positive.any() or (average is not None and positive.all()):
        return FIXED
    distinct = np.unique(scores)
    candidates = np.append((distinct[1:] + distinct[:-1]) / 2, FIXED)
    order = np.argsort(scores)
    below = np.searchsorted(scores[order], candidates, side="left")  # rows that the threshold leaves out
    missed = np.append(0, np.cumsum(positive[order]))[below]
    with_label = positive.sum()
    hits = with_label - missed
    f1 = 2 * hits / (with_label + len(scores) - below)
    if average is not None:
        left_out_rightly, without = below - missed, len(scores) - with_label
        f1_without = 2 * left_out_rightly / (without + below)
        share = with_label / len(scores)
        f1 = {
            "macro": (f1 + f1_without) / 2,
            "weighted": share * f1 + (1 - share) * f1_without,
            "micro": (hits + left_out_rightly) / len(scores),
        }[average]
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - FIXED).argmin()])
