"""predictions.jsonl of a language model in brief: which texts it finds hard, and how it goes on with some of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeGuard

HARDEST = 20
SAMPLES = 20
LONGEST_TEXT = 4000
# exp of more does not fit a float; no trained model comes near (ftkit/evals/metrics/perplexity.py).
_LARGEST_MEAN = 690.0


@dataclass(frozen=True, slots=True)
class Hard:
    """A document that the model predicts badly over all of its windows, with the perplexity of model and base on it.

    ``text``: its first window; ``cut``: there is more of it.
    """

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
    """All windows in brief. ``worst``: the documents with the highest negative log-likelihood a byte (else a token).

    ``improved``: windows that the model predicts better than the base; None where there is no base.
    """

    windows: int
    documents: int
    worst: tuple[Hard, ...]
    samples: tuple[Sample, ...]
    improved: int | None


def is_window(line: Mapping[str, Any]) -> bool:
    """Whether a line of predictions.jsonl is a language model's."""
    return "nll" in line


def read_texts(lines: Iterable[Mapping[str, Any]]) -> Texts:
    """One pass that keeps the hardest documents only; a line without its figures is passed over."""
    windows = documents = improved = paired = 0
    worst: list[tuple[float, int, Mapping[str, Any]]] = []
    samples: list[Sample] = []
    for document in _by_document(lines):
        documents += 1
        for line in document:
            windows += 1
            if is_number(line.get("baseline_nll")):
                paired += 1
                improved += line["nll"] < line["baseline_nll"]
            if line.get("prompt") is not None and line.get("prediction") is not None and len(samples) < SAMPLES:
                samples.append(_sample(line))
        whole = _whole(document)
        count = whole["tokens"] if whole["bytes"] is None else whole["bytes"]
        if count > 0 and whole["tokens"] > 0:
            # Of equally hard documents the earlier goes first, so that the choice is the same every time.
            item = (whole["nll"] / count, -documents, whole)
            (heapq.heappush if len(worst) < HARDEST else heapq.heappushpop)(worst, item)
    hardest = tuple(_hard(line) for _, _, line in sorted(worst, key=lambda item: item[:2], reverse=True))
    return Texts(windows, documents, hardest, tuple(samples), improved if paired else None)


def _by_document(lines: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The windows of each document, which stand one after the other: "wiki.txt:1#1", "wiki.txt:1#2"."""
    whole = (line for line in lines if is_number(line.get("nll")) and is_number(line.get("tokens")))
    for _, windows in groupby(whole, key=lambda line: str(line.get("id", "")).rpartition("#")[0]):
        yield list(windows)


def _whole(windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a document's windows together, with its first window's text."""

    def total(name: str) -> float | None:
        values = [window.get(name) for window in windows]
        return sum(value for value in values if is_number(value)) if all(map(is_number, values)) else None

    first = windows[0]
    return {
        "id": str(first.get("id", "")).rpartition("#")[0] or str(first.get("id", "")),
        "input": str(first.get("input") or "")[: LONGEST_TEXT + 1],
        "more": len(windows) > 1,
        **{name: total(name) for name in ("nll", "tokens", "bytes", "baseline_nll")},
    }


def _hard(line: Mapping[str, Any]) -> Hard:
    text = str(line.get("input") or "")
    baseline = line.get("baseline_nll")
    return Hard(
        id=str(line.get("id", "")),
        text=text[:LONGEST_TEXT],
        cut=line["more"] or len(text) > LONGEST_TEXT,
        perplexity=perplexity(line["nll"], line["tokens"]),
        baseline=perplexity(baseline, line["tokens"]) if is_number(baseline) else None,
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


def perplexity(nll: float, tokens: float) -> float:
    """exp of the mean negative log-likelihood of a token, in nats."""
    return math.exp(min(nll / tokens, _LARGEST_MEAN))


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
