"""Loads the metric modules through ``evaluate``, offline, and leaves nothing on the disk.

``evaluate.load`` copies a module into a cache before it imports it, and makes a folder for its data. Both go to a
temporary folder of this process (TMPDIR directs it), which is removed when the process ends: never the user's home, and
no two processes share one. The cache of modules has no argument, only the variable HF_MODULES_CACHE, which evaluate
reads once, when it is imported. transformers keeps remote code there as well, so it is imported before the variable is
set (evaluate imports it anyway), and the variable is put back at once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ftkit.evals.section import Average, MetricName

if TYPE_CHECKING:
    from ftkit.evals.statistics import Bools, Floats, Integers

# Metrics that share a file, each a configuration of it; any other is the file of its name.
_SHARED: Mapping[MetricName, str] = {"rouge1": "rouge", "rouge2": "rouge", "rouge_l": "rouge"}


class Metric(Protocol):
    """What a file in metrics/ gives: an ``evaluate.Metric`` that also resamples."""

    def compute(self, **inputs: Any) -> dict[str, float | None]: ...

    def resample(self, weights: Floats, /, **inputs: Any) -> Floats:
        """weights [B, n], how often each row was drawn -> the metric [B], nan where it is undefined."""
        ...


class AnswerMetric(Metric, Protocol):
    """A metric of generated answers: the texts are read once, and ``resample`` takes ``statistics=`` alone."""

    def statistics(self, **inputs: Any) -> Floats:
        """``predictions`` [n], ``references`` [n] of lists and ``ended`` [n] -> what each row adds to sums [n, S]."""
        ...


@runtime_checkable
class RowMetric(Protocol):
    """An answer metric that says something of one row alone."""

    def each(self, statistics: Floats) -> Floats:
        """statistics [n, S] -> the metric of each row [n]."""
        ...


def load_metrics(
    names: Iterable[MetricName], *, labels: int, average: Average, multi_label: bool
) -> dict[MetricName, Metric]:
    """The metrics of these names, set for ``labels`` labels."""
    config_name = f"multilabel-{average}" if multi_label else average
    return {name: _load(name, config_name=config_name, labels=labels) for name in names}


def load_language_metrics(names: Iterable[MetricName]) -> dict[MetricName, Metric]:
    """The metrics of these names, of windows of text: they know neither labels nor averages."""
    return {name: _load(name) for name in names}


def load_answer_metrics(names: Iterable[MetricName]) -> dict[MetricName, AnswerMetric]:
    """The metrics of these names, of generated answers."""
    return {name: _load(name, config_name=name) if name in _SHARED else _load(name) for name in names}


def measure(
    metrics: Mapping[MetricName, Metric], **inputs: Floats | Integers | Bools
) -> dict[MetricName, float | None]:
    """Each metric's value on these rows, by the names of its inputs; None where it is undefined.

    Classification: ``references``, ``predictions``, ``probabilities`` and, where answers were written, ``outside``;
    language: ``nll``, ``tokens`` and ``bytes``.
    """
    evaluate, _ = _evaluate()
    values = evaluate.combine(list(metrics.values())).compute(**inputs)
    return {name: values[name] for name in metrics}


def _load(name: MetricName, **settings: Any) -> Any:
    evaluate, scratch = _evaluate()
    path = Path(__file__).with_name("metrics") / f"{_SHARED.get(name, name)}.py"
    return evaluate.load(str(path), cache_dir=str(scratch / "data"), keep_in_memory=True, **settings)


@cache
def _evaluate() -> tuple[Any, Path]:
    """The library, and this process's folder for what it writes."""
    import datasets  # noqa: F401  reads HF_MODULES_CACHE, as transformers does
    import transformers  # noqa: F401

    scratch = Path(tempfile.mkdtemp(prefix="ftkit-metrics-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    before = os.environ.get("HF_MODULES_CACHE")
    os.environ["HF_MODULES_CACHE"] = str(scratch / "modules")
    try:
        import evaluate
    finally:
        if before is None:
            del os.environ["HF_MODULES_CACHE"]
        else:
            os.environ["HF_MODULES_CACHE"] = before
    return evaluate, scratch
