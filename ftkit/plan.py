"""From a recipe to all that is decided before a weight is loaded: the base's files, the rows, and every open value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ftkit import __version__, provenance
from ftkit.data.checks import Preflight, preflight
from ftkit.data.lengths import too_long
from ftkit.data.splits import Splits, examples_sha256, make_splits
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.recipe.load import LoadedRecipe
from ftkit.recipe.schema import Recipe
from ftkit.records import Decision, as_json
from ftkit.section import Section

DEFAULT = "default"
_LENGTH_WITHOUT_TOKENIZER = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked recipe with its data in memory. ``max_length`` and ``labels`` are those that training will use."""

    loaded: LoadedRecipe
    files: BaseFiles
    splits: Splits
    preflight: Preflight
    max_length: int
    decisions: tuple[Decision, ...]

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def labels(self) -> tuple[str, ...]:
        return self.preflight.labels

    @property
    def best_by(self) -> str:
        """The figure of the validation rows that the exported checkpoint is chosen by."""
        return "f1"

    def labels_document(self, thresholds: tuple[float, ...] = ()) -> dict[str, Any]:
        """labels.json: what a program needs to read the scores of the model beside it."""
        return {
            "labels": list(self.labels),
            "multi_label": self.recipe.task.multi_label,
            "thresholds": list(thresholds),
            "max_length": self.max_length,
        }

    def document(self, machine: Machine | None, precision: str | None) -> dict[str, Any]:
        """plan.json."""
        checks = self.preflight
        return {
            "ftkit": __version__,
            "name": self.recipe.name,
            "command": provenance.run_command(str(self.loaded.path), self.loaded.overrides),
            "created": provenance.now(),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_sha256": self.loaded.sha256,
            "decisions": [as_json(decision) for decision in self.decisions],
            "base": {
                "ref": self.recipe.base.model,
                "source": self.files.source,
                "folder": str(self.files.folder) if self.files.source == "folder" else None,
                "revision": self.files.revision,
                "sha256": self.files.sha256() if machine else None,
                "licence": self.files.licence(),
            },
            "data": {
                "files": [
                    {"path": file.source, "split": file.split, "sha256": file.sha256, "rows": file.rows}
                    for file in self.splits.sources
                ],
                "licence": self.recipe.data.licence,
                "sha256": examples_sha256(self.splits.test),
                "splits": checks.rows,
                "labels": list(checks.labels),
                "per_label": checks.counts,
                "lengths": {
                    "max_length": self.max_length,
                    "splits": {name: asdict(lengths) for name, lengths in checks.lengths.items()},
                    "longest": max((lengths.longest for lengths in checks.lengths.values()), default=None),
                    "histogram": _histogram(checks),
                    "truncated": checks.truncated,
                },
                "leakage": [asdict(leak) for leak in checks.leakage],
                "findings": [asdict(finding) for finding in checks.findings],
            },
            "versions": provenance.versions(),
            "machine": {**asdict(machine), "precision": precision} if machine else None,
            "seed": self.recipe.train.seed,
        }


def _histogram(checks: Preflight) -> list[dict[str, int]]:
    train = checks.lengths.get("train")
    return [] if train is None else [{"upto": upto, "count": count} for upto, count in train.histogram]


def make_plan(loaded: LoadedRecipe, *, weights: bool) -> Plan:
    """Opens the data, finds the base and checks both; ``weights=False`` needs the base's small files only.

    Raises DataError and RecipeError for what is wrong with the data or does not fit it, MachineError for a base that
    is not to be had.
    """
    recipe = loaded.recipe
    folder = loaded.path.resolve().parent
    splits = make_splits(recipe.data, folder, seed=recipe.train.seed, multi_label=recipe.task.multi_label)
    files = locate(recipe.base.model, folder, weights=weights)
    files.config()
    if weights:
        files.weights()
    checks = preflight(
        splits,
        recipe.data,
        labels=recipe.task.labels,
        multi_label=recipe.task.multi_label,
        weighted=recipe.task.class_weights != "none",
        base=files.folder,
        max_length=recipe.train.max_length,
    )
    _check_fit(loaded, splits, checks)
    max_length, decisions = _max_length(checks)
    chosen = (*splits.decisions, *checks.decisions, *decisions)
    decided = {decision.key for decision in chosen}
    defaults = tuple(found for found in _defaults(recipe) if found.key not in decided)
    return Plan(loaded, files, splits, checks, max_length, (*chosen, *defaults))


def _defaults(section: Section, above: str = "") -> Iterator[Decision]:
    """The keys that the recipe leaves out and that keep a fixed value."""
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{above}{name}"
        if isinstance(value, Section):
            yield from _defaults(value, f"{key}.")
        elif name not in section.model_fields_set and value is not None and value != {}:
            yield Decision(key, value, DEFAULT)


def _max_length(checks: Preflight) -> tuple[int, tuple[Decision, ...]]:
    if checks.max_length is not None:
        return checks.max_length, ()
    length = min(checks.positions or _LENGTH_WITHOUT_TOKENIZER, _LENGTH_WITHOUT_TOKENIZER)
    why = "left out, and the base has no tokenizer.json to count tokens with"
    return length, (Decision("train.max_length", length, why),)


def _check_fit(loaded: LoadedRecipe, splits: Splits, checks: Preflight) -> None:
    """What only recipe and data together can tell."""
    recipe, problems = loaded.recipe, []
    if recipe.train.max_length is not None and (wrong := too_long(recipe.train.max_length, checks.positions)):
        problems.append(Problem(loaded.where("train", "max_length"), "train.max_length", wrong))
    if recipe.eval.threshold == "tune":
        if not recipe.task.multi_label and len(checks.labels) != 2:
            message = f"tune needs two labels, or a multi-label task; train has {len(checks.labels)}. Write fixed."
            problems.append(Problem(loaded.where("eval", "threshold"), "eval.threshold", message))
        if not splits.valid:
            message = "tune needs validation rows. Write a share such as data.valid: 10%."
            problems.append(Problem(loaded.where("eval", "threshold"), "eval.threshold", message))
    if problems:
        raise RecipeError.in_file(str(loaded.path), problems)
    weights = recipe.task.class_weights
    strangers = [] if isinstance(weights, str) else [label for label in weights if label not in checks.labels]
    if strangers:
        message = f"no row has the label {strangers[0]}. Labels here: {', '.join(checks.labels)}."
        raise DataError.in_file(
            str(loaded.path), [Problem(loaded.where("task", "class_weights"), "task.class_weights", message)]
        )
