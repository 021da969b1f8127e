"""The ``eval`` and ``gate`` sections of a recipe."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from ftkit.errors import Problem, RecipeError
from ftkit.section import Section

MetricName = Literal["accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "log_loss", "ece"]
Average = Literal["macro", "micro", "weighted"]

# What ftkit must know of a metric before its module is loaded (importing evaluate takes seconds).
LOWER_IS_BETTER: frozenset[MetricName] = frozenset({"log_loss", "ece"})
SINGLE_LABEL_ONLY: frozenset[MetricName] = frozenset({"mcc"})


class Eval(Section):
    """What is measured on the test rows."""

    metrics: tuple[MetricName, ...] | None = Field(
        None, min_length=1, description="Metrics to report. Left out: all that the task has."
    )
    average: Average = Field("macro", description="How precision, recall and F1 are averaged over the labels.")
    threshold: Literal["fixed", "tune"] = Field(
        "fixed", description="fixed: a label is predicted from 0.5 on; tune: chosen for F1 on the validation rows."
    )


class Bound(Section):
    """A condition on one metric."""

    min: float | None = Field(None, description="Smallest value that passes.")
    max: float | None = Field(None, description="Largest value that passes (for losses).")
    beat: Literal["baseline"] | None = Field(
        None, description="baseline: the 95% interval of the paired difference to the baseline must exclude 0."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Bound:
        if self.min is None and self.max is None and self.beat is None:
            raise ValueError("sets no condition. Give min, max or beat.")
        return self


Gate = dict[MetricName, Bound]


def selected_metrics(settings: Eval, *, multi_label: bool) -> tuple[MetricName, ...]:
    """The metrics to report, in the recipe's order; all that the task has where the recipe names none."""
    known: tuple[MetricName, ...] = get_args(MetricName)
    if settings.metrics is None:
        return tuple(name for name in known if not (multi_label and name in SINGLE_LABEL_ONLY))
    problems = [
        Problem("", f"eval.metrics[{index}]", f"{name} is for one label a row, and the task is multi-label. Remove it.")
        for index, name in enumerate(settings.metrics)
        if multi_label and name in SINGLE_LABEL_ONLY
    ]
    if problems:
        raise RecipeError.in_file("the recipe", problems)
    return tuple(dict.fromkeys(settings.metrics))
