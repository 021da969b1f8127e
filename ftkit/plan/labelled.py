"""The plan of a classification: labelled rows in memory, the base's files, and every open value decided."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ftkit.data.checks import Preflight, preflight
from ftkit.data.columns import to_examples
from ftkit.data.findings import Finding
from ftkit.data.lengths import too_long
from ftkit.data.splits import Splits, examples_sha256, make_splits
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.evals.section import LOWER_IS_BETTER, MetricName
from ftkit.models.adapters import Adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.plan import common
from ftkit.recipe.load import LoadedRecipe
from ftkit.recipe.rules import said_twice
from ftkit.recipe.schema import Base, Recipe
from ftkit.recipe.tree import Key, show_key
from ftkit.records import Decision
from ftkit.tasks.section import Classify

_LENGTH_WITHOUT_TOKENIZER = 256


@dataclass(frozen=True, slots=True)
class LabelledPlan:
    """A checked recipe with its data in memory. ``max_length`` and ``labels`` are those that training will use."""

    loaded: LoadedRecipe
    base: Base
    task: Classify
    adapter: Adapter
    files: BaseFiles
    splits: Splits
    preflight: Preflight
    max_length: int
    decisions: tuple[Decision, ...]

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def width(self) -> int | None:
        """Of the model's hidden states, where it is known."""
        return self.files.width

    @property
    def labels(self) -> tuple[str, ...]:
        return self.preflight.labels

    @property
    def best_by(self) -> MetricName:
        """The figure of the validation rows that the exported checkpoint is chosen by."""
        chosen = self.recipe.train.best_by
        return "f1" if chosen is None or chosen == "loss" else chosen

    @property
    def lowest(self) -> bool:
        """Whether less of that figure is better."""
        return self.best_by in LOWER_IS_BETTER

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.preflight.findings

    @property
    def summary(self) -> str:
        rows = ", ".join(f"{count:,} {name}" for name, count in self.preflight.rows.items())
        return f"{rows} rows; labels {', '.join(self.labels[:8])}{' …' if len(self.labels) > 8 else ''}"

    def document(self, machine: Machine | None, precision: str | None) -> dict[str, Any]:
        """plan.json."""
        checks = self.preflight
        data = {
            "files": common.sources_document(self.splits.sources),
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
        }
        base = common.base_document(self.base, self.files, weights=machine is not None)
        return common.document(self.loaded, self.decisions, base=base, data=data, machine=machine, precision=precision)


def _histogram(checks: Preflight) -> list[dict[str, int]]:
    train = checks.lengths.get("train")
    return [] if train is None else [{"upto": upto, "count": count} for upto, count in train.histogram]


def plan_labelled(loaded: LoadedRecipe, *, weights: bool) -> LabelledPlan:
    """Opens the data, finds the base and checks both; ``weights=False`` needs the base's small files only.

    Raises DataError and RecipeError for what is wrong with the data or does not fit it, MachineError for a base that
    is not to be had.
    """
    recipe = loaded.recipe
    task, base, adapter = recipe.task, recipe.base, recipe.adapter
    assert isinstance(task, Classify)  # the recipe's rules see to all three
    assert isinstance(base, Base)
    assert adapter is not None
    folder = loaded.path.resolve().parent
    splits = make_splits(
        recipe.data,
        folder,
        lambda rows, shown: to_examples(rows, shown, recipe.data, multi_label=task.multi_label),
        seed=recipe.train.seed,
        multi_label=task.multi_label,
    )
    files = locate(base.model, folder, weights=weights)
    files.config()
    if weights:
        files.weights()
    checks = preflight(
        splits,
        recipe.data,
        labels=task.labels,
        multi_label=task.multi_label,
        weighted=task.class_weights != "none",
        base=files.folder,
        max_length=recipe.train.max_length,
    )
    _check_fit(loaded, task, splits, checks)
    max_length, decisions = _max_length(checks)
    chosen = (*splits.decisions, *checks.decisions, *decisions)
    decided = (*chosen, *common.defaults(recipe, chosen))
    return LabelledPlan(loaded, base, task, adapter, files, splits, checks, max_length, decided)


def _max_length(checks: Preflight) -> tuple[int, tuple[Decision, ...]]:
    if checks.max_length is not None:
        return checks.max_length, ()
    length = min(checks.positions or _LENGTH_WITHOUT_TOKENIZER, _LENGTH_WITHOUT_TOKENIZER)
    why = "left out, and the base has no tokenizer.json to count tokens with"
    return length, (Decision("train.max_length", length, why),)


def _check_fit(loaded: LoadedRecipe, task: Classify, splits: Splits, checks: Preflight) -> None:
    """What only recipe and data together can tell."""
    recipe, problems = loaded.recipe, []
    if recipe.train.max_length is not None and (wrong := too_long(recipe.train.max_length, checks.positions)):
        problems.append(Problem(loaded.where("train", "max_length"), "train.max_length", wrong))
    if recipe.eval.threshold == "tune":
        if not task.multi_label and len(checks.labels) != 2:
            message = f"tune needs two labels, or a multi-label task; train has {len(checks.labels)}. Write fixed."
            problems.append(Problem(loaded.where("eval", "threshold"), "eval.threshold", message))
        if not splits.valid:
            message = "tune needs validation rows. Write a share such as data.valid: 10%."
            problems.append(Problem(loaded.where("eval", "threshold"), "eval.threshold", message))
    if problems:
        raise RecipeError.in_file(str(loaded.path), problems)
    named: dict[Key, dict[str, Any]] = {}
    if isinstance(task.class_weights, dict):
        named["task", "class_weights"] = task.class_weights
    if task.words is not None:
        named["task", "words", "say"] = task.words.say or {}
    for key, by_label in named.items():
        problems += [
            Problem(
                loaded.where(*key, label),
                show_key((*key, label)),
                f"no row has the label {label}. Labels here: {', '.join(checks.labels)}.",
            )
            for label in by_label
            if label not in checks.labels
        ]
    for key, message in said_twice(task.words, checks.labels) if task.words else ():
        problems.append(Problem(loaded.where("task", "words", *key), show_key(("task", "words", *key)), message))
    if problems:
        raise DataError.in_file(str(loaded.path), problems)
