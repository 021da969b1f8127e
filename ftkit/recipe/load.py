"""Loads a recipe: file, ``--set``, preset, schema, rules; and says all that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ftkit.errors import Problem, RecipeError
from ftkit.files import sha256_text
from ftkit.recipe import messages, overrides, presets
from ftkit.recipe.schema import Recipe
from ftkit.recipe.source import read_file
from ftkit.recipe.tree import Flaw, Key

Origin = tuple[str, int]
"""A file as shown in messages, and a line in it; ("--set", n) for the n-th override."""


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe that holds, with the file it came from, byte for byte, and the origin of each of its values."""

    recipe: Recipe
    path: Path
    text: str
    sha256: str
    overrides: tuple[str, ...]
    origins: Mapping[Key, Origin]

    def where(self, *key: str | int) -> str:
        """The place of a key, to stand in messages: "line 4". Of a key that is left out, the section's place."""
        while key not in self.origins:
            key = key[:-1]
        return _place(self.origins[key], str(self.path))


def load(path: Path, overrides_: Sequence[str] = (), *, kept: Path | None = None) -> LoadedRecipe:
    """Reads and checks a recipe; no data is opened. ``overrides_``: texts such as "train.epochs=5".

    ``kept``: the copy that a run has of the recipe, which is read instead of ``path``; its paths are relative to that.
    Raises RecipeError with every problem that can be known from the recipe alone.
    """
    shown = str(path)
    document = read_file(kept or path, shown)
    root, wrong = overrides.apply(document.root, overrides_)
    expanded, unfit = presets.expand(root, path.resolve().parent)
    adapter_failed = bool(unfit) and expanded is root
    flaws = [*document.flaws, *wrong, *unfit]
    try:
        # Strict types with lists for tuples are what pydantic calls JSON mode.
        recipe = Recipe.model_validate_json(json.dumps(expanded.plain()))
    except ValidationError as error:
        found = messages.flaws(error, expanded)
        flaws += [flaw for flaw in found if not (adapter_failed and flaw.subject.split(".")[0] == "adapter")]
    if flaws:
        raise RecipeError.in_file(shown, _problems(flaws, shown))
    return LoadedRecipe(recipe, path, document.text, sha256_text(document.text), tuple(overrides_), expanded.origins())


def _problems(flaws: Iterable[Flaw], recipe: str) -> list[Problem]:
    """The recipe's own first, by line; then those of a preset; then those of the command line."""

    def order(flaw: Flaw) -> tuple[int, Flaw]:
        return (0 if flaw.file == recipe else 2 if flaw.file == overrides.SET else 1), flaw

    return [
        Problem(_place((flaw.file, flaw.line), recipe), flaw.subject, flaw.message) for flaw in sorted(flaws, key=order)
    ]


def _place(origin: Origin, recipe: str) -> str:
    file, line = origin
    if file == overrides.SET:
        return overrides.SET
    return f"line {line}" if file == recipe else f"{file} line {line}"
