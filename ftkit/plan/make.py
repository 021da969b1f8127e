"""Which plan a recipe gets."""

from __future__ import annotations

from ftkit.plan.chat import plan_chat
from ftkit.plan.common import Plan
from ftkit.plan.labelled import plan_labelled
from ftkit.plan.text import plan_text
from ftkit.recipe.load import LoadedRecipe
from ftkit.tasks.section import Classify, Pretrain, Sft


def make_plan(loaded: LoadedRecipe, *, weights: bool) -> Plan:
    """The plan of a recipe's task; ``weights=False`` needs the base's small files only. Raises as each plan does."""
    match loaded.recipe.task:
        case Classify():
            return plan_labelled(loaded, weights=weights)
        case Sft():
            return plan_chat(loaded, weights=weights)
        case Pretrain():
            return plan_text(loaded, weights=weights)
