"""predictions.jsonl of a language model in brief: which texts it finds hard, and how it goes on with some of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

HARDEST = 20
SAMPLES = 20
LONGEST_TEXT = 4000
# exp of more does not fit a float; no trained model comes near (ftkit/evals/metrics/perplexity.py).
_LARGEST_MEAN = 690.0


@dataclass(frozen=True, slots=True)
class Hard:
    """A window that the model predicts badly, with the perplexity of the model and of the base on it."""

    id: str
    text: str
    cut: bool
    perplexity: float
    baseline: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The start of a test text, how the trained model and the base go on, and how the text does."""

    id: str
    prompt: str
    prediction: str
    baseline: str | None
    reference: str | None


@dataclass(frozen=True, slots=True)
class Texts:
    """All windows in brief. ``worst``: those with the highest negative log-likelihood a byte (a token without bytes).

    ``improved``: windows that the model predicts better than the base; None where there is no base.
    """

    windows: int
    worst: tuple[Hard, ...]
    samples: tuple[Sample, ...]
    improved: int | None


def is_window(line: Mapping[str, Any]) -> bool:
    """Whether a line of predictions.jsonl is a language model's."""
    return "nll" in line


def read_texts(lines: Iterable[Mapping[str, Any]]) -> Texts:
    """One pass that keeps the hardest windows only; a line without its figures is passed over."""
    windows = improved = paired = 0
    worst: list[tuple[float, int, Mapping[str, Any]]] = []
    samples: list[Sample] = []
    for line in lines:
        if not (_number(line.get("nll")) and _number(line.get("tokens"))):
            continue
        windows += 1
        if _number(line.get("baseline_nll")):
            paired += 1
            improved += line["nll"] < line["baseline_nll"]
        if line.get("prompt") is not None and line.get("prediction") is not None and len(samples) < SAMPLES:
            samples.append(_sample(line))
        count = line["bytes"] if _number(line.get("bytes")) else line["tokens"]
        if count > 0 and line["tokens"] > 0:
            # Of equally hard windows the earlier goes first, so that the choice is the same every time.
            item = (line["nll"] / count, -windows, line)
            (heapq.heappush if len(worst) < HARDEST else heapq.heappushpop)(worst, item)
    hardest = tuple(_hard(line) for _, _, line in sorted(worst, key=lambda item: item[:2], reverse=True))
    return Texts(windows, hardest, tuple(samples), improved if paired else None)


def _hard(line: Mapping[str, Any]) -> Hard:
    text = str(line.get("input") or "")
    baseline = line.get("baseline_nll")
    return Hard(
        id=str(line.get("id", "")),
        text=text[:LONGEST_TEXT],
        cut=len(text) > LONGEST_TEXT,
        perplexity=_perplexity(line["nll"], line["tokens"]),
        baseline=_perplexity(baseline, line["tokens"]) if _number(baseline) else None,
    )


def _sample(line: Mapping[str, Any]) -> Sample:
    baseline, reference = line.get("baseline"), line.get("reference")
    return Sample(
        id=str(line.get("id", "")),
        prompt=str(line["prompt"])[-LONGEST_TEXT:],
        prediction=str(line["prediction"])[:LONGEST_TEXT],
        baseline=None if baseline is None else str(baseline)[:LONGEST_TEXT],
        reference=None if reference is None else str(reference)[:LONGEST_TEXT],
    )


def _perplexity(nll: float, tokens: float) -> float:
    return math.exp(min(nll / tokens, _LARGEST_MEAN))


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
