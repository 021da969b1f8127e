"""Scores one classifier on the evaluated rows, and compares two on the same rows.

Takes arrays and knows nothing of models, files or recipes other than its own section. References and predictions are
label numbers [n], or 0 and 1 [n, K] for a multi-label task; probabilities are [n, K] in the order of the label set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from ftkit.evals import statistics
from ftkit.evals.bootstrap import intervals, paired, resample
from ftkit.evals.calibration import reliability
from ftkit.evals.loading import load_metrics, measure
from ftkit.evals.section import Average as AverageName
from ftkit.evals.section import Eval, MetricName, selected_metrics
from ftkit.records import Average, ClassScore, Comparison, ModelScores

if TYPE_CHECKING:
    from ftkit.evals.statistics import Bools, Floats, Integers


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's scores, and what a paired comparison needs of it.

    ``correct`` [n]: the rows that it got right. ``resampled``: each metric in each resample [B]. ``draws`` names the
    rows, resamples and seed: two models are paired only where these are equal.
    """

    scores: ModelScores
    correct: Bools
    resampled: Mapping[MetricName, Floats]
    draws: tuple[int, int, int]


def score_classification(
    references: Integers,
    probabilities: Floats,
    predictions: Integers,
    labels: Sequence[str],
    *,
    multi_label: bool,
    settings: Eval,
    seed: int,
    resamples: int = statistics.RESAMPLES,
    outside: Bools | None = None,
) -> Scored:
    """Every selected metric with its 95% interval, the figures of each label, the confusion matrix, and calibration.

    A metric that these rows leave undefined is None and has no interval. ``outside`` [n]: whether what a decoder wrote
    freely is none of the labels; None of a model that does not write, which has no out_of_label.
    """
    _check(references, probabilities, predictions, len(labels), multi_label)
    inputs: dict[str, Floats | Integers | Bools] = {
        "references": references,
        "predictions": predictions,
        "probabilities": probabilities,
    }
    if outside is not None:
        _check_outside(outside, len(references))
        inputs["outside"] = outside
    metrics = load_metrics(
        selected_metrics(settings, multi_label=multi_label, words=outside is not None),
        labels=len(labels),
        average=settings.average,
        multi_label=multi_label,
    )
    values = measure(metrics, **inputs)
    defined = {name: partial(metrics[name].resample, **inputs) for name, value in values.items() if value is not None}
    resampled = resample(defined, len(references), seed=seed, resamples=resamples)
    scores = ModelScores(
        metrics={name: value for name, value in values.items()},
        ci95=intervals(resampled),
        per_class=_per_class(references, predictions, labels, multi_label),
        confusion=_confusion(references, predictions, len(labels), multi_label),
        reliability=reliability(references, probabilities),
        averages=_averages(references, predictions, len(labels), multi_label),
    )
    correct = (references == predictions).reshape(len(references), -1).all(axis=1)
    return Scored(scores, correct, resampled, (len(references), resamples, seed))


def compare(first: Scored, second: Scored) -> tuple[Comparison, ...]:
    """Each metric's difference, first minus second, on the same rows.

    Accuracy by McNemar's test, every other metric by the paired bootstrap; the interval is the bootstrap's for all. A
    metric that is undefined for one of the two is left out.
    """
    found = paired(first, second)
    p_value = statistics.mcnemar(first.correct, second.correct)
    return tuple(
        replace(item, test="mcnemar", p_value=p_value) if item.metric == "accuracy" else item for item in found
    )


def _per_class(
    references: Integers, predictions: Integers, labels: Sequence[str], multi_label: bool
) -> tuple[ClassScore, ...]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        references, predictions, labels=None if multi_label else range(len(labels)), average=None, zero_division=0
    )
    return tuple(
        ClassScore(label, float(precision), float(recall), float(f1), int(support))
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    )


def _averages(references: Integers, predictions: Integers, labels: int, multi_label: bool) -> tuple[Average, ...]:
    """Precision, recall and F1 by every way of averaging; the recipe's own is among the metrics, too."""
    from sklearn.metrics import precision_recall_fscore_support

    chosen = None if multi_label else range(labels)
    found = []
    for name in get_args(AverageName):
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, labels=chosen, average=name, zero_division=0
        )
        found.append(Average(name, float(precision), float(recall), float(f1)))
    return tuple(found)


def _confusion(
    references: Integers, predictions: Integers, labels: int, multi_label: bool
) -> tuple[tuple[Any, ...], ...]:
    """[K, K], rows references and columns predictions; multi-label [K, 2, 2], ((tn, fp), (fn, tp)) for each label."""
    from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

    if not multi_label:
        return tuple(tuple(row) for row in confusion_matrix(references, predictions, labels=range(labels)).tolist())
    tables = multilabel_confusion_matrix(references, predictions).tolist()
    return tuple(tuple(tuple(row) for row in table) for table in tables)


def _check(references: Integers, probabilities: Floats, predictions: Integers, labels: int, multi_label: bool) -> None:
    """A caller that mixes up arrays must not get a score."""
    import numpy as np

    rows = len(references)
    answers = (rows, labels) if multi_label else (rows,)
    if rows == 0 or labels < 2:
        raise ValueError(f"nothing to score: {rows} rows, {labels} labels")
    if references.shape != answers or predictions.shape != answers or probabilities.shape != (rows, labels):
        shapes = f"{references.shape}, {predictions.shape} and {probabilities.shape}"
        raise ValueError(f"references, predictions and probabilities are {shapes} for {rows} rows of {labels} labels")
    highest = 1 if multi_label else labels - 1
    if min(references.min(), predictions.min()) < 0 or max(references.max(), predictions.max()) > highest:
        raise ValueError(f"references and predictions must be 0 to {highest}")
    if not (np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError("a probability is not between 0 and 1")
    if not multi_label and np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("the probabilities of a row do not sum to 1")


def _check_outside(outside: Bools, rows: int) -> None:
    if outside.shape != (rows,) or outside.dtype != bool:
        raise ValueError(f"outside is {outside.dtype} of shape {outside.shape}, and must be bool of shape ({rows},)")
