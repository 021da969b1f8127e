"""``ftkit merge``: of a run, of an adapter from anywhere, or of several."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import NotProved, Problem, RecipeError
from ftkit.files import put_back, write_json, writing_folder
from ftkit.interruption import stop_on_sigterm
from ftkit.rundir import find_run

if TYPE_CHECKING:
    from ftkit.export.adapter import AdapterFiles
    from ftkit.export.stream import Streamed

_DOCUMENT = "merge.json"


def merge_adapters(
    sources: list[str],
    base: str | None,
    out: Path | None,
    method: str | None,
    weights: str | None,
    *,
    prove: bool,
    json: bool,
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> None:
    """Merges a run's adapter or the adapter in a folder into its base; with several sources, all into one model.

    Of a run the result is proved as by ``ftkit run``; of a folder by its tensors and, with ``prove``, by logits in a
    fresh process. Raises RecipeError for options that do not fit, DataError for an adapter that does not fit the base.
    """
    stop_on_sigterm()
    warnings.simplefilter("ignore")
    console = Console(results=not json)
    for source in sources:
        put_back(Path(source))
    if len(sources) > 1:
        from ftkit.cli.merge_several import merge_several

        if prove:
            fix = "Several are proved by their tensors, and runs measured on their rows. Leave it out."
            raise RecipeError("no one adapter to compare with", [Problem("", "--prove", fix)])
        place = _needed(out)
        merge_several(sources, base, place, method or "linear", _numbers(weights), density, rank, seed, json=json)
        return
    if method or weights or density is not None or rank is not None:
        raise RecipeError("one adapter is merged as it is", [Problem("", "--method", "Leave it out, or name several.")])
    if (Path(sources[0]) / "adapter_config.json").exists():
        document = merge_folder(Path(sources[0]), base, _needed(out), console, prove=prove)
    else:
        if base is not None:
            raise RecipeError("two bases", [Problem("", "--base", "A run has its base. Leave --base out.")])
        from ftkit.remerge import merge_run

        run = find_run(sources[0])
        document = merge_run(run, out, console)
        out = out or run.merged
    if json:
        console.json({"path": str(out), **document})
    console.result(_summary(_needed(out), document))


def merge_folder(folder: Path, base: str | None, out: Path, console: Console, *, prove: bool) -> dict[str, Any]:
    """Merges the adapter in ``folder`` into its base and writes the model, with merge.json, into ``out``.

    Returns merge.json. Raises as ``merge_adapters``, and NotProved where the result is not shown to be the adapter's.
    """
    from ftkit.models.hardware import peak_rss_mb, settle_environment
    from ftkit.models.locate import locate

    settle_environment()
    from ftkit.export.adapter import check_start, read_adapter
    from ftkit.models.fingerprint import read_fingerprint

    _check_out(out)
    adapter, noted = read_adapter(folder), read_fingerprint(folder)
    check_start(adapter)
    named = base or adapter.config.get("base_model_name_or_path")
    if not named:
        raise RecipeError("the base is not known", [Problem("", "--base", "The adapter does not name it. Name it.")])
    found = locate(str(named), Path.cwd(), weights=True).folder
    if out.resolve() in (found.resolve(), folder.resolve()):
        raise RecipeError(f"{out} is what is merged", [Problem("", "--out", "Choose a folder of its own.")])
    console.stage(f"merging {folder} into {found}")
    with writing_folder(out) as fresh:
        done = _write(adapter, found, fresh, noted.base_sha256 if noted else None, console)
        document = _document(adapter, done)
        if prove or done.method == "peft":
            console.note("a fresh process compares the logits")
            document |= _proof(found, folder, fresh, done.dtype)
        document["peak_rss_mb"] = max(peak_rss_mb(), int(document.get("peak_rss_mb") or 0))
        write_json(fresh / _DOCUMENT, document)
    return document


def _write(adapter: AdapterFiles, base: Path, out: Path, base_sha256: str | None, console: Console) -> Streamed:
    from ftkit.export.stream import merge_streamed
    from ftkit.export.tensors import read_index
    from ftkit.export.updates import NoStreamedForm, changes_of
    from ftkit.export.whole import merge_by_peft

    try:
        changes = changes_of(adapter, read_index(base))
    except NoStreamedForm as reason:
        console.warn(f"PEFT merges {reason} with the whole model in memory: there is no way by single tensors")
        return merge_by_peft(adapter, base, out, extra=[adapter.folder], base_sha256=base_sha256)
    if changes.dropped:
        console.note(f"left out, as the model has another head: {', '.join(changes.dropped)}")
    return merge_streamed(base, changes, out, extra=[adapter.folder], base_sha256=base_sha256)


def _document(adapter: AdapterFiles, done: Streamed) -> dict[str, Any]:
    """merge.json; what only a comparison of logits or of a metric can tell is null."""
    return {
        "method": adapter.type,
        "merge": done.method,
        "dtype": done.dtype,
        "proof": "tensors",
        "max_abs_logit_diff": None,
        "argmax_agreement": None,
        "metric_diff": None,
        "tolerance": None,
        "passed": True,
        "tensors": {"changed": done.touched, "copied": done.copied, "added": done.added, "left_out": [*done.dropped]},
        "seconds": done.seconds,
        "bytes_read": done.bytes_read,
        "bytes_written": done.bytes_written,
        "base_sha256": done.base_sha256,
        "adapter_sha256": adapter.sha256,
    }


def _proof(base: Path, adapter: Path, merged: Path, dtype: str) -> dict[str, Any]:
    """What a fresh process finds. Raises NotProved where the logits differ by more than a merge may make them."""
    from ftkit.export.agree import compare_logits
    from ftkit.merging import holds, shortfalls, tolerance

    found = compare_logits(base, adapter, merged)
    allowed = {name: limit for name, limit in tolerance(dtype, 0.0).items() if name != "metric_diff"}
    differences = {"max_abs_logit_diff": found.max_abs_logit_diff, "argmax_agreement": found.argmax_agreement}
    document = {**differences, "tolerance": allowed, "proof": "logits", "rows": found.rows}
    if not holds(differences, allowed):
        raise NotProved("the merged model is not shown to be the adapter's", shortfalls(document))
    return {**document, "peak_rss_mb": found.peak_rss_mb}


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _DOCUMENT).exists())):
        fix = f"It holds no earlier merge ({_DOCUMENT}). Choose a folder of its own."
        raise RecipeError(f"{out} is not empty", [Problem("", "--out", fix)])


def _needed(out: Path | None) -> Path:
    if out is None:
        raise RecipeError("nowhere to write to", [Problem("", "--out", "Name a folder for the merged model.")])
    return out


def _numbers(weights: str | None) -> list[float]:
    try:
        return [float(weight) for weight in weights.split(",")] if weights else []
    except ValueError:
        fix = f"{weights} is no list of numbers. Write 0.7,0.3, for instance."
        raise RecipeError("the weights cannot be read", [Problem("", "--weights", fix)]) from None


def _summary(out: Path, document: dict[str, Any]) -> str:
    """Two lines: what was merged and how it was proved, and what it took."""
    gib = document["bytes_written"] / 2**30
    took = f"{document['seconds']:.1f} s, {document['peak_rss_mb']:,} MiB of memory, {gib:.2f} GiB written"
    if "tensors" not in document:
        return f"{out}: {document['method']} merged, {document['dtype']}\n{took}"
    counts = document["tensors"]
    what = f"{counts['changed']} tensors changed, {counts['copied']} copied, {counts['added']} new"
    if document["merge"] == "peft":
        what = "by PEFT, in memory"
    proof = {"tensors": "all tensors read back and compared", "logits": "logits compared in a fresh process"}
    return f"{out}: {document['method']} merged, {document['dtype']}; {what}; {proof[document['proof']]}\n{took}"
