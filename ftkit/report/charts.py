"""Charts as inline SVG. Each takes values and returns markup that may stand in an HTML page as it is.

Colours are written as marks and replaced by CSS variables afterwards, so one chart suits light, dark and print. Text
stays text, so it takes the page's font. Nothing in the output depends on time or on other charts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ftkit.records import Reliability
from ftkit.report import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib needs real colours; these are used nowhere else and stand for the variables of report.css.
INK, FAINT, MAIN, OTHER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)", MAIN: "var(--main)", OTHER: "var(--other)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}
_POINTS = 240
_SIZE = (4.6, 3.0)
Points = Sequence[tuple[float, float]]


def losses(train: Points, valid: Points, best_step: int | None, *, from_zero: bool = True) -> str:
    """Training loss, as logged and smoothed, with the validation loss beside it.

    ``from_zero``: the axis begins at 0. A language model's loss stays far above, and its fall would not be seen.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        logged = thinned(train)
        axes.plot(*_columns(logged), color=OTHER, alpha=0.35, linewidth=1)
        axes.plot(*_columns(_smoothed(logged)), color=OTHER, label="training (smoothed)")
        if valid:
            axes.plot(*_columns(thinned(valid)), color=MAIN, marker="o", markersize=4, label="validation")
        _mark_best(axes, best_step)
        axes.set(xlabel="step", ylabel="loss")
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.legend()

    return _svg("losses", draw, f"Training loss over {len(train)} logged steps, and validation loss")


def validation(metric: str, points: Points, best_step: int | None, *, unit: str = "row") -> str:
    """One metric on the validation rows, or whatever ``unit`` they are."""
    name = numbers.metric_name(metric)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*_columns(thinned(points)), color=MAIN, marker="o", markersize=4)
        _mark_best(axes, best_step, label="checkpoint kept")
        axes.set(xlabel="step", ylabel=f"{name} on validation {unit}s")
        if best_step is not None:
            axes.legend(loc="upper right" if numbers.lower_is_better(metric) else "lower right")

    return _svg("validation", draw, f"{name} on the validation {unit}s after {len(points)} validations")


def reliability(bins: Mapping[str, Sequence[Reliability]]) -> str:
    """How often an answer is right against how sure it is, with the number of rows below. Up to two models."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
        for position, (name, found) in enumerate(bins.items()):
            filled = [item for item in found if item.count]
            confidence = [item.confidence for item in filled]
            colour, marker = ((MAIN, "o"), (OTHER, "s"))[position % 2]
            upper.plot(confidence, [item.accuracy for item in filled], color=colour, marker=marker, label=name)
            lower.bar(
                [at + (position - 0.5) * 0.022 * (len(bins) > 1) for at in confidence],
                [item.count for item in filled],
                width=0.02,
                color=colour,
            )
        upper.set(ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.04))
        upper.legend(loc="upper left")
        lower.set(xlabel="confidence", ylabel="rows")

    return _svg("reliability", draw, "Reliability diagram: share of right answers against confidence", (4.6, 3.8))


def scores(metric: str, found: Sequence[tuple[str, float, tuple[float, float] | None, bool]]) -> str:
    """One metric of every model with its 95% interval. ``found``: (name, value, interval, whether it was trained)."""
    name = numbers.metric_name(metric)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (_, value, interval, trained) in enumerate(reversed(found)):
            colour = MAIN if trained else OTHER
            if interval is not None:
                axes.plot(interval, (row, row), color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
            axes.plot(value, row, color=colour, marker="o", markersize=7)
            axes.annotate(numbers.score(value), (value, row), (0, 7), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(found)), [item[0] for item in reversed(found)])
        axes.set(xlabel=f"{name}, with 95% interval", ylim=(-0.5, len(found) - 0.3))
        axes.grid(axis="y", visible=False)

    alt = "; ".join(f"{item[0]} {numbers.score(item[1])} ({numbers.interval(item[2])})" for item in found)
    return _svg("scores", draw, f"{name} by model: {alt}", (7.4, 0.6 + 0.42 * len(found)))


def lengths(
    histogram: Sequence[Mapping[str, int]], max_length: int | None, *, limit: str = "rows are cut at", unit: str = "row"
) -> str:
    """Rows (or documents) by their number of tokens, and ``max_length``, of which ``limit`` says what it is."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        edges = [0, *(item["upto"] for item in histogram)]
        widths = [right - left for left, right in pairwise(edges)]
        axes.bar(edges[:-1], [item["count"] for item in histogram], [0.9 * w for w in widths], align="edge", color=MAIN)
        if max_length is not None:
            axes.axvline(max_length, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"{limit} {max_length}")
            axes.legend()
        axes.set(xlabel=f"tokens in a {unit}", ylabel=f"{unit}s")
        axes.grid(axis="x", visible=False)

    return _svg("lengths", draw, f"Histogram of {unit} lengths in tokens")


def thinned(points: Points) -> Points:
    """At most a few hundred points: the mean of equal stretches, because a chart has no more pixels than that."""
    size = -(-len(points) // _POINTS)
    if size <= 1:
        return points
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in stretches]


def _smoothed(points: Points) -> Points:
    """An exponential mean, corrected for its start."""
    keep = 0.0 if len(points) < 10 else 0.9
    total = weight = 0.0
    out = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append((step, total / weight))
    return out


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _mark_best(axes: Axes, step: int | None, label: str | None = None) -> None:
    if step is not None:
        axes.axvline(step, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=label)


def _svg(name: str, draw: Any, alt: str, size: tuple[float, float] = _SIZE) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        nothing: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}
        canvas.print_svg(out, metadata=nothing)
    return _inline(out.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> str:
    """The drawing alone, with ids of its own, CSS variables for colours and a description for who cannot see it."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=").replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("font-family: 'DejaVu Sans', sans-serif; ", "")
    for mark, variable in _VARIABLES.items():
        svg = svg.replace(mark, variable)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None  # matplotlib always writes one
    width = float(box.group(1).split()[2])
    head = f'<svg class="chart" viewBox="{box.group(1)}" style="max-width: {width * 1.4:.0f}px" role="img" aria-label='
    return re.sub(r"<svg[^>]*>", lambda _: head + f'"{escape(alt)}">', svg, count=1).strip()
