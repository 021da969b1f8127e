"""A run's folder, read once: all that card, report and summary show. A stage that has not run is None.

The folder may be read long after the run, so nothing here looks at the machine or at the recipe's data.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from ftkit import files
from ftkit.records import EvalReport, TrainSummary
from ftkit.report import tables
from ftkit.report.replies import Replies, is_reply, read_replies
from ftkit.report.texts import LONGEST_TEXT, Texts, is_number, is_window, read_texts

WORST_ERRORS = 20

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Progress:
    """train.jsonl: (step, loss) of training, and for each validation metric its (step, value) points."""

    loss: tuple[tuple[float, float], ...]
    valid: Mapping[str, tuple[tuple[float, float], ...]]
    best_step: int | None


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrongly predicted row. ``confidence``: how sure the model was of what it got wrong.

    ``said``: what a decoder whose labels are words says when it may say anything; None for a head.
    """

    id: str
    text: str
    cut: bool
    reference: tuple[str, ...]
    prediction: tuple[str, ...]
    baseline: tuple[str, ...] | None
    confidence: float
    said: str | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """A classifier's predictions.jsonl in brief. ``against_baseline`` counts rows by (ours right, baseline right).

    ``generated``: rows in which a decoder that writes a label writes the likeliest one; None where none was written.
    """

    rows: int
    wrong: int
    worst: tuple[Mistake, ...]
    against_baseline: Mapping[tuple[bool, bool], int]
    generated: int | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """All stages of one run. ``predictions`` is a classifier's, ``texts`` a language model's, ``replies`` of task sft.

    At most one of the three is there.
    """

    folder: Path
    recipe: str | None
    plan: Mapping[str, Any] | None
    train: TrainSummary | None
    train_log: Progress | None
    eval: EvalReport | None
    predictions: Predictions | None
    texts: Texts | None
    replies: Replies | None
    merge: Mapping[str, Any] | None
    error: str | None
    has_adapter: bool
    has_merged: bool
    has_model: bool
    exports: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Story:
        exports = folder / "export"
        report = _record(EvalReport, folder / "eval.json")
        metric = tables.main_metric(report) if report else None
        predictions, texts, replies = _predictions(folder / "predictions.jsonl", metric)
        return cls(
            folder=folder,
            recipe=_text(folder / "recipe.yaml"),
            plan=_json(folder / "plan.json"),
            train=_record(TrainSummary, folder / "train.json"),
            train_log=_progress(folder / "train.jsonl"),
            eval=report,
            predictions=predictions,
            texts=texts,
            replies=replies,
            merge=_json(folder / "merge.json"),
            error=_text(folder / "error.txt"),
            has_adapter=(folder / "adapter").is_dir(),
            has_merged=(folder / "merged").is_dir(),
            has_model=(folder / "model").is_dir(),
            exports=tuple(sorted(path.name for path in exports.iterdir())) if exports.is_dir() else (),
        )

    def planned(self, *keys: str) -> Any:
        """A value of plan.json by its path of keys; None where any of them is missing."""
        value: Any = self.plan
        for key in keys:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value

    @property
    def name(self) -> str:
        return str(self.planned("name") or self.folder.resolve().parent.name or self.folder.name)

    @property
    def task(self) -> str:
        return self.eval.task if self.eval else str(self.planned("recipe", "task", "type") or "")

    @property
    def kind(self) -> str:
        """What the model does: "classify", "words" (labels that a decoder says), "causal", "masked" or "sft"."""
        if self.task == "pretrain":
            return self.objective
        return "words" if self.planned("recipe", "task", "words") is not None else self.task

    @property
    def objective(self) -> str:
        """What a language model predicts: "causal" or "masked"."""
        return str(self.planned("recipe", "task", "objective") or "causal")

    @property
    def from_scratch(self) -> bool:
        """Whether there is no base: the run's product is a model of its own and not an adapter."""
        return self.planned("base", "source") == "from scratch" or (self.has_model and not self.has_adapter)

    @property
    def unit(self) -> str:
        """What is measured, one by one."""
        return "window" if self.task == "pretrain" else "row"

    @property
    def data_unit(self) -> str:
        """What the data consists of."""
        return "document" if self.task == "pretrain" else "row"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _json(path: Path) -> Any:
    return files.read_json(path) if path.is_file() else None


def _record(kind: type[Record], path: Path) -> Record | None:
    """A record from its JSON; fields that a later version added are passed over."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(files.read_json(path)) if path.is_file() else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. A run that was killed may leave its last line unfinished: reading ends there."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def _progress(path: Path) -> Progress | None:
    if not path.is_file():
        return None
    loss: list[tuple[float, float]] = []
    valid: dict[str, list[tuple[float, float]]] = {}
    best: int | None = None
    for line in _lines(path):
        for metric, value in (line.get("valid") or {}).items():
            if is_number(value):
                valid.setdefault(metric, []).append((line["step"], value))
        if line.get("best"):
            best = line["step"]
        if is_number(line.get("loss")):
            loss.append((line["step"], line["loss"]))
    return Progress(tuple(loss), {metric: tuple(points) for metric, points in valid.items()}, best)


def _predictions(path: Path, metric: str | None) -> tuple[Predictions | None, Texts | None, Replies | None]:
    """The first line tells which of the three it is."""
    if not path.is_file():
        return None, None, None
    lines = _lines(path)
    first = list(islice(lines, 1))
    if any(is_reply(line) for line in first):
        return None, None, read_replies(chain(first, lines), metric)
    if any(is_window(line) for line in first):
        return None, read_texts(chain(first, lines)), None
    return _classified(chain(first, lines)), None, None


def _classified(lines: Iterable[Mapping[str, Any]]) -> Predictions:
    """One pass that keeps the worst errors only: the file may have a line for each of many thousand rows."""
    rows = wrong = written = generated = 0
    worst: list[tuple[float, int, Mapping[str, Any]]] = []
    against: Counter[tuple[bool, bool]] = Counter()
    for rows, line in enumerate(lines, start=1):
        if line.get("baseline") is not None:
            against[line["correct"], _same(line["baseline"], line["reference"])] += 1
        if "generated" in line:
            written += 1
            generated += [line["generated"]] == line["prediction"]
        if line["correct"]:
            continue
        wrong += 1
        # Of equally confident errors the earlier row goes first, so that the choice is the same every time.
        item = (_confidence(line), -rows, line)
        (heapq.heappush if len(worst) < WORST_ERRORS else heapq.heappushpop)(worst, item)
    mistakes = tuple(_mistake(line, confidence) for confidence, _, line in sorted(worst, reverse=True))
    return Predictions(rows, wrong, mistakes, dict(against), generated if written else None)


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    return set(one) == set(other)


def _confidence(line: Mapping[str, Any]) -> float:
    """The largest probability that stands behind a wrong part of the answer: a label given, or one left out."""
    scores = {label: score or 0.0 for label, score in line["scores"].items()}
    reference, prediction = set(line["reference"]), set(line["prediction"])
    given = [scores.get(label, 0.0) for label in prediction - reference]
    # In a single-label task the label left out follows from the one given; it counts only where none was given.
    left_out = [1 - scores.get(label, 0.0) for label in reference - prediction]
    return max(given if len(reference) == 1 and len(prediction) == 1 else given + left_out, default=0.0)


def _mistake(line: Mapping[str, Any], confidence: float) -> Mistake:
    baseline = line.get("baseline")
    return Mistake(
        id=str(line["id"]),
        text=line["input"][:LONGEST_TEXT],
        cut=len(line["input"]) > LONGEST_TEXT,
        reference=tuple(line["reference"]),
        prediction=tuple(line["prediction"]),
        baseline=None if baseline is None else tuple(baseline),
        confidence=confidence,
        said=None if line.get("said") is None else str(line["said"])[:LONGEST_TEXT],
    )
