"""Every number that a person reads in card, report and terminal is written here, so that all three agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ftkit.evals.section import LOWER_IS_BETTER

NOTHING = "–"  # noqa: RUF001  an en dash stands for "there is no figure"
_HUGE = 1e9

_METRIC_NAMES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "mcc": "MCC",
    "roc_auc": "ROC AUC",
    "log_loss": "Log loss",
    "ece": "Calibration error (ECE)",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "out_of_label": "Out of label",
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ended": "Ended by itself",
    "length_ratio": "Length ratio",
    "repetition": "Repetition",
    "loss": "Loss",
}


def metric_name(metric: str) -> str:
    return _METRIC_NAMES.get(metric, metric)


def metric_inside(metric: str) -> str:
    """The name within a sentence: "perplexity", but "F1" and "MCC"."""
    name = metric_name(metric)
    return name if name[:2].isupper() else f"{name[0].lower()}{name[1:]}"


def lower_is_better(metric: str) -> bool:
    return metric == "loss" or metric in LOWER_IS_BETTER


def score(value: float | None) -> str:
    """A metric, to three digits; in whole numbers from 1,000 on, as a perplexity may be."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= _HUGE:
        return small(value)
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float) -> str:
    """A difference of metrics, with its sign; what rounds to nothing has none."""
    text = score(abs(value))
    return text if text == "0.000" else f"{'-' if value < 0 else '+'}{text}"


def interval(bounds: tuple[float, float] | None) -> str:
    return NOTHING if bounds is None else f"{score(bounds[0])} to {score(bounds[1])}"


def p_value(p: float) -> str:
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.01 else f"p = {p:.2f}"


def small(value: float | None) -> str:
    """A number of any size to two significant digits: 2e-6, 0.031, 0."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def rows(value: int, unit: str = "row") -> str:
    return f"{value:,} {unit}{'' if value == 1 else 's'}"


def percent(part: float, whole: float = 1.0) -> str:
    """A share, with one decimal below 10% so that small ones do not read as none."""
    if not whole:
        return NOTHING
    share = 100 * part / whole
    return f"{share:.0f}%" if share >= 10 or share == 0 else f"{share:.1f}%"


def seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def mebibytes(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f} MiB" if value < 1024 else f"{value / 1024:.1f} GiB"


def size(value: float) -> str:
    """A number of bytes."""
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def plain(value: Any) -> str:
    """A value from a recipe or a plan as a person would write it in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return small(value) if 0 < abs(value) < 0.001 else f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)
