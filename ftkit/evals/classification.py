"""Scores one classifier on the evaluated rows, and compares two on the same rows.

Takes arrays and knows nothing of models, files or recipes other than its own section. References and predictions are
label numbers [n], or 0 and 1 [n, K] for a multi-label task; probabilities are [n, K] in the order of the label set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ftkit.evals import statistics
from ftkit.evals.calibration import reliability
from ftkit.evals.loading import Metric, load_metrics, measure
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
) -> Scored:
    """Every selected metric with its 95% interval, the figures of each label, the confusion matrix, and calibration.

    A metric that these rows leave undefined is None and has no interval.
    """
    _check(references, probabilities, predictions, len(labels), multi_label)
    metrics = load_metrics(
        selected_metrics(settings, multi_label=multi_label),
        labels=len(labels),
        average=settings.average,
        multi_label=multi_label,
    )
    values = measure(metrics, references=references, predictions=predictions, probabilities=probabilities)
    defined = {name: metrics[name] for name, value in values.items() if value is not None}
    resampled = _resample(defined, references, predictions, probabilities, seed=seed, resamples=resamples)
    intervals = {name: statistics.percentile_interval(drawn) for name, drawn in resampled.items()}
    scores = ModelScores(
        metrics={name: value for name, value in values.items()},
        ci95={name: interval for name, interval in intervals.items() if interval is not None},
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
    if first.draws != second.draws:
        raise ValueError(f"not paired: rows, resamples and seed are {first.draws} and {second.draws}")
    shared = [name for name in first.resampled if name in second.resampled]
    found = (_comparison(name, first, second) for name in shared)
    return tuple(comparison for comparison in found if comparison is not None)


def _comparison(name: MetricName, first: Scored, second: Scored) -> Comparison | None:
    ours, theirs = first.scores.metrics[name], second.scores.metrics[name]
    differences = first.resampled[name] - second.resampled[name]
    interval = statistics.percentile_interval(differences)
    if ours is None or theirs is None or interval is None:
        return None
    test: Literal["mcnemar", "paired_bootstrap"] = "mcnemar" if name == "accuracy" else "paired_bootstrap"
    if test == "mcnemar":
        p_value = statistics.mcnemar(first.correct, second.correct)
    else:
        p_value = statistics.paired_bootstrap_p(differences)
    return Comparison(test, name, p_value, ours - theirs, interval)


def _resample(
    metrics: Mapping[MetricName, Metric],
    references: Integers,
    predictions: Integers,
    probabilities: Floats,
    *,
    seed: int,
    resamples: int,
) -> dict[MetricName, Floats]:
    """Each metric in each resample [B]; all see the same draws."""
    import numpy as np

    chunks: dict[MetricName, list[Floats]] = {name: [] for name in metrics}
    for weights in statistics.draws(len(references), seed=seed, resamples=resamples):
        for name, metric in metrics.items():
            values = metric.resample(
                weights, references=references, predictions=predictions, probabilities=probabilities
            )
            chunks[name].append(values)
    return {name: np.concatenate(values) for name, values in chunks.items()}


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
