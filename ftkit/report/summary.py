"""The end of `ftkit run` and the answer of `ftkit show`: the run on one screen of a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ftkit.records import EvalReport
from ftkit.report import numbers, rungs, tables, untrusted, wording
from ftkit.report.story import Story

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

_STYLES = {"good": "bold green", "bad": "bold red", "open": "bold yellow", "plain": "bold"}
_MARKS = {"good": "✓", "bad": "✗", "open": "?", "plain": "•"}
_METRIC_WIDTH = 26
_MODEL_WIDTH = 16


class Summary:
    """A rich renderable. The table is cut into as many as the terminal's width needs, never into half figures."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self.story.eval
        if report is not None:
            yield from _tables(report, options.max_width)
            for item in _main_comparisons(report):
                yield _line(wording.compared_line(item, tables.kind_of(report)))
            yield from _rungs(report)
            yield ""
            yield from _gate(report)
        if self.story.merge is not None:
            proved = bool(self.story.merge["passed"])
            yield _marked("good" if proved else "bad", wording.proof_line(self.story.merge, self.story.kind))
        headline = wording.headline(self.story)
        if report is None or self.story.error is not None:
            yield _marked(headline.tone, f"{headline.label}. {headline.sentence}")
        yield ""
        yield from _places(self.story)


class Scores:
    """A rich renderable of a report alone: the table, and every comparison of its most telling metrics."""

    def __init__(self, report: EvalReport) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _tables(self.report, options.max_width)
        shown = _telling(self.report)
        for item in tables.compared(self.report):
            if item.metric in shown:
                yield _line(wording.compared_line(item, tables.kind_of(self.report)))


class Ladder:
    """A rich renderable of the models of a run, with what each weighs, how fast it is and what it lost."""

    def __init__(self, report: EvalReport) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _rungs(self.report)


def scores(report: EvalReport) -> RenderableType:
    """What to print of a report that is no run's own."""
    return Scores(report)


def ladder(report: EvalReport) -> RenderableType:
    """What to print of a run's exports."""
    return Ladder(report)


def render(story: Story) -> RenderableType:
    """What to print. Text from data is shown as text: it cannot set colours or move the cursor."""
    return Summary(story)


def _main_comparisons(report: EvalReport) -> list[tables.Compared]:
    """The most telling metrics against the baseline; the report has all of them."""
    shown = _telling(report)
    baselines = ("baseline", "baseline_plain", "unigram")
    return [item for item in tables.compared(report) if item.second in baselines and item.metric in shown]


def _telling(report: EvalReport) -> set[str | None]:
    """The metric of the headline, accuracy, and the one that says most about written answers."""
    metrics = report.models[tables.main_model(report)].metrics
    return {"accuracy", tables.main_metric(report), tables.answer_metric(metrics)}


def _tables(report: EvalReport, width: int) -> list[Table]:
    found = tables.results(report)
    each = max(1, (width - _METRIC_WIDTH) // _MODEL_WIDTH)
    return [_table(report, found, found.rows[start : start + each]) for start in range(0, len(found.rows), each)]


def _table(report: EvalReport, found: tables.Results, models: Sequence[tables.ResultRow]) -> Table:
    """A line for each metric: the figure of each model, and below it the interval."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(f"{report.split}, {numbers.rows(report.n, report.unit)}", max_width=_METRIC_WIDTH)
    for model in models:
        table.add_column(_line(model.name), justify="right", max_width=_MODEL_WIDTH, overflow="fold")
    for place, metric in enumerate(found.metrics):
        cells = []
        for model in models:
            cell = model.cells[place]
            low_to_high = cell.interval.replace(" to ", "-") if cell.interval != numbers.NOTHING else ""
            cells.append(Text.assemble((cell.value, "bold" if cell.best else ""), (f"\n{low_to_high}", "dim")))
        arrow = " ↓" if numbers.lower_is_better(metric) else ""
        table.add_row(f"{numbers.metric_name(metric)}{arrow}", *cells)
    return table


def _rungs(report: EvalReport) -> Iterator[RenderableType]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = rungs.rungs(report)
    if not found:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(rungs.headings(report)):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for rung in found:
        table.add_row(_line(rung.name), *rung.cells)
    yield ""
    yield table
    if read_by := rungs.read_by(report):
        yield _line(read_by)
    for sentence in rungs.fallen(report):
        yield _marked("open", sentence)


def _gate(report: EvalReport) -> list[Text]:
    if not report.gate.reasons:
        return [_marked("plain", wording.NO_GATE)]
    lines = [_marked("good" if reason.passed else "bad", wording.reason_line(reason)) for reason in report.gate.reasons]
    undecided = wording.undecided_line(report.gate, report.unit)
    if undecided:
        lines.append(_marked("open", f"{undecided}."))
    passed = report.gate.passed
    return [_marked("good" if passed else "bad", "The gate is met." if passed else "The gate is not met."), *lines]


def _places(story: Story) -> list[Text]:
    """Where things are, and what one would do next."""
    run = shlex.quote(untrusted.visible(str(story.folder)))
    present = [name for name in ("report.html", "README.md") if (story.folder / name).is_file()]
    folders = {"adapter": story.has_adapter, "merged": story.has_merged, "model": story.has_model}
    present += [f"{name}/" for name, there in folders.items() if there]
    lines = [_line(f"{run}: {', '.join(present)}") if present else _line(run)]
    if story.eval is not None and (story.has_adapter or story.has_model):
        lines.append(_line(f'next: ftkit predict {run} --text "…"'))
    elif story.error is not None:
        lines.append(_line(f"details: {run}/error.txt"))
    return lines


def _line(text: str) -> Text:
    from rich.text import Text

    return Text(untrusted.visible(text))


def _marked(tone: str, text: str) -> Text:
    from rich.text import Text

    return Text.assemble((f"{_MARKS[tone]} ", _STYLES[tone]), untrusted.visible(text))
