"""Exports a run's model, scores each export on the run's test rows, and writes down what it costs and what it loses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ftkit.console import Console
from ftkit.errors import NotProved, Problem, RecipeError
from ftkit.evals.section import LOWER_IS_BETTER
from ftkit.export import llama_cpp
from ftkit.export.formats import Target, Written, check_fit, exporting
from ftkit.export.gguf_formats import Gguf
from ftkit.export.llama_cpp import LlamaCpp
from ftkit.export.source import Source
from ftkit.files import read_json, write_json
from ftkit.ladder.scoring import Outcome, Rows, own_rows
from ftkit.merging import FLOAT32, ROUNDED
from ftkit.models.hardware import Machine
from ftkit.records import EvalReport, ExportFacts, ModelScores, as_json
from ftkit.report import numbers
from ftkit.report.tables import preferred
from ftkit.rundir import RunDir
from ftkit.tasks.section import Merge
from ftkit.trained import Trained

_OUT_OF_HUNDRED = ("bleu", "chrf")
_BY_TRANSFORMERS = (
    "GGUF files are scored by transformers: llama.cpp's own rounding and speed are not measured. "
    "To have llama.cpp score them: pip install 'ftkit[llama]'"
)


@dataclass(frozen=True, slots=True)
class Exported:
    """The run's report, and the ``names`` in it that were exported just now."""

    report: EvalReport
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """What exports are compared with: the run's merged model, or its model from scratch, on the same rows."""

    rows: Rows
    outcome: Outcome
    facts: ExportFacts


def export_run(
    run: RunDir, targets: Sequence[Target], machine: Machine, console: Console, *, out: Path | None = None
) -> Exported:
    """Exports the run's model to each target, under ``export/`` of the run or into ``out``, and scores it.

    eval.json gets the scores and the facts of each. Raises RecipeError where the run has no model to export or one that
    does not fit, and NotProved where an export is not the model: then an earlier one under the name stays.
    """
    report = _report(run)
    trained, source = _model(run, targets)
    for target in targets:
        check_fit(target, source)
    reference: Reference | None = None
    settled = [target.settled(source) for target in targets]
    if any(isinstance(target.format, Gguf) for target in targets) and not llama_cpp.installed():
        console.note(_BY_TRANSFORMERS)
    for number, target in enumerate(settled):
        console.stage(f"exporting {target.name}")
        folder = out or run.folder / "export" / target.folder
        with exporting(target, source, folder) as written:
            for note in written.found.get("notes", ()):
                console.note(note)
            facts, scores = ExportFacts(_shown(folder, run), written.bytes, not target.loses(source)), None
            if target.format.reader and not any(earlier.format.reader for earlier in settled[:number]):
                reference = _reference(trained, machine, console)  # not before something is written that needs it
            if reference is not None and target.format.reader:
                facts, scores = _scored(target, written, facts, trained, reference, machine, console)
        models = {name: each for name, each in report.models.items() if name != target.name}  # not an earlier one's
        models |= {} if scores is None else {target.name: scores}
        made_from = {} if reference is None else {trained.name: reference.facts}
        report = replace(report, models=models, exports={**report.exports, **made_from, target.name: facts})
        write_json(run.eval, as_json(report))
    return Exported(report, tuple(target.name for target in settled))


def _report(run: RunDir) -> EvalReport:
    """The run's evaluation. Raises RecipeError where there is none, or its gate is not met."""
    if not run.eval.exists():
        fix = f"Go on with it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise _nothing(run, "was not evaluated", fix)
    report = TypeAdapter(EvalReport).validate_python(read_json(run.eval))
    if not report.gate.passed:
        missed = [reason for reason in report.gate.reasons if not reason.passed]
        failed = ", ".join(f"{reason.metric} needs {reason.need}" for reason in missed)
        raise _nothing(run, "did not meet its gate", f"{failed}. Train longer, or change the recipe's gate.")
    return report


def _model(run: RunDir, targets: Sequence[Target]) -> tuple[Trained, Source]:
    """What a run has to export. Raises RecipeError, with the reason, for a run that has no whole model."""
    whole = next((folder for folder in (run.model, run.merged) if folder.is_dir()), None)
    if whole is None and any(target.format.reader for target in targets):
        if run.merge.exists() and not read_json(run.merge)["passed"]:
            fix = f"merge.json has the figures. Merge it again: ftkit merge {run.folder}"
            raise _nothing(run, "has a merge that was not proved", fix)
        raise _nothing(run, "is not merged", f"Merge it first: ftkit merge {run.folder}")
    trained = Trained(run, whole or run.adapter, read_json(run.plan))
    if run.manifest.exists():  # it is the last file of a run: exports that its recipe asks for are made before
        run.unchanged(trained.folder)
    if all(target.format.reader for target in targets) or not run.adapter.is_dir():
        return trained, Source(trained.folder, trusted=trained.trusted)
    base = trained.base().folder
    return trained, Source(whole or base, run.adapter, base, trained.trusted)


def _nothing(run: RunDir, why: str, fix: str) -> RecipeError:
    return RecipeError(f"{run.folder} {why}, so there is nothing to export", [Problem("", "RUN", fix)])


def _shown(folder: Path, run: RunDir) -> str:
    inside = folder.resolve().is_relative_to(run.folder.resolve())
    return folder.resolve().relative_to(run.folder.resolve()).as_posix() if inside else str(folder)


def _reference(trained: Trained, machine: Machine, console: Console) -> Reference | None:
    """None where the run's rows cannot be had any more, which is said."""
    try:
        rows = own_rows(trained)
    except RecipeError as error:
        why = error.__cause__ or error  # what it says besides is for ``ftkit eval``, which can be given other rows
        console.warn(
            f"exports are not scored, as the run's own rows cannot be read: {getattr(why, 'headline', why)}. "
            "Start where the run was started, with its data in place."
        )
        return None
    outcome, seconds = _score(rows, rows.load(trained, machine), "the model", console)
    size = sum(file.stat().st_size for file in trained.folder.rglob("*") if file.is_file())
    facts = ExportFacts(trained.folder.name, size, True, "transformers", len(rows), seconds)
    return Reference(rows, outcome, facts)


def _score(rows: Rows, model: Any, who: str, console: Console) -> tuple[Outcome, float]:
    with console.progress(f"scoring {who}", rows.steps) as advance:
        started = time.perf_counter()
        outcome = rows.score(model, advance)
        return outcome, round(time.perf_counter() - started, 3)


def _scored(
    target: Target,
    written: Written,
    facts: ExportFacts,
    trained: Trained,
    reference: Reference,
    machine: Machine,
    console: Console,
) -> tuple[ExportFacts, ModelScores]:
    """Scores an export as it stands on disk. Raises NotProved where it loses what its type does not explain.

    Where llama.cpp multiplies weights of 16 bits it rounds what they are multiplied with to 16 bits too, so that the
    scores of an exact export are not the model's; that its numbers are was found when it was written.
    """
    model = target.format.read(written.folder, Source(trained.folder, trusted=trained.trusted))
    if model is None:
        model = reference.rows.load(replace(trained, folder=written.folder), machine)
    found, seconds = _score(reference.rows, model, target.name, console)
    before, after = reference.outcome.scores.metrics, found.scores.metrics
    metric = preferred([name for name in before if before[name] is not None])
    fall = fall_of(metric, before[metric], after.get(metric))
    facts = replace(
        facts,
        reader=target.format.reader,
        rows=len(reference.rows),
        seconds=seconds,
        max_abs_logit_diff=float(abs(found.logits - reference.outcome.logits).max()),
        argmax_agreement=float((found.answers == reference.outcome.answers).mean()),
        metric=metric,
        metric_fall=fall,
    )
    section = trained.section("merge", bool | Merge)
    allowed = (section if isinstance(section, Merge) else Merge()).tolerance
    figures = f"{numbers.score(after.get(metric))} against {numbers.score(before[metric])}"
    if facts.exact and (target.kind == "f32" or not isinstance(model, LlamaCpp)):
        _check_same(target, facts, f"{numbers.metric_name(metric)} {figures}", allowed, machine)
    elif fall > allowed:
        console.warn(f"{target.name} is worse than the model it was made from: {numbers.metric_name(metric)} {figures}")
    return facts, found.scores


def _check_same(target: Target, facts: ExportFacts, figures: str, allowed: float, machine: Machine) -> None:
    """Raises NotProved where an export whose type loses nothing is not the model it was made from, by a merge's limits.

    Logits are compared where all models compute in float32, which those on a GPU may not.
    """
    assert facts.metric_fall is not None
    assert facts.max_abs_logit_diff is not None
    assert facts.argmax_agreement is not None
    largest, least = FLOAT32["max_abs_logit_diff"], ROUNDED["argmax_agreement"]
    problems = []
    if facts.metric_fall > allowed:
        problems.append(Problem("", str(facts.metric), f"{figures}; tolerated: {allowed:g}. Report this."))
    if machine.device == "cpu" and not facts.max_abs_logit_diff <= largest:
        message = f"got {facts.max_abs_logit_diff:.3g}, tolerated {largest:g}. Report this."
        problems.append(Problem("", "max_abs_logit_diff", message))
    if facts.argmax_agreement < least:
        message = f"got {facts.argmax_agreement:.4g}, tolerated {least:g}. Report this."
        problems.append(Problem("", "argmax_agreement", message))
    if problems:
        raise NotProved(f"{target.name} is not shown to be the model", problems)


def fall_of(metric: str, before: float | None, after: float | None) -> float:
    """How much worse a metric became: a share for a perplexity and what else has no bound, else points out of 1."""
    if before is None or after is None:
        return float(before is not None)
    worse = after - before if metric in LOWER_IS_BETTER else before - after
    if metric == "perplexity":
        return worse / before
    return worse / 100 if metric in _OUT_OF_HUNDRED else worse
