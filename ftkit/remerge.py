"""Merges the adapter of a finished run again, and proves it as the run does: on its own test rows, in a fresh process.

The stages are those of the run, in a folder of their own: until the merged model is proved, nothing in the run changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from ftkit.console import Console
from ftkit.errors import DataError, NotProved, Problem, RecipeError
from ftkit.export.formats import Target, parse
from ftkit.files import read_json, sha256_text, write_json, writing_folder
from ftkit.models.fingerprint import check_base
from ftkit.pipeline import judge, tell, this_machine, work_of
from ftkit.plan.common import Plan
from ftkit.plan.make import make_plan
from ftkit.provenance import overrides_of, recipe_of
from ftkit.recipe.load import load
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir

_UNPROVED = ".merging."  # how the folder of a merge begins that is not proved yet
_SILENT = Console(quiet=True, results=False)


def merge_run(run: RunDir, out: Path | None, console: Console) -> dict[str, Any]:
    """Merges a run's adapter into ``merged/`` of the run, or into ``out``; also where its recipe says merge: false.

    Returns merge.json. In the run merge.json, eval.json, card, report and manifest follow, and the exports that its
    recipe lists are made of the new model; with ``out`` the run stays as it is, and merge.json stands beside the
    weights. Raises RecipeError for a run that was not evaluated, GateNotMet, DataError where its rows or its base are
    not what they were, NotProved where the merged model is not shown to be the adapter's; a merged model of before
    stays then. Where an export fails the new one stays.
    """
    from ftkit.models.hardware import settle_environment

    settle_environment()
    _check(run, out)
    judge(TypeAdapter(EvalReport).validate_python(read_json(run.eval)), run)
    plan = _plan(run)
    with run.locked():
        with _folder_of_its_own(run, out) as fresh:
            console.stage(f"measuring the adapter of {run.folder} again")
            report = _measured(plan, run, fresh, console)
            judge(report, run)
            proof: dict[str, Any] = read_json(fresh.merge)
            with writing_folder(out or run.merged) as folder:
                for file in fresh.merged.iterdir():
                    os.replace(file, folder / file.name)
                if out is not None:
                    write_json(folder / "merge.json", proof)
        if out is None:
            targets = [parse(text) for text in plan.loaded.recipe.export or ()]
            earlier = _keep(run, proof, report, _SILENT if targets else console)
            _export(run, targets, earlier, console)
    return proof


def _check(run: RunDir, out: Path | None) -> None:
    if not run.eval.exists():
        fix = f"Go on with it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} was not evaluated", [Problem("", "RUN", fix)])
    if not run.adapter.is_dir():
        fix = "A model from scratch is whole as it is. Name a run with an adapter."
        raise RecipeError(f"{run.folder} has no adapter to merge", [Problem("", "RUN", fix)])
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out} is not empty", [Problem("", "--out", "Choose a folder of its own for the model.")])


def _plan(run: RunDir) -> Plan:
    """The run's plan, from its own copy of the recipe. Raises where base, preset or data are not there, or others."""
    planned = read_json(run.plan)
    command = str(planned["command"])
    loaded = load(Path(recipe_of(command)), overrides_of(command), kept=run.recipe)
    if loaded.recipe.model_dump(mode="json")["adapter"] != planned["recipe"]["adapter"]:
        fix = "Restore the preset that the run was made with."
        raise RecipeError(f"the adapter of {run.folder} was trained with other settings", [Problem("", "adapter", fix)])
    if not loaded.recipe.merge:
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"merge": True}))
    try:
        plan = make_plan(loaded, weights=True)
    except DataError as error:
        place = f"The run read its data from where it was started, with: {command}. Put it back, or start there."
        headline = f"the data of {run.folder} cannot be read again"
        raise DataError(headline, [*error.problems, Problem("", "data", place)]) from error
    if plan.files is not None:
        check_base(run.adapter, plan.files)
    return plan


@contextmanager
def _folder_of_its_own(run: RunDir, out: Path | None) -> Iterator[RunDir]:
    """Beside what will be written, with all that the evaluation reads; gone in the end."""
    own = sha256_text(str(run.folder.resolve()))[:8]  # another run may be merging there too
    prefix, beside = (_UNPROVED, run.folder) if out is None else (f".{out.name}{_UNPROVED}{own}.", out.parent)
    beside.mkdir(parents=True, exist_ok=True)
    for killed in beside.iterdir():
        if killed.name.startswith(prefix):  # the run is locked, so whoever wrote there is gone
            shutil.rmtree(killed)
    with TemporaryDirectory(prefix=prefix, dir=beside) as name:
        fresh = RunDir(Path(name))
        shutil.copytree(run.adapter, fresh.adapter)
        shutil.copy(run.train_log, fresh.train_log)
        try:
            yield fresh
        except NotProved as error:
            if out is None and fresh.merge.exists() and not run.merged.exists():
                write_json(run.merge, read_json(fresh.merge))
            kept = "The merged model of before stays." if (out or run.merged).exists() else "Nothing was written."
            raise NotProved(error.headline, [*error.problems, Problem("", "", kept)]) from error


def _measured(plan: Plan, run: RunDir, fresh: RunDir, console: Console) -> EvalReport:
    """Evaluates the adapter on the run's test rows, and merges it into ``fresh``."""
    from ftkit.models.hardware import training_dtype

    machine = this_machine()
    precision = str(training_dtype(plan.loaded.recipe.train.precision, machine, plan.width)).removeprefix("torch.")
    work = work_of(plan)
    now, before = work.prepare(machine, precision, console)["data"]["sha256"], read_json(run.plan)["data"]["sha256"]
    if now != before:
        fix = "They have changed since, so nothing can be proved on them. Put them back as they were."
        raise DataError(f"the test rows of {run.folder} are not those it was measured on", [Problem("", "data", fix)])
    return work.measure(fresh, (), machine=machine, console=console)


def _keep(run: RunDir, proof: dict[str, Any], report: EvalReport, console: Console) -> list[str]:
    """Writes what was found into the run, beside what it reported before.

    Exports of the model that was merged before leave the report; returns their names.
    """
    document = read_json(run.eval)
    exports, document["exports"] = document.get("exports", {}), {}
    document["models"] = {name: each for name, each in document["models"].items() if name not in exports}
    document["models"]["merged"] = as_json(report.models["merged"])
    write_json(run.merge, proof)
    write_json(run.eval, document)
    run.error.unlink(missing_ok=True)
    tell(run, console)
    run.forget_checkpoints()
    run.write_manifest()
    return [name for name in exports if name != run.merged.name]


def _export(run: RunDir, targets: Sequence[Target], earlier: Sequence[str], console: Console) -> None:
    """Makes the exports that the recipe lists, as ``ftkit run`` does; of those of before it names the others."""
    from ftkit.ladder.rungs import export_run

    try:
        if targets:
            console.note(f"the merged model is proved, and stands in {run.merged}")
            export_run(run, targets, this_machine(), console)
    finally:
        made = read_json(run.eval)["exports"]
        older = [name for name in earlier if name not in made]
        if older:
            what = ", ".join(older)
            console.warn(f"{what}: exports of the model that was merged before. Make them again: ftkit export")
        if targets:
            tell(run, console)
            run.note_in_manifest(run.folder / "export", run.eval, run.folder / "README.md", run.folder / "report.html")
