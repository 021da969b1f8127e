"""Which plan a recipe gets."""

from __future__ import annotations

from ftkit.plan.common import Plan
from ftkit.plan.labelled import plan_labelled
from ftkit.plan.text import plan_text
from ftkit.recipe.load import LoadedRecipe
from ftkit.tasks.section import Classify


def make_plan(loaded: LoadedRecipe, *, weights: bool) -> Plan:
    """The plan of a recipe's task; ``weights=False`` needs the base's small files only. Raises as each plan does."""
    task = loaded.recipe.task
    return plan_labelled(loaded, weights=weights) if isinstance(task, Classify) else plan_text(loaded, weights=weights)
