"""What the plans of all tasks have in common: the parts of plan.json that do not depend on what the rows are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ftkit import __version__, provenance
from ftkit.data.findings import Finding
from ftkit.data.splits import SourceFile
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.recipe.load import LoadedRecipe
from ftkit.recipe.rules import READ_BY
from ftkit.recipe.schema import Base, Recipe
from ftkit.recipe.tree import Key
from ftkit.records import Decision, as_json
from ftkit.section import Section

DEFAULT = "default"


class Plan(Protocol):
    """A checked recipe with its data at hand."""

    @property
    def loaded(self) -> LoadedRecipe: ...

    @property
    def files(self) -> BaseFiles | None:
        """The base's; None where the model is made from scratch."""

    @property
    def width(self) -> int | None:
        """Of the model's hidden states, where it is known."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Every value that the recipe leaves open."""

    @property
    def findings(self) -> tuple[Finding, ...]: ...

    @property
    def summary(self) -> str:
        """What the data is, in a line."""

    def document(self, machine: Machine | None, precision: str | None) -> dict[str, Any]:
        """plan.json; without a machine what a check can tell."""


def defaults(recipe: Recipe, decided: Sequence[Decision]) -> tuple[Decision, ...]:
    """The keys that the recipe leaves out, that its task reads, and that keep a fixed value or are decided later."""
    chosen = {decision.key for decision in decided}
    others = {".".join(map(str, key)) for key, tasks in READ_BY.items() if recipe.task.type not in tasks}
    found = (each for each in (*_left_out(recipe), *_merging(recipe)) if each.key not in chosen)
    return tuple(each for each in found if not any(f"{each.key}.".startswith(f"{other}.") for other in others))


def _merging(recipe: Recipe) -> Iterator[Decision]:
    """What a base in 4 bits is merged as, where that is not the recipe's word."""
    if not recipe.merge or recipe.adapter is None:
        return
    if recipe.adapter.init == "loftq":
        yield Decision("merge.into", "dequantised", "a LoftQ adapter holds what 4 bits lose, so it fits them alone")
    elif recipe.merging.into == "auto":
        yield Decision("merge.into", "auto", "the better of full and dequantised on the validation rows is merged")


def _left_out(section: Section, above: str = "") -> Iterator[Decision]:
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{above}{name}"
        if isinstance(value, Section):
            yield from _left_out(value, f"{key}.")
        elif name not in section.model_fields_set and value is not None and value != {}:
            yield Decision(key, value, DEFAULT)


def document(
    loaded: LoadedRecipe,
    decisions: Sequence[Decision],
    *,
    base: dict[str, Any],
    data: dict[str, Any],
    machine: Machine | None,
    precision: str | None,
) -> dict[str, Any]:
    """plan.json around what is the task's own."""
    return {
        "ftkit": __version__,
        "name": loaded.recipe.name,
        "command": provenance.run_command(str(loaded.path), loaded.overrides),
        "created": provenance.now(),
        "recipe": loaded.recipe.model_dump(mode="json"),
        "recipe_sha256": loaded.sha256,
        "decisions": [as_json(decision) for decision in decisions],
        "base": base,
        "data": data,
        "versions": provenance.versions(),
        "machine": {**asdict(machine), "precision": precision} if machine else None,
        "seed": loaded.recipe.train.seed,
    }


def base_document(base: Base, files: BaseFiles, *, weights: bool) -> dict[str, Any]:
    """Where the base was found, and its hash where its weights are at hand."""
    return {
        "ref": base.model,
        "source": files.source,
        "folder": str(files.folder) if files.source == "folder" else None,
        "revision": files.revision,
        "sha256": files.sha256() if weights else None,
        "licence": files.licence(),
    }


def sources_document(sources: Sequence[SourceFile]) -> list[dict[str, Any]]:
    return [
        {"path": file.source, "split": file.split, "sha256": file.sha256, "rows": file.rows, "hub": file.hub}
        for file in sources
    ]


def place(loaded: LoadedRecipe, *key: str) -> tuple[str, str]:
    """Where a key stands, and its name: the first two parts of a Problem."""
    full: Key = key
    return loaded.where(*full), ".".join(key)
