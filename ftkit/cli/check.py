"""``ftkit check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftkit.console import Console
from ftkit.pipeline import say_plan
from ftkit.plan import make_plan
from ftkit.recipe.load import load


def check_recipe(recipe: Path, overrides: Sequence[str], *, json: bool) -> None:
    """Checks recipe and data, and prints what would be trained on. Loads no weights."""
    console = Console()
    plan = make_plan(load(recipe, overrides), weights=False)
    if json:
        console.json(plan.document(None, None))
        return
    say_plan(plan, console)
    checks = plan.preflight
    lines = [f"{recipe} holds."]
    for split, counts in checks.counts.items():
        shown = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        lines.append(f"  {split:6} {checks.rows[split]:>8,} rows   {shown}")
    for split, cut in checks.truncated.items():
        longest = checks.lengths[split].longest if split in checks.lengths else 0
        lines.append(f"  {split:6} {cut:>8,} rows longer than {plan.max_length} tokens (longest {longest:,})")
    lines.append(f"Next: ftkit run {recipe}")
    console.result("\n".join(lines))
