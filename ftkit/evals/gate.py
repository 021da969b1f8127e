"""The gate: whether the candidate's scores, and its difference to the baseline, are what the recipe asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ftkit.evals.section import LOWER_IS_BETTER, Bound, Gate, MetricName
from ftkit.records import Comparison, GateReason, ModelScores, Verdict

# A difference that reads as 0.000: no useful number of rows would decide it.
NOTHING = 5e-4


def judge(
    gate: Gate,
    candidate: ModelScores,
    baseline: ModelScores | None,
    comparisons: Sequence[Comparison],
    *,
    n: int,
    unit: str = "row",
) -> Verdict:
    """Each condition judged, in the recipe's order; passed where all hold, and where there is none.

    ``comparisons``: candidate minus baseline. ``min`` and ``max`` are judged on the measured value, ``beat`` on the 95%
    interval of the paired difference. A metric without a value fails. ``undecided`` names the metrics that fail only
    because ``n`` rows are too few to tell a difference in the right direction from chance; ``unit``: what they are.
    """
    reasons: list[GateReason] = []
    undecided: list[str] = []
    for metric, bound in gate.items():
        limits = list(_limits(metric, bound, candidate))
        reasons += limits
        if bound.beat is None:
            continue
        found = next((item for item in comparisons if item.metric == metric), None)
        rows = None if found is None else rows_to_decide(found, n)
        reasons.append(_beat(metric, candidate, baseline, found, n, rows, unit))
        if rows is not None and all(reason.passed for reason in limits):
            undecided.append(metric)
    return Verdict(all(reason.passed for reason in reasons), tuple(reasons), tuple(undecided))


def rows_to_decide(comparison: Comparison, n: int) -> int | None:
    """About how many rows would decide, where the difference has the right sign and its interval still holds 0.

    An interval narrows with the square root of the rows, so n * (half-width / difference)^2 of them bring its near end
    to 0; half-width is the distance to that end. Rounded up to two digits. None where nothing is undecided.
    """
    sign = -1 if comparison.metric in LOWER_IS_BETTER else 1
    ahead = sign * comparison.difference
    worst = min(sign * end for end in comparison.ci95)
    if ahead < NOTHING or worst > 0:
        return None
    needed = max(n * ((ahead - worst) / ahead) ** 2, n + 1)
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / step) * step


def _limits(metric: MetricName, bound: Bound, candidate: ModelScores) -> Iterator[GateReason]:
    """The conditions on the measured value."""
    value = candidate.metrics.get(metric)
    for word, limit in (("at least", bound.min), ("at most", bound.max)):
        if limit is None:
            continue
        need = f"{word} {_limit(limit)}"
        if value is None:
            yield GateReason(metric, need, _missing(metric, candidate), False)
            continue
        passed = value >= limit if word == "at least" else value <= limit
        interval = candidate.ci95.get(metric)
        beside = f" (95% {_figure(interval[0])} to {_figure(interval[1])})" if interval else ""
        yield GateReason(metric, need, _value(value, limit) + beside, passed)


def _beat(
    metric: MetricName,
    candidate: ModelScores,
    baseline: ModelScores | None,
    found: Comparison | None,
    n: int,
    rows: int | None,
    unit: str,
) -> GateReason:
    """The condition on the paired difference to the baseline."""
    need = "to beat the baseline"
    ours = candidate.metrics.get(metric)
    theirs = None if baseline is None else baseline.metrics.get(metric)
    if ours is None:
        return GateReason(metric, need, _missing(metric, candidate), False)
    if baseline is None or theirs is None:
        missing = "no baseline" if baseline is None else f"{_missing(metric, baseline)} for the baseline"
        return GateReason(metric, need, f"{_figure(ours)}, {missing}", False)
    against = f"{_figure(ours)} against {_figure(theirs)}"
    if found is None:
        return GateReason(metric, need, f"{against}; {n:,} test {unit}s are too few to compare", False)
    low, high = found.ci95
    passed = high < 0 if metric in LOWER_IS_BETTER else low > 0
    got = f"{against}, difference {_figure(found.difference, '+')} (95% {_figure(low, '+')} to {_figure(high, '+')})"
    if rows is not None:
        got += f"; {n:,} test {unit}s are too few to decide, about {rows:,} would"
    return GateReason(metric, need, got, passed)


def _missing(metric: MetricName, scores: ModelScores) -> str:
    return "undefined on these rows" if metric in scores.metrics else "not measured"


def _limit(limit: float) -> str:
    """A limit as a person writes it, with two decimals at least below 1,000: 0.80, 0.125."""
    if abs(limit) >= 1000 and limit == round(limit):
        return f"{limit:,.0f}"
    return f"{limit:.2f}" if round(limit, 2) == limit else f"{limit:g}"


def _figure(value: float, sign: str = "") -> str:
    """Three decimals; none from 1,000 on, as a perplexity may be."""
    return f"{value:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign},.0f}"


def _value(value: float, limit: float) -> str:
    """Three decimals, and more where these would show a value on the wrong side of its limit (0.7996 as 0.800)."""
    for decimals in range(3 if abs(value) < 1000 else 0, 16):
        shown = round(value, decimals)
        if (shown >= limit) == (value >= limit) and (shown <= limit) == (value <= limit):
            return f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:,.{decimals}f}"
    return repr(value)
