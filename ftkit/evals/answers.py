"""Scores the answers of one model on the test rows, and compares two on the same rows.

Takes texts and arrays and knows nothing of models, files or recipes other than its own section. A row is a prompt with
one right answer or several: what the model generated is held against all of them, its likelihood is that of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ftkit.evals import statistics
from ftkit.evals.bootstrap import FEWEST, Drawn, intervals, paired, resample
from ftkit.evals.loading import AnswerMetric, RowMetric, load_answer_metrics, load_language_metrics
from ftkit.evals.section import GENERATED, Eval, MetricName, selected_answer_metrics
from ftkit.records import Comparison, ModelScores

if TYPE_CHECKING:
    from ftkit.evals.statistics import Bools, Floats, Integers


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """A model's scores, and what a paired comparison needs of it.

    ``rows``: of each metric that says something of one row, its value there [n]. ``resampled``: each metric in each
    resample [B]. ``draws`` names the rows, resamples and seed: two models are paired only where these and the
    ``references`` are equal. ``tokens`` [n]: of the first reference of each row.
    """

    scores: ModelScores
    rows: Mapping[MetricName, Floats]
    resampled: Mapping[MetricName, Floats]
    draws: tuple[int, int, int]
    references: tuple[tuple[str, ...], ...]
    tokens: Integers


def score_answers(
    *,
    references: Sequence[Sequence[str]],
    predictions: Sequence[str] | None,
    ended: Bools | None,
    nll: Floats,
    tokens: Integers,
    bytes_: Integers,
    settings: Eval,
    seed: int,
    resamples: int = statistics.RESAMPLES,
) -> ScoredAnswers:
    """Every selected metric with its 95% interval by the percentile bootstrap over rows.

    ``predictions`` and ``ended`` [n]: the generated answers, and which of them ended by themselves; None where no
    selected metric needs them. ``nll``, ``tokens`` and ``bytes_`` [n]: nats, tokens and bytes of the first reference. A
    metric that these rows leave undefined is None; it has no interval, nor has any of fewer than ``FEWEST`` rows or
    with 0 ``resamples``.
    Raises RecipeError for a metric of another task.
    """
    import numpy as np

    selected = selected_answer_metrics(settings)
    _check(references, predictions, ended, selected)
    _check_likelihoods(nll, tokens, bytes_, len(references))
    generated = load_answer_metrics(name for name in selected if name in GENERATED)
    held = {name: _statistics(metric, references, predictions, ended) for name, metric in generated.items()}
    by_name: dict[MetricName, Drawn] = {
        name: partial(metric.resample, nll=nll, tokens=tokens, bytes=bytes_)
        for name, metric in load_language_metrics(name for name in selected if name not in GENERATED).items()
    }
    by_name |= {name: partial(metric.resample, statistics=held[name]) for name, metric in generated.items()}
    # Every row once is the metric itself, and what is slow (rouge_l grows with the square of a text) is done once.
    found = {name: float(by_name[name](np.ones((1, len(references))))[0]) for name in selected}
    values = {name: None if np.isnan(value) else value for name, value in found.items()}
    enough = len(references) >= FEWEST and resamples > 0
    defined = {name: by_name[name] for name, value in values.items() if enough and value is not None}
    resampled = resample(defined, len(references), seed=seed, resamples=resamples)
    scores = ModelScores(
        metrics={name: value for name, value in values.items()},
        ci95=intervals(resampled),
        per_class=(),
        confusion=(),
    )
    rows = {name: metric.each(held[name]) for name, metric in generated.items() if isinstance(metric, RowMetric)}
    draws = (len(references), resamples, seed)
    return ScoredAnswers(scores, rows, resampled, draws, tuple(tuple(texts) for texts in references), tokens)


def compare_answers(first: ScoredAnswers, second: ScoredAnswers) -> tuple[Comparison, ...]:
    """Each metric's difference, first minus second, by the paired bootstrap on the same rows.

    A metric that is undefined for one of the two is left out, and so is perplexity where their tokenizers cut the
    references differently; of fewer than ``FEWEST`` rows, all are. Raises ValueError where the two are not paired.
    """
    import numpy as np

    found = paired(first, second)
    if first.references != second.references:
        raise ValueError("not paired: the references of the two differ")
    alike = np.array_equal(first.tokens, second.tokens)
    return tuple(item for item in found if alike or item.metric != "perplexity")


def _statistics(
    metric: AnswerMetric, references: Sequence[Sequence[str]], predictions: Sequence[str] | None, ended: Bools | None
) -> Floats:
    return metric.statistics(references=references, predictions=predictions, ended=ended)


def _check(
    references: Sequence[Sequence[str]],
    predictions: Sequence[str] | None,
    ended: Bools | None,
    selected: Sequence[MetricName],
) -> None:
    """A caller that mixes up rows must not get a score."""
    rows = len(references)
    if rows == 0 or not all(references):
        raise ValueError("nothing to score: there must be rows, and a reference for each")
    if any(isinstance(texts, str) for texts in references):
        raise ValueError("references must be a list of texts for each row")
    if predictions is None or ended is None:
        needed = [name for name in selected if name in GENERATED]
        if needed or (predictions is None) != (ended is None):
            raise ValueError(f"predictions and ended are needed together, and for {', '.join(needed) or 'nothing'}")
    elif len(predictions) != rows or ended.shape != (rows,):
        raise ValueError(f"{len(predictions)} predictions and {ended.shape} ended for {rows} rows")


def _check_likelihoods(nll: Floats, tokens: Integers, bytes_: Integers, rows: int) -> None:
    import numpy as np

    if any(array.shape != (rows,) for array in (nll, tokens, bytes_)):
        shapes = ", ".join(str(array.shape) for array in (nll, tokens, bytes_))
        raise ValueError(f"nll, tokens and bytes must be of shape ({rows},); they are {shapes}")
    if not np.isfinite(nll).all() or nll.min() < -1e-3:  # rounding
        raise ValueError("a negative log-likelihood is below 0 or not finite")
    if tokens.min() < 0 or bytes_.min() < 0:
        raise ValueError("an answer has fewer than 0 tokens or bytes")
