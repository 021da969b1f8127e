"""``ftkit run``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from ftkit.console import Console
from ftkit.errors import FtkitError
from ftkit.files import read_json
from ftkit.interruption import stop_on_sigterm
from ftkit.pipeline import Request
from ftkit.pipeline import run as run_pipeline
from ftkit.rundir import RunDir


def run_recipe(recipe: Path, overrides: Sequence[str], out: Path | None, *, resume: bool, json: bool) -> None:
    """Carries the recipe out; with ``json`` prints the run's folder and eval.json, also where the gate is not met."""
    stop_on_sigterm()
    # The libraries warn of their own deprecations and of settings that ftkit chose; what matters ftkit says itself.
    warnings.simplefilter("ignore")
    console = Console(results=not json)
    try:
        run = run_pipeline(Request(recipe, overrides, out, resume), console)
    except FtkitError as error:
        if json and error.run is not None:
            _print(console, RunDir(Path(error.run)))
        raise
    if json:
        _print(console, run)


def _print(console: Console, run: RunDir) -> None:
    if run.eval.exists():
        console.json({"run": str(run.folder), **read_json(run.eval)})
