"""``ftkit ls``, ``show``, ``adapters`` and ``schema``: what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftkit.console import Console
from ftkit.files import read_json
from ftkit.rundir import RUNS, RunDir, find_run, latest_runs


def print_runs(*, json: bool) -> None:
    """Every run under runs/, newest last, with its state and score."""
    console = Console()
    folders = sorted(RUNS.iterdir()) if RUNS.is_dir() else []
    rows = [_row(run) for folder in folders if folder.is_dir() for run in latest_runs(folder)]
    if json:
        console.json(rows)
    elif not rows:
        console.result("No runs yet. Make one: ftkit run recipes/sentiment.yaml")
    else:
        lines = [f"{'run':48} {'state':14} score"]
        lines += [f"{row['run']:48} {row['state']:14} {_score(row)}" for row in rows]
        console.result("\n".join(lines))


def _score(row: dict[str, Any]) -> str:
    return "-" if row["score"] is None else f"{row['metric']} {row['score']:.3f}"


def _row(run: RunDir) -> dict[str, Any]:
    from ftkit.report.tables import preferred

    report = read_json(run.eval) if run.eval.exists() else {}
    models = report.get("models", {})
    metrics = (models.get("adapter") or models.get("model") or {}).get("metrics", {})
    metric = preferred(tuple(metrics)) if metrics else None
    return {
        "run": f"{run.folder.parent.name}/{run.folder.name}",
        "state": state(run),
        "metric": metric,
        "score": metrics.get(metric),
    }


def state(run: RunDir) -> str:
    """One word for how far a run came."""
    if run.merged.is_dir():
        return "merged"
    if run.eval.exists():
        return "evaluated" if read_json(run.eval)["gate"]["passed"] else "gate not met"
    if run.error.exists():
        return "failed"
    return "trained" if run.train.exists() else "unfinished"


def print_run(text: str, *, json: bool) -> None:
    """The summary of one run, or its eval.json, train.json and merge.json together."""
    console = Console()
    run = find_run(text)
    if json:
        parts = {"train": run.train, "eval": run.eval, "merge": run.merge}
        found = {name: read_json(path) for name, path in parts.items() if path.exists()}
        console.json({"run": str(run.folder), "state": state(run), **found})
        return
    from ftkit.report import summary
    from ftkit.report.story import Story

    console.result(summary.render(Story.read(run.folder)))


def print_presets(*, json: bool) -> None:
    """Name, description and cost of each adapter preset."""
    from dataclasses import asdict

    from ftkit.recipe.presets import list_presets

    console = Console()
    presets = list_presets(Path.cwd())
    if json:
        console.json([{name: str(value) for name, value in asdict(preset).items()} for preset in presets])
        return
    for preset in presets:
        console.result(f"{preset.name:10} {preset.about}\n{'':10} when: {preset.when}\n{'':10} cost: {preset.cost}")


def print_schema(*, markdown: bool) -> None:
    """The JSON Schema of recipes, or the page of all keys."""
    if markdown:
        from ftkit.recipe.page import markdown as page

        Console().result(page().rstrip("\n"))
        return
    from ftkit.recipe.editor import json_schema

    Console().json(json_schema())
