"""The terminal summary of a run: the table of models, what was compared, the verdict, and where things are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftkit.report import numbers, wording
from ftkit.report.story import Story
from ftkit.report.tables import compared, results
from ftkit.report.untrusted import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_summary(story: Story) -> RenderableType:
    """A renderable for rich; copes with every stage that did not run."""
    from rich.console import Group
    from rich.text import Text

    headline = wording.headline(story)
    parts: list[RenderableType] = [
        Text(f"{visible(story.name)}: {headline.label}", style="bold"),
        Text(headline.sentence),
    ]
    if story.eval is not None:
        parts = [_table(story), *(Text(line) for line in _comparisons(story)), Text(""), *parts]
        reasons = [
            f"gate: {wording.reason_line(reason)}: {'holds' if reason.passed else 'DOES NOT HOLD'}"
            for reason in story.eval.gate.reasons
        ]
        parts += [Text(line) for line in (reasons or [wording.NO_GATE])]
        if undecided := wording.undecided_line(story.eval.gate):
            parts.append(Text(undecided))
    if story.merge is not None:
        parts.append(Text(wording.proof_line(story.merge)))
    parts.append(Text(f"folder: {story.folder}    report: {story.folder / 'report.html'}"))
    if story.has_adapter:
        parts.append(Text(f'next: ftkit predict {story.folder} --text "…"'))
    return Group(*parts)


def _table(story: Story) -> RenderableType:
    from rich import box
    from rich.table import Table

    assert story.eval is not None
    found = results(story.eval)
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{numbers.count(story.eval.n)} test rows, 95% intervals", title_justify="left"
    )
    table.add_column("metric", no_wrap=True)
    for row in found.rows:
        table.add_column(row.name, justify="right")
    for index, metric in enumerate(found.metrics):
        cells = []
        for row in found.rows:
            cell = row.cells[index]
            beside = "" if cell.interval == numbers.NOTHING else f"\n[dim]{cell.interval}[/dim]"
            cells.append((f"[bold]{cell.value} *[/bold]" if cell.best else f"{cell.value}  ") + beside)
        table.add_row(numbers.metric_name(metric), *cells)
    table.caption = "* best to the shown digits"
    table.caption_justify = "left"
    return table


def _comparisons(story: Story) -> list[str]:
    assert story.eval is not None
    wanted = {"accuracy", "f1"}
    lines = [item for item in compared(story.eval) if item.metric in wanted and item.second == "baseline"]
    return [wording.compared_line(item, story.eval.task) for item in lines]
