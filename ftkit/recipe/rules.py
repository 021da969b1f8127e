"""What must hold between keys that are each valid by themselves. Each function yields what does not, and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftkit.data.section import Data, parse_share
from ftkit.evals.section import Eval, Gate
from ftkit.recipe.tree import Key
from ftkit.tasks.section import Task

Broken = tuple[Key, str]
"""The key, relative to the section that the rule is about, and the message."""

_SINGLE_LABEL_ONLY = ("mcc",)
_SMALLEST = {"mcc": -1.0}
_UNBOUNDED = ("log_loss",)
_FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")  # a hub id or a folder may hold all three splits


def of_task(task: Task) -> Iterator[Broken]:
    labels = task.labels
    if labels is not None:
        for index, label in enumerate(labels):
            if not label.strip():
                yield ("labels", index), "is empty. Write the label as it stands in the data."
        yield from _repeated("labels", labels)
    if isinstance(task.class_weights, dict) and labels is not None:
        for label in task.class_weights:
            if label not in labels:
                yield ("class_weights", label), f"is no label of task.labels. Labels: {', '.join(labels)}."
        without = [label for label in labels if label not in task.class_weights]
        if without:
            yield ("class_weights",), f"no weight for {', '.join(without)}. Give each label one."


def of_data(data: Data) -> Iterator[Broken]:
    sources = {"train": _listed(data.train), "valid": _listed(data.valid), "test": _listed(data.test)}
    yield from _misplaced_shares(sources)
    for name, earlier in (("valid", "train"), ("test", "train"), ("test", "valid")):
        for index, source in enumerate(sources[name]):
            if source.endswith(_FILES) and source in sources[earlier]:
                key = (name,) if isinstance(getattr(data, name), str) else (name, index)
                yield key, f"{source} is also in data.{earlier}. Rows that are measured on must be others: remove one."


def of_eval(section: Eval, task: Task | None) -> Iterator[Broken]:
    metrics = section.metrics or ()
    yield from _repeated("metrics", metrics)
    if task is None:
        return
    for index, metric in enumerate(metrics):
        if task.multi_label and metric in _SINGLE_LABEL_ONLY:
            yield ("metrics", index), f"{metric} needs one label a row, and task.multi_label is true. Remove it."
    if section.threshold == "tune" and not task.multi_label and len(task.labels or ()) > 2:
        yield ("threshold",), "tune needs two labels, or task.multi_label: true. Remove it: the likeliest label wins."


def of_gate(gate: Gate, section: Eval | None, task: Task | None) -> Iterator[Broken]:
    for metric, bound in gate.items():
        if section is not None and section.metrics is not None and metric not in section.metrics:
            yield (metric,), f"is not measured. Add {metric} to eval.metrics ({', '.join(section.metrics)})."
        elif task is not None and task.multi_label and metric in _SINGLE_LABEL_ONLY:
            yield (metric,), f"{metric} needs one label a row, and task.multi_label is true. Remove it."
        low = _SMALLEST.get(metric, 0.0)
        if bound.min is not None and bound.min > 1 and metric not in _UNBOUNDED:
            yield (metric, "min"), f"got {bound.min:g}, and {metric} is at most 1. {_fraction(bound.min)}"
        if bound.max is not None and bound.max < low:
            yield (metric, "max"), f"got {bound.max:g}, and {metric} is at least {low:g}. Write a larger number."
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            yield (metric, "max"), f"got {bound.max:g}, below min ({bound.min:g}), so nothing passes. Remove one."


def _fraction(value: float) -> str:
    return f"Write {value / 100:g}." if value <= 100 else "Write a number of at most 1."


def _listed(sources: str | tuple[str, ...]) -> tuple[str, ...]:
    return (sources,) if isinstance(sources, str) else sources


def _misplaced_shares(sources: dict[str, tuple[str, ...]]) -> Iterator[Broken]:
    for name, values in sources.items():
        for index, value in enumerate(values):
            if parse_share(value) is not None and (name == "train" or len(values) > 1):
                key: Key = (name,) if len(values) == 1 else (name, index)
                where = "valid and test can be a share of train" if name == "train" else "a share stands alone"
                yield key, f"got {value}, and {where}. Write a file, a folder or a hub id."


def _repeated(name: str, values: Sequence[str]) -> Iterator[Broken]:
    for index, value in enumerate(values):
        first = values.index(value)
        if first < index:
            yield (name, index), f"{value} stands there twice (also {name}[{first}]). Remove one."
