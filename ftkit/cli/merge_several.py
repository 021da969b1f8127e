"""``ftkit merge`` of several adapters: one model or one adapter of them, measured on the test rows of each run."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import Problem, RecipeError
from ftkit.files import read_json, write_json, writing_folder
from ftkit.report import numbers
from ftkit.rundir import RunDir, find_run

if TYPE_CHECKING:
    from rich.table import Table

    from ftkit.combined import Line, RunRows
    from ftkit.export.adapter import AdapterFiles

RECORD = "combined.json"


@dataclass(frozen=True, slots=True)
class _Source:
    """An adapter, and the run that it is of; None for a folder."""

    adapter: Path
    run: RunDir | None


def merge_several(
    sources: list[str],
    base: str | None,
    out: Path,
    method: str,
    weights: list[float],
    density: float | None,
    rank: int | None,
    seed: int,
    *,
    json: bool,
) -> None:
    """Combines the adapters of runs or folders into ``out``, and prints how the result does on each run's test rows.

    ``weights``: none for the method's own. A merged model is read back and compared tensor by tensor. Raises
    RecipeError for what does not fit the method, GateNotMet for a run whose gate is not met, DataError for adapters
    that cannot be combined, NotProved where what was written is not what was meant.
    """
    warnings.simplefilter("ignore")
    from ftkit.models.hardware import settle_environment

    settle_environment()
    console = Console(results=not json)
    found = [_source(source) for source in sources]
    runs = [source.run for source in found if source.run is not None]
    from ftkit.export.adapter import read_adapter
    from ftkit.export.combine import AS_ADAPTER, check_settings, default_weights

    chosen = weights or default_weights(method, len(found))
    check_settings(method, chosen, len(found), density=density, rank=rank)
    _check_out(out)
    rows = _rows(runs) if runs else []
    adapters = [read_adapter(source.adapter) for source in found]
    console.stage(f"combining {len(adapters)} adapters: {method}, weights {', '.join(f'{w:g}' for w in chosen)}")
    if method in AS_ADAPTER:
        from ftkit.export.combined_adapter import combined_adapter

        record = combined_adapter(adapters, out, method, chosen, rank=rank)
    else:
        record = _merged(adapters, _base(base, found), out, method, chosen, density, seed)
    if rows:
        record["measured"] = _measured(rows, out, console)
        write_json(out / RECORD, record)
    if json:
        console.json({"path": str(out), **record})
    console.result(_summary(out, record))


def _source(text: str) -> _Source:
    folder = Path(text)
    if (folder / "adapter_config.json").exists():
        return _Source(folder, None)
    run = find_run(text)
    return _Source(run.adapter, run)


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / RECORD).exists())):
        fix = f"It holds no earlier combination ({RECORD}). Choose a folder of its own."
        raise RecipeError(f"{out} is not empty", [Problem("", "--out", fix)])


def _rows(runs: Sequence[RunDir]) -> list[RunRows]:
    """What must hold of runs before anything is written: the gate is met, and their rows are there."""
    from pydantic import TypeAdapter

    from ftkit.combined import read_rows
    from ftkit.models.base import quiet_libraries
    from ftkit.pipeline import judge
    from ftkit.records import EvalReport

    quiet_libraries()
    found = read_rows(runs)
    for run in runs:
        judge(TypeAdapter(EvalReport).validate_python(read_json(run.eval)), run)
    return found


def _base(base: str | None, sources: Sequence[_Source]) -> Path:
    """The folder of the base: as given, of the first run, or as the first adapter names it."""
    from ftkit.models.locate import locate
    from ftkit.trained import trained_by

    run = next((source.run for source in sources if source.run is not None), None)
    if base is None and run is not None:
        return trained_by(run).base().folder
    named = base or read_json(sources[0].adapter / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise RecipeError("the base is not known", [Problem("", "--base", "The adapter does not name it. Name it.")])
    return locate(str(named), Path.cwd(), weights=True).folder


def _merged(
    adapters: Sequence[AdapterFiles],
    base: Path,
    out: Path,
    method: str,
    weights: Sequence[float],
    density: float | None,
    seed: int,
) -> dict[str, Any]:
    """Writes the merged model with combined.json, and returns what that says."""
    from ftkit.export.combine import check_one_base, combination, combine, shared_files
    from ftkit.export.stream import merge_streamed
    from ftkit.export.tensors import read_index

    changes = combine(adapters, read_index(base), method, weights, density=density, seed=seed)
    record = combination(adapters, method, weights)
    record |= {"density": density} if density is not None else {}
    record |= {"seed": seed} if method.startswith("dare") else {}
    with writing_folder(out) as fresh, TemporaryDirectory() as shared:
        for file in shared_files(adapters):
            shutil.copy(file, shared)
        done = merge_streamed(base, changes, fresh, extra=(Path(shared),), base_sha256=check_one_base(adapters))
        record |= {
            "base": str(base),
            "base_sha256": done.base_sha256,
            "dtype": done.dtype,
            "touched": done.touched,
            "copied": done.copied,
            "seconds": done.seconds,
        }
        write_json(fresh / RECORD, record)
    return record


def _measured(runs: Sequence[RunRows], out: Path, console: Console) -> list[dict[str, Any]]:
    from ftkit.combined import as_document, evaluate_combined
    from ftkit.models.hardware import settle_machine

    lines = evaluate_combined(runs, out, settle_machine(), console)
    console.result(table(lines))
    return as_document(lines)


def table(lines: Sequence[Line]) -> Table:
    """Each run's test rows by its own model and by the combined one, with the paired difference."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ftkit.report import untrusted

    found = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("test rows of", "metric"):
        found.add_column(title)
    for title in ("base", "own", "combined", "difference", "95% interval"):
        found.add_column(title, justify="right")
    last = ""
    for line in lines:
        shown = "" if line.run == last else f"{untrusted.visible(line.run)} ({line.n:,})"
        arrow = " ↓" if numbers.lower_is_better(line.metric) else ""
        found.add_row(
            Text(shown),
            f"{numbers.metric_name(line.metric)}{arrow}",
            numbers.score(line.baseline),
            numbers.score(line.own),
            numbers.score(line.combined),
            numbers.NOTHING if line.difference is None else numbers.signed(line.difference),
            numbers.interval(line.ci95),
        )
        last = line.run
    return found


def _summary(out: Path, record: dict[str, Any]) -> str:
    what = f"{len(record['adapters'])} adapters by {record['method']}"
    if "ranks" in record:
        ranks = ", ".join(map(str, record["ranks"]))
        lost = numbers.percent(record["relative_error"])
        kept = f", {lost} of the sum's norm lost" if record["method"] == "svd" else ""
        return f"{out}: one adapter of {what}, rank {ranks}{kept}"
    counts = f"{record['touched']} tensors changed, {record['copied']} as they were"
    return f"{out}: merged, {what}, {record['dtype']}; {counts}; all read back and compared"
