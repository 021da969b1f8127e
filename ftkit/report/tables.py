"""The tables of a report as values: which figure stands where and which is best. How it looks is the renderer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.evals.section import NEITHER_IS_BETTER
from ftkit.records import ClassScore, Comparison, EvalReport
from ftkit.report import numbers

_MODEL_ORDER = ("majority", "unigram", "baseline_plain", "baseline", "adapter", "adapter_generated", "model", "merged")
_MODEL_NAMES = {
    "majority": "Majority class",
    "unigram": "Token frequencies alone",
    "baseline_plain": "Base model, plain prompt",
    "baseline": "Base model",
    "adapter": "Adapter",
    "adapter_generated": "Adapter, constrained generation",
    "merged": "Merged model",
    "model": "Model",
}
# Metrics of the headline, the first that was measured; then those of an answer, by how well they tell answers apart.
_MAIN = ("f1", "accuracy", "perplexity")
_OF_ANSWERS = ("rouge_l", "token_f1", "chrf", "rouge1", "rouge2", "bleu", "exact_match")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure with its 95% interval, as shown."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True, slots=True)
class ResultRow:
    model: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """Models against metrics."""

    metrics: tuple[str, ...]
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """How often one label was taken for another, and the share of that label's rows."""

    reference: str
    predicted: str
    count: int
    share: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One paired comparison in words and figures."""

    first: str
    second: str
    metric: str
    comparison: Comparison
    outcome: str


def kind_of(report: EvalReport) -> str:
    """The task, or "words" for labels that a decoder says: what a model of the report is called depends on it."""
    said = any("out_of_label" in scores.metrics for scores in report.models.values())
    return "words" if said or "adapter_generated" in report.models else report.task


def model_name(model: str, kind: str = "classify") -> str:
    """What a reader calls a model of eval.json, by ``kind_of`` the report; exports keep their own name."""
    if model == "baseline" and kind == "classify":
        return "Linear probe on the frozen base"
    return _MODEL_NAMES.get(model, model)


def ordered_models(report: EvalReport) -> list[str]:
    known = [model for model in _MODEL_ORDER if model in report.models]
    return known + [model for model in report.models if model not in _MODEL_ORDER]


def results(report: EvalReport) -> Results:
    """All models on the same rows. What is equal to the shown digits is equally good: several may be best."""
    models = ordered_models(report)
    metrics = tuple(dict.fromkeys(metric for model in models for metric in report.models[model].metrics))
    best = {metric: _best(report, metric) for metric in metrics}
    kind = kind_of(report)
    return Results(
        metrics,
        tuple(
            ResultRow(model, model_name(model, kind), tuple(_cell(report, model, m, best[m]) for m in metrics))
            for model in models
        ),
    )


def compared(report: EvalReport) -> list[Compared]:
    """Every paired comparison."""
    return [
        Compared(first, second, item.metric, item, outcome(item))
        for (first, _, second), items in ((pair.partition("_vs_"), items) for pair, items in report.comparison.items())
        for item in items
    ]


def outcome(comparison: Comparison) -> str:
    """ "better", "worse" or "undecided"; any but the last needs an interval without 0.

    "higher" or "lower" for a metric of which neither is good.
    """
    low, high = comparison.ci95
    if low <= 0 <= high:
        return "undecided"
    if comparison.metric in NEITHER_IS_BETTER:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) != numbers.lower_is_better(comparison.metric) else "worse"


def main_model(report: EvalReport) -> str:
    """The model that the run is about."""
    return next((name for name in ("adapter", "model") if name in report.models), ordered_models(report)[-1])


def main_metric(report: EvalReport) -> str:
    """The metric of the headline: what the gate asks for, else F1 or perplexity, else one of the answers."""
    metrics = list(report.models[main_model(report)].metrics)
    asked = [reason.metric for reason in report.gate.reasons if reason.metric in metrics]
    return asked[0] if asked else preferred(metrics)


def preferred(metrics: Sequence[str]) -> str:
    """The metric that says most about a run, of those that were measured."""
    return next(iter([*(metric for metric in (*_MAIN, *_OF_ANSWERS) if metric in metrics), *metrics]))


def answer_metric(metrics: Iterable[str]) -> str | None:
    """The metric that says most about generated answers; None where none of them was measured."""
    measured = frozenset(metrics)
    return next((metric for metric in _OF_ANSWERS if metric in measured), None)


def confused_pairs(labels: Sequence[str], confusion: Sequence[Sequence[int]], limit: int) -> list[Pair]:
    """The most frequent confusions of a single-label task."""
    pairs = [
        (count, row, column)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        Pair(labels[row], labels[column], count, numbers.percent(count, sum(confusion[row])))
        for count, row, column in pairs[:limit]
    ]


def confusion_cells(confusion: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Count, share of the row and shade (0 to 1) of each cell of a single-label confusion matrix."""
    return [
        [
            {
                "count": count,
                "share": numbers.percent(count, sum(counts)),
                "shade": round(count / (sum(counts) or 1), 3),
            }
            for count in counts
        ]
        for counts in confusion
    ]


def weakest_first(scores: Sequence[ClassScore]) -> list[ClassScore]:
    return sorted(scores, key=lambda score: (score.f1, score.label))


def seed_spread(report: EvalReport) -> tuple[tuple[str, ...], list[tuple[str, list[str]]]]:
    """Metrics, and their values for each seed and from lowest to highest; empty where one seed was run."""
    if not report.seeds:
        return (), []
    runs = {str(report.seed): report.models[main_model(report)].metrics, **report.seeds}
    metrics = tuple(
        metric for metric in next(iter(runs.values())) if any(metric in seed for seed in report.seeds.values())
    )
    rows = [(seed, [numbers.score(values.get(metric)) for metric in metrics]) for seed, values in runs.items()]
    present = [[value for run in runs.values() if (value := run.get(metric)) is not None] for metric in metrics]
    spread = [numbers.interval((min(values), max(values))) if values else numbers.NOTHING for values in present]
    return metrics, [*rows, ("lowest to highest", spread)]


def label_counts(per_label: Mapping[str, Mapping[str, int]], labels: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Rows of each label in each split, in the order of the label set."""
    return [(label, [counts.get(label, 0) for counts in per_label.values()]) for label in labels]


def _best(report: EvalReport, metric: str) -> str | None:
    values = [scores.metrics.get(metric) for scores in report.models.values()]
    present = [value for value in values if value is not None]
    if len(present) < 2 or metric in NEITHER_IS_BETTER:
        return None
    return numbers.score(min(present) if numbers.lower_is_better(metric) else max(present))


def _cell(report: EvalReport, model: str, metric: str, best: str | None) -> Cell:
    scores = report.models[model]
    value = numbers.score(scores.metrics.get(metric))
    return Cell(value, numbers.interval(scores.ci95.get(metric)), value == best)
