"""Scores base and trained model on the same test windows, lets both go on with some texts, and judges the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.checkpoints import check_reloaded
from ftkit.console import Console
from ftkit.evals.gate import judge
from ftkit.evals.language import ScoredWindows, compare_language, score_language
from ftkit.files import write_json, write_jsonl
from ftkit.merging import spread
from ftkit.models.base import Loaded, inference_mode, load_language_model, with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.plan.text import TextPlan
from ftkit.pretrain.prepare import Prepared, load_base
from ftkit.pretrain.samples import Sample, continuations, prompts
from ftkit.pretrain.train import validator
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir, read_log
from ftkit.stopwatch import timed
from ftkit.tasks import masked
from ftkit.tasks.heldout import HeldOut, score_held_out
from ftkit.tasks.language import Scores
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The report, and what the merge needs: the model that was measured, and its scores with the logits kept."""

    report: EvalReport
    model: PreTrainedModel
    scores: Scores
    positions: list[tuple[int, int]]


def evaluate(
    plan: TextPlan,
    prepared: Prepared,
    run: RunDir,
    seeds: Mapping[int, Path],
    *,
    machine: Machine,
    console: Console,
) -> Evaluation:
    """Loads base and adapter, or the model from scratch, from disk as a user would, and measures them.

    ``seeds``: what the same training gave with other seeds. Writes predictions.jsonl and eval.json. Raises NotProved
    where what is on disk is not what was trained.
    """
    seconds: dict[str, float] = {}
    positions = kept_positions(prepared.test)
    base = _base(plan, prepared, machine) if plan.adapter else None
    starts = prompts(prepared, plan.task.samples if prepared.masking is None else 0, seed=plan.recipe.train.seed)
    baselines: dict[str, Floats] = {}
    base_texts: list[str | None] = [None] * len(starts)
    if base is not None:
        with timed(seconds, "baseline"):
            baselines = _baselines(plan, prepared, base, console)
            base_texts = [*continuations(base.model, prepared, starts, seed=plan.recipe.train.seed)]
    model = load_trained(plan, prepared, run.adapter if plan.adapter else run.model, base, machine)
    with timed(seconds, "validation"):
        _check_reload(plan, prepared, run, model)
    name = "adapter" if plan.adapter else "model"
    with console.progress("scoring test windows", len(prepared.test)) as advance, timed(seconds, name):
        found = score_held_out(
            model, prepared.test, pad_token_id=prepared.pad_token_id, positions=positions, advance=advance
        )
    own_texts = continuations(model, prepared, starts, seed=plan.recipe.train.seed)
    scored = {each: scored_on(plan, prepared, nll) for each, nll in (*baselines.items(), (name, found.nll))}
    others = {seed: _of_seed(plan, prepared, folder, machine) for seed, folder in seeds.items()}
    report = _report(plan, prepared, scored, seconds, others)
    samples = [
        Sample(start.piece, start.prompt, start.reference, own, theirs)
        for start, own, theirs in zip(starts, own_texts, base_texts, strict=True)
    ]
    rows = _predictions(prepared, found.nll, baselines.get("baseline"), samples)
    write_jsonl(run.predictions, rows)
    write_json(run.eval, as_json(report))
    return Evaluation(report, model, found, positions)


def scored_on(plan: TextPlan, prepared: Prepared, nll: Floats) -> ScoredWindows:
    """Scores the nats of the test windows by the recipe's settings."""
    side = prepared.test
    return score_language(nll, side.tokens, side.bytes, settings=plan.recipe.eval, seed=plan.recipe.train.seed)


def load_trained(
    plan: TextPlan, prepared: Prepared, folder: Path, base: Loaded | None, machine: Machine
) -> PreTrainedModel:
    """What was trained, from disk: an adapter on ``base``, or a whole model."""
    import torch

    if base is not None:
        model = with_saved_adapter(base.model, folder)
    else:
        files = BaseFiles(str(folder), "folder", folder, None)
        model = load_language_model(
            files, plan.task.objective, pad_token_id=prepared.pad_token_id, dtype=torch.float32, seed=0
        ).model
    model.to(machine.device)
    inference_mode(model)
    return model


def kept_positions(side: HeldOut) -> list[tuple[int, int]]:
    """Places of the windows, spread evenly, whose logits are compared when the adapter is merged."""
    if side.hidden is None:
        places = [(row, at) for row, ids in enumerate(side.rows) for at in range(len(ids) - 1)]
    else:
        shown = enumerate(labels for _, labels in side.hidden)
        places = [(row, at) for row, labels in shown for at, label in enumerate(labels) if label != IGNORED]
    return spread(places)


def _base(plan: TextPlan, prepared: Prepared, machine: Machine) -> Loaded:
    # Another seed than training's: a head that was not saved would be random here, and show.
    seed = plan.recipe.train.seed + 1
    loaded = load_base(plan, seed=seed, quantize=True, machine=machine, tokenizer=prepared.tokenizer)
    inference_mode(loaded.model)
    return loaded


def _baselines(plan: TextPlan, prepared: Prepared, base: Loaded, console: Console) -> dict[str, Floats]:
    """Nats of the test windows under the base; a base whose head is new is compared with token frequencies instead."""
    side = prepared.test
    if side.hidden is not None and base.head:
        console.note("the base has no head for hidden tokens: the baseline is how often each token stands in train")
        labels = [labels for _, labels in side.hidden]
        frequencies = masked.unigram(prepared.train_tokens.ids, labels, vocabulary=len(prepared.tokenizer))
        return {"unigram": frequencies}
    with console.progress("scoring the base", len(side)) as advance:
        return {"baseline": score_held_out(base.model, side, pad_token_id=prepared.pad_token_id, advance=advance).nll}


def _of_seed(plan: TextPlan, prepared: Prepared, folder: Path, machine: Machine) -> ScoredWindows:
    base = _base(plan, prepared, machine) if plan.adapter else None
    model = load_trained(plan, prepared, folder, base, machine)
    return scored_on(plan, prepared, score_held_out(model, prepared.test, pad_token_id=prepared.pad_token_id).nll)


def _check_reload(plan: TextPlan, prepared: Prepared, run: RunDir, model: PreTrainedModel) -> None:
    """What is on disk must score the validation windows as the trained model did when it was saved."""
    noted: list[Any] = [row["valid"] for row in read_log(run.train_log) if row.get("best")]
    if not len(prepared.valid) or not noted:
        return
    before = noted[-1]["loss"]
    now = validator(prepared, prepared.valid)(model)["loss"]
    check_reloaded(model, run.adapter if plan.adapter else run.model, "loss", before, now)


def _report(
    plan: TextPlan,
    prepared: Prepared,
    scored: dict[str, ScoredWindows],
    seconds: dict[str, float],
    others: dict[int, ScoredWindows],
) -> EvalReport:
    name = "adapter" if plan.adapter else "model"
    models = {each: own.scores for each, own in scored.items()}
    windows = len(prepared.test)
    other = next((each for each in models if each != name), None)
    against = compare_language(scored[name], scored[other]) if other else ()
    return EvalReport(
        task=plan.task.type,
        split="test",
        n=windows,
        labels=(),
        multi_label=False,
        data_sha256=plan.corpus.test.sha256(),
        metrics_average="",
        seed=plan.recipe.train.seed,
        models=models,
        comparison={f"{name}_vs_{other}": against} if other else {},
        gate=judge(plan.recipe.gate, models[name], models[other] if other else None, against, n=windows, unit="window"),
        seconds=seconds,
        seeds={str(seed): dict(found.scores.metrics) for seed, found in others.items()},
        unit="window",
    )


def _predictions(
    prepared: Prepared, nll: Floats, baseline: Floats | None, samples: list[Sample]
) -> Iterator[dict[str, Any]]:
    """A line for each test window; the sampled ones with their continuations."""
    side, tokenizer = prepared.test, prepared.tokenizer
    by_piece = {sample.piece: sample for sample in samples}
    counts: dict[int, int] = {}
    for piece, ids in enumerate(side.rows):
        document = int(side.pieces.document[piece])
        counts[document] = counts.get(document, 0) + 1
        sample = by_piece.get(piece)
        yield {
            "id": f"{side.documents.id(document)}#{counts[document]}",
            "where": side.documents.where(document),
            "input": tokenizer.decode(ids, skip_special_tokens=True),
            "tokens": int(side.tokens[piece]),
            "bytes": None if side.bytes is None else int(side.bytes[piece]),
            "nll": float(nll[piece]),
            "baseline_nll": None if baseline is None else float(baseline[piece]),
            "prompt": sample.prompt if sample else None,
            "reference": sample.reference if sample else None,
            "prediction": sample.prediction if sample else None,
            "baseline": sample.baseline if sample else None,
        }
