"""``ftkit check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ftkit.cli import check_answers
from ftkit.cli.bars import histogram
from ftkit.console import Console
from ftkit.data.checks import Preflight
from ftkit.pipeline import say_plan
from ftkit.plan.chat import ChatPlan
from ftkit.plan.common import Plan
from ftkit.plan.labelled import LabelledPlan
from ftkit.plan.make import make_plan
from ftkit.plan.text import TextPlan
from ftkit.recipe.load import load


def check_recipe(recipe: Path, overrides: Sequence[str], *, json: bool) -> None:
    """Checks recipe and data, and prints what would be trained on. Loads no weights."""
    console = Console()
    plan = make_plan(load(recipe, overrides), weights=False)
    if json:
        console.json(_document(plan, Console(quiet=True)))
        return
    say_plan(plan, console)
    data, found = _document(plan, console)["data"], list[str]()
    if isinstance(plan, LabelledPlan):
        found += _of_rows(plan)
        if "mask" in data:
            console.result(check_answers.learned(plan.splits.train, data))
            found += check_answers.of_words(data)
    elif isinstance(plan, TextPlan):
        found += _of_texts(plan)
    elif isinstance(plan, ChatPlan):
        console.result(check_answers.learned(plan.sides["train"].rows, data))
        found += check_answers.of_conversations(plan, data)
    console.result("\n".join([f"{recipe} holds.", *found, f"Next: ftkit run {recipe}"]))


def _document(plan: Plan, console: Console) -> dict[str, Any]:
    """plan.json as far as a check can tell. What is learned of words as labels depends on the tokenizer."""
    if isinstance(plan, LabelledPlan) and plan.task.words is not None:
        from ftkit.classify.work import ClassifyWork

        return ClassifyWork(plan).prepare(None, None, console)
    return plan.document(None, None)


def _of_rows(plan: LabelledPlan) -> Iterator[str]:
    yield from _rows(plan.preflight)
    yield from _leakage(plan.preflight)
    lengths = plan.preflight.lengths
    if not lengths:
        yield f"  the base has no tokenizer.json to count tokens with; rows are cut at {plan.max_length}"
        return
    yield f"  tokens of the train rows (longest {lengths['train'].longest:,}, mean {lengths['train'].mean:g})"
    yield from histogram(lengths["train"])
    cut = ", ".join(f"{count:,} of {split}" for split, count in plan.preflight.truncated.items())
    yield f"  rows longer than {plan.max_length} tokens, which are cut: {cut}"


def _of_texts(plan: TextPlan) -> Iterator[str]:
    for side, documents in plan.corpus.named().items():
        yield f"  {side:6} {len(documents):>8,} documents   {documents.bytes:>13,} bytes"
    for step in (each for each in plan.corpus.steps if each.changed or each.dropped):
        yield f"  cleaning: {step.step}: {step.changed:,} changed, {step.dropped:,} left out"
    if plan.lengths is None:
        yield "  the tokenizer is trained in the run: tokens cannot be counted yet"
        return
    counted = f"{plan.lengths.rows:,} train documents"
    yield f"  tokens of {counted} (longest {plan.lengths.longest:,}, mean {plan.lengths.mean:g})"
    yield from histogram(plan.lengths)
    yield f"  cut into pieces of {plan.max_length} tokens at most; nothing is left out"


def _rows(checks: Preflight) -> Iterator[str]:
    for split, counts in checks.counts.items():
        if checks.rows[split]:
            shown = ", ".join(f"{label} {count:,}" for label, count in counts.items())
            yield f"  {split:6} {checks.rows[split]:>8,} rows   {shown}"


def _leakage(checks: Preflight) -> Iterator[str]:
    for leak in checks.leakage:
        yield f"  {leak.split} rows that stand in {leak.within}: {leak.exact:,} word for word, {leak.near:,} nearly"
