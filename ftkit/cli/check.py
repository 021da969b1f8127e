"""``ftkit check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ftkit.console import Console
from ftkit.data.checks import Preflight
from ftkit.pipeline import say_plan
from ftkit.plan import Plan, make_plan
from ftkit.recipe.load import load

_BAR = 40


def check_recipe(recipe: Path, overrides: Sequence[str], *, json: bool) -> None:
    """Checks recipe and data, and prints what would be trained on. Loads no weights."""
    console = Console()
    plan = make_plan(load(recipe, overrides), weights=False)
    if json:
        console.json(plan.document(None, None))
        return
    say_plan(plan, console)
    found = (*_rows(plan.preflight), *_leakage(plan.preflight), *_lengths(plan))
    console.result("\n".join([f"{recipe} holds.", *found, f"Next: ftkit run {recipe}"]))


def _rows(checks: Preflight) -> Iterator[str]:
    for split, counts in checks.counts.items():
        if checks.rows[split]:
            shown = ", ".join(f"{label} {count:,}" for label, count in counts.items())
            yield f"  {split:6} {checks.rows[split]:>8,} rows   {shown}"


def _leakage(checks: Preflight) -> Iterator[str]:
    for leak in checks.leakage:
        yield f"  {leak.split} rows that stand in {leak.within}: {leak.exact:,} word for word, {leak.near:,} nearly"


def _lengths(plan: Plan) -> Iterator[str]:
    """The histogram of the train rows' tokens, and how many rows of each split are cut."""
    lengths = plan.preflight.lengths
    if not lengths:
        yield f"  the base has no tokenizer.json to count tokens with; rows are cut at {plan.max_length}"
        return
    most = max(rows for _, rows in lengths["train"].histogram)
    yield f"  tokens of the train rows (longest {lengths['train'].longest:,}, mean {lengths['train'].mean:g})"
    for upto, rows in lengths["train"].histogram:
        bar = "▇" * round(_BAR * rows / most) or ("▏" if rows else "")
        yield f"  up to {upto:>6,} {rows:>8,}   {bar}".rstrip()
    cut = ", ".join(f"{count:,} of {split}" for split, count in plan.preflight.truncated.items())
    yield f"  rows longer than {plan.max_length} tokens, which are cut: {cut}"
