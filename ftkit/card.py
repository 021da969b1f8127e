"""The card of a run, README.md: what was made of what, how good it is, how to use it and how to repeat it."""

from __future__ import annotations

from ftkit.report import numbers, wording
from ftkit.report.story import Story
from ftkit.report.tables import compared, results
from ftkit.report.untrusted import fenced, markdown


def render_card(story: Story) -> str:
    """Markdown; text that comes from users formats nothing and ends no line."""
    headline = wording.headline(story)
    sections = [
        [f"# {markdown(story.name)}", "", f"**{markdown(headline.label)}.** {markdown(headline.sentence)}"],
        _facts(story),
        _results(story),
        _verdict(story),
        _use(story),
        _repeat(story),
        _limits(story),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _facts(story: Story) -> list[str]:
    if story.plan is None:
        return []
    licence = story.planned("base", "licence") or "not declared"
    lines = [
        "## Made from",
        "",
        f"- Base: {markdown(str(story.planned('base', 'ref')))} ({markdown(str(story.planned('base', 'source')))}), "
        f"licence {markdown(str(licence))}, weights SHA-256 `{story.planned('base', 'sha256')}`",
    ]
    splits = story.planned("data", "splits") or {}
    lines.append(f"- Rows: {', '.join(f'{numbers.count(rows)} {split}' for split, rows in splits.items())}")
    labels = story.planned("data", "labels") or []
    lines.append(f"- Labels: {', '.join(markdown(str(label)) for label in labels)}")
    for file in story.planned("data", "files") or []:
        lines.append(
            f"- Data: {markdown(str(file['path']))}, SHA-256 `{file['sha256']}`; its licence is its owner's to say"
        )
    return lines


def _results(story: Story) -> list[str]:
    if story.eval is None:
        return []
    found = results(story.eval)
    names = [row.name for row in found.rows]
    lines = [
        "## Results",
        "",
        f"On {numbers.rows(story.eval.n)} held out; 95% bootstrap intervals; best to the digits in bold.",
        "",
    ]
    lines += [f"| metric | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for index, metric in enumerate(found.metrics):
        cells = []
        for row in found.rows:
            cell = row.cells[index]
            value = f"**{cell.value}**" if cell.best else cell.value
            cells.append(value if cell.interval == numbers.NOTHING else f"{value} ({cell.interval})")
        lines.append(f"| {numbers.metric_name(metric)} | {' | '.join(cells)} |")
    pairs = [item for item in compared(story.eval) if item.second == "baseline"]
    return [*lines, "", *(f"- {wording.compared_line(item, story.eval.task)}" for item in pairs)]


def _verdict(story: Story) -> list[str]:
    if story.eval is None:
        return []
    gate = story.eval.gate
    lines = ["## Gate and proof", ""]
    lines += [
        f"- {wording.reason_line(reason)}: {'holds' if reason.passed else 'does not hold'}" for reason in gate.reasons
    ]
    if not gate.reasons:
        lines.append(f"- {wording.NO_GATE}")
    if undecided := wording.undecided_line(gate):
        lines.append(f"- {undecided}")
    if story.merge is not None:
        lines.append(f"- {wording.proof_line(story.merge)}")
    return lines


def _use(story: Story) -> list[str]:
    if not story.has_adapter:
        return []
    base = str(story.planned("base", "ref"))
    labels = len(story.planned("data", "labels") or [])
    adapter = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({base!r}, num_labels={labels})\n"
        'model = PeftModel.from_pretrained(model, "adapter").eval()  # label names: adapter/labels.json'
    )
    lines = ["## Use", "", "The adapter, with peft:", "", fenced(adapter, "python")]
    if story.has_merged:
        merged = 'from transformers import pipeline\nprint(pipeline("text-classification", model="merged")("…"))'
        lines += ["", "The merged model, with transformers:", "", fenced(merged, "python")]
    return lines


def _repeat(story: Story) -> list[str]:
    if story.plan is None:
        return []
    command = str(story.planned("command"))
    lines = ["## Repeat", "", fenced(command, "sh")]
    if story.recipe is not None:
        lines += ["", fenced(story.recipe.rstrip("\n"), "yaml")]
    versions = story.planned("versions") or {}
    return [*lines, "", f"Made with {', '.join(f'{name} {number}' for name, number in versions.items())}."]


def _limits(story: Story) -> list[str]:
    findings = [found for found in story.planned("data", "findings") or [] if found["level"] == "warning"]
    if not findings:
        return []
    return ["## Known limits", "", *(f"- {markdown(str(found['message']))}" for found in findings)]
