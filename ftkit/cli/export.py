"""``ftkit export``."""

from __future__ import annotations

import warnings
from pathlib import Path

from ftkit.console import Console
from ftkit.errors import Problem, RecipeError
from ftkit.export.formats import Target, exporting, parse
from ftkit.export.source import Source
from ftkit.files import put_back
from ftkit.records import as_json
from ftkit.report import numbers
from ftkit.rundir import RunDir, find_run


def export_model(source: str, to: str, out: Path | None, *, json: bool) -> None:
    """Exports a run's model and scores it on the run's test rows, or the model in a folder, and prints what came out.

    Raises RecipeError for an unknown format and a source that does not fit, NotProved where the export is not the
    model.
    """
    from ftkit.models.hardware import settle_environment

    warnings.simplefilter("ignore")
    try:
        target = parse(to)
    except ValueError as error:
        raise RecipeError("no such export", [Problem("", "--to", str(error))]) from None
    settle_environment()
    from ftkit.models.base import quiet_libraries

    quiet_libraries()
    console = Console(results=not json)
    folder = Path(source)
    put_back(folder)
    if (folder / "adapter_config.json").exists():
        fix = f"Merge it first: ftkit merge {source} --base BASE --out DIR"
        raise RecipeError(f"{source} is an adapter alone", [Problem("", "MODEL", fix)])
    if (folder / "config.json").exists():
        _of_folder(Source(folder), target, out, console, json=json)
    else:
        _of_run(find_run(source), target, out, console, json=json)


def _of_folder(source: Source, target: Target, out: Path | None, console: Console, *, json: bool) -> None:
    settled, model = target.settled(source), source.model.resolve()
    place = out or model.with_name(f"{model.name}-{settled.folder}")
    with exporting(settled, source, place) as written:
        for note in written.found.get("notes", ()):
            console.note(note)
    if json:
        console.json({"export": settled.name, "path": str(place), "bytes": written.bytes, **written.found})
    console.result(
        f"{place}: {settled.name}, {numbers.size(written.bytes)}, read back and compared with {source.model}"
    )


def _of_run(run: RunDir, target: Target, out: Path | None, console: Console, *, json: bool) -> None:
    """Card, report and manifest of the run follow."""
    from ftkit.ladder.rungs import export_run
    from ftkit.models.hardware import settle_machine
    from ftkit.pipeline import tell
    from ftkit.report import summary

    with run.locked():
        done = export_run(run, [target], settle_machine(), console, out=out)
        tell(run, Console(quiet=True, results=False))
        run.note_in_manifest(run.folder / "export", run.eval, run.folder / "README.md", run.folder / "report.html")
    (name,) = done.names
    facts = done.report.exports[name]
    if json:
        console.json({"run": str(run.folder), "export": name, **as_json(facts)})
    console.result(summary.ladder(done.report))
    console.result(f"{name}: {run.folder / facts.path}")
