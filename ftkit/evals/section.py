"""The ``eval`` and ``gate`` sections of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from ftkit.errors import Problem, RecipeError
from ftkit.section import Section

MetricName = Literal[
    "accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "log_loss", "ece", "out_of_label",
    "perplexity", "bits_per_byte",
    "exact_match", "token_f1", "rouge1", "rouge2", "rouge_l", "bleu", "chrf", "ended", "length_ratio", "repetition",
]  # fmt: skip
TaskName = Literal["classify", "pretrain", "sft"]
Average = Literal["macro", "micro", "weighted"]

# What ftkit must know of a metric before its module is loaded (importing evaluate takes seconds).
METRICS_OF: Mapping[TaskName, tuple[MetricName, ...]] = {
    "classify": ("accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "log_loss", "ece", "out_of_label"),
    "pretrain": ("perplexity", "bits_per_byte"),
    "sft": (
        "exact_match", "token_f1", "rouge1", "rouge2", "rouge_l", "bleu", "chrf",
        "perplexity", "bits_per_byte", "ended", "length_ratio", "repetition",
    ),
}  # fmt: skip
LOWER_IS_BETTER: frozenset[MetricName] = frozenset(
    {"log_loss", "ece", "out_of_label", "perplexity", "bits_per_byte", "repetition"}
)
# A ratio that is best at 1: no model beats another by it.
NEITHER_IS_BETTER: frozenset[MetricName] = frozenset({"length_ratio"})
WORDS_ONLY: frozenset[MetricName] = frozenset({"out_of_label"})
GENERATED: frozenset[MetricName] = frozenset(METRICS_OF["sft"]) - {"perplexity", "bits_per_byte"}
SINGLE_LABEL_ONLY: frozenset[MetricName] = frozenset({"mcc"})
BYTES_ONLY: frozenset[MetricName] = frozenset({"bits_per_byte"})


class Eval(Section):
    """What is measured on the test rows."""

    metrics: tuple[MetricName, ...] | None = Field(
        None, min_length=1, description="Metrics to report. Left out: all that the task has."
    )
    average: Average = Field("macro", description="How precision, recall and F1 are averaged over the labels.")
    threshold: Literal["fixed", "tune"] = Field(
        "fixed", description="fixed: a label is predicted from 0.5 on; tune: chosen for F1 on the validation rows."
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that an answer may have. Left out: the train answers' 99.5th percentile, and a quarter.",
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


def selected_metrics(settings: Eval, *, multi_label: bool, words: bool = False) -> tuple[MetricName, ...]:
    """The metrics of a classifier to report, in the recipe's order; all that the task has where the recipe names none.

    ``words``: whether this model writes label words freely. One that does not, such as the majority beside it, has no
    metric of ``WORDS_ONLY``. Raises RecipeError for a metric that the task does not have.
    """
    why = "is for one label a row, and the task is multi-label"
    found = _selected(settings, "classify", dict.fromkeys(SINGLE_LABEL_ONLY, why) if multi_label else {})
    return found if words else tuple(name for name in found if name not in WORDS_ONLY)


def selected_language_metrics(settings: Eval, *, with_bytes: bool) -> tuple[MetricName, ...]:
    """The same for a language model; ``with_bytes``: whether every byte of the text is predicted, as not when masked.

    Raises RecipeError for a metric that the task does not have.
    """
    why = "needs every byte of the text to be predicted, and a masked model predicts the hidden tokens alone"
    return _selected(settings, "pretrain", {} if with_bytes else dict.fromkeys(BYTES_ONLY, why))


def selected_answer_metrics(settings: Eval) -> tuple[MetricName, ...]:
    """The same for a model that answers. Where none of them is in ``GENERATED``, no answer need be generated.

    Raises RecipeError for a metric that the task does not have.
    """
    return _selected(settings, "sft", {})


def _selected(settings: Eval, task: TaskName, unfit: Mapping[MetricName, str]) -> tuple[MetricName, ...]:
    """``unfit``: metrics of the task that do not go with its settings, and why."""
    known = METRICS_OF[task]
    fit = tuple(name for name in known if name not in unfit)
    if settings.metrics is None:
        return fit
    problems = [
        Problem("", f"eval.metrics[{index}]", f"{name} {unfit.get(name, f'is not measured for {task}')}. Remove it.")
        for index, name in enumerate(settings.metrics)
        if name not in fit
    ]
    if problems:
        raise RecipeError.in_file("the recipe", problems)
    return tuple(dict.fromkeys(settings.metrics))
