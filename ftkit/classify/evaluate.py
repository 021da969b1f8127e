"""Scores the trained adapter and its baselines on the test rows, judges the gate, and writes what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.checkpoints import check_reloaded
from ftkit.classify.free import FreeAnswers, constrained_answers, free_answers, scored_as_generated
from ftkit.classify.prepare import load_base
from ftkit.classify.reader import Reader, WordsReader
from ftkit.console import Console
from ftkit.data.splits import examples_sha256
from ftkit.evals.classification import Scored, compare, score_classification
from ftkit.evals.gate import judge
from ftkit.evals.loading import load_metrics, measure
from ftkit.evals.thresholds import apply_thresholds, tune_thresholds
from ftkit.files import write_json, write_jsonl
from ftkit.models.base import Loaded, inference_mode, with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.plan.labelled import LabelledPlan
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir, read_log
from ftkit.stopwatch import timed
from ftkit.tasks import probe
from ftkit.tasks.classify import label_names, probabilities, targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats, Integers


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The report, and what the merge needs: the measured model, the test rows and its logits on them [n, K]."""

    report: EvalReport
    model: PreTrainedModel
    rows: list[list[int]]
    logits: Floats


def validator(plan: LabelledPlan, reader: Reader) -> Callable[[PreTrainedModel], dict[str, float]] | None:
    """A function that scores the validation rows as the test rows are scored; None without validation rows."""
    if not plan.splits.valid:
        return None
    multi_label = plan.task.multi_label
    rows = reader.rows([example.text for example in plan.splits.valid])
    references = targets(plan.splits.valid, plan.labels, multi_label=multi_label)
    metrics = load_metrics(
        dict.fromkeys((plan.best_by, "f1", "log_loss")),
        labels=len(plan.labels),
        average=plan.recipe.eval.average,
        multi_label=multi_label,
    )

    def validate(model: PreTrainedModel) -> dict[str, float]:
        inference_mode(model)
        found = probabilities(reader.score(model, rows), multi_label=multi_label)
        predictions = apply_thresholds(found, multi_label=multi_label)
        values = measure(metrics, references=references, predictions=predictions, probabilities=found)
        return {name: value for name, value in values.items() if value is not None}

    return validate


def evaluate(
    plan: LabelledPlan, reader: Reader, run: RunDir, seeds: Mapping[int, Path], *, machine: Machine, console: Console
) -> Evaluation:
    """Loads base and adapter from disk as a user would, and measures them beside the baselines.

    ``seeds``: the adapters of the same training with other seeds. Writes predictions.jsonl and eval.json. Raises
    NotProved where the adapter on disk is not the one that was trained.
    """
    multi_label = plan.task.multi_label
    # Another seed than training's: a head that was not saved would be random here, and show.
    base = load_base(plan, reader, seed=plan.recipe.train.seed + 1, quantize=True, machine=machine)
    inference_mode(base.model)
    rows = reader.rows([example.text for example in plan.splits.test])
    references = targets(plan.splits.test, plan.labels, multi_label=multi_label)
    seconds: dict[str, float] = {}
    with timed(seconds, "baseline"):
        baselines = _baselines(plan, reader, base, rows, console)
        base_says = free_answers(reader, base.model, rows, console, "the base")
    model = with_saved_adapter(base.model, run.adapter)
    inference_mode(model)
    with timed(seconds, "validation"):
        _check_reload(plan, reader, run, model)
        thresholds = _thresholds(plan, reader, model)
    with console.progress("scoring test rows", len(rows)) as advance, timed(seconds, "adapter"):
        logits = reader.score(model, rows, advance=advance)
    says = free_answers(reader, model, rows, console, "the adapter")
    adapter = probabilities(logits, multi_label=multi_label)
    console.note("metrics, intervals and paired tests")
    scored = {
        name: scored_on(plan, references, found, (), base_says if name == "baseline" else None)
        for name, found in baselines.items()
    }
    scored["adapter"] = scored_on(plan, references, adapter, thresholds, says)
    written = None
    if isinstance(reader, WordsReader):
        written = constrained_answers(reader, model, rows, console, "the adapter")
        scored["adapter_generated"] = scored_as_generated(plan, references, written)
    others = {seed: _of_seed(plan, reader, folder, rows, references, machine) for seed, folder in seeds.items()}
    report = _report(plan, scored, thresholds, seconds, others)
    baseline = apply_thresholds(baselines["baseline"], multi_label=multi_label)
    predictions = apply_thresholds(adapter, thresholds, multi_label=multi_label)
    write_jsonl(run.predictions, _predictions(plan, adapter, predictions, baseline, says, written))
    write_json(run.eval, as_json(report))
    return Evaluation(report, model, rows, logits)


def _of_seed(
    plan: LabelledPlan, reader: Reader, adapter: Path, rows: list[list[int]], references: Integers, machine: Machine
) -> Scored:
    """Another seed's adapter on the test rows, on a base of its own and with thresholds of its own."""
    base = load_base(plan, reader, seed=plan.recipe.train.seed + 1, quantize=True, machine=machine)
    model = with_saved_adapter(base.model, adapter)
    inference_mode(model)
    found = probabilities(reader.score(model, rows), multi_label=plan.task.multi_label)
    return scored_on(plan, references, found, _thresholds(plan, reader, model))


def scored_on(
    plan: LabelledPlan,
    references: Integers,
    found: Floats,
    thresholds: tuple[float, ...],
    says: FreeAnswers | None = None,
) -> Scored:
    """Scores probabilities [n, K] on the test rows by the recipe's settings; ``says``: what a decoder wrote freely."""
    multi_label = plan.task.multi_label
    return score_classification(
        references,
        found,
        apply_thresholds(found, thresholds, multi_label=multi_label),
        plan.labels,
        multi_label=multi_label,
        settings=plan.recipe.eval,
        seed=plan.recipe.train.seed,
        outside=None if says is None else says.outside,
    )


def _baselines(
    plan: LabelledPlan, reader: Reader, base: Loaded, rows: list[list[int]], console: Console
) -> dict[str, Floats]:
    """Probabilities of the majority class and, on the test rows, of the linear probe or of the base's own words."""
    multi_label, labels = plan.task.multi_label, len(plan.labels)
    references = targets(plan.splits.train, plan.labels, multi_label=multi_label)
    majority = probe.majority(references, len(rows), labels=labels, multi_label=multi_label)
    if isinstance(reader, WordsReader):
        with console.progress("scoring the base", len(rows)) as advance:
            own = probabilities(reader.score(base.model, rows, advance=advance), multi_label=False)
        return {"majority": majority, "baseline": own}
    chosen = probe.sample(len(plan.splits.train), plan.recipe.train.seed)
    seen = reader.rows([plan.splits.train[row].text for row in chosen])
    with console.progress("features of the frozen base", len(seen) + len(rows)) as advance:
        options: dict[str, Any] = {"pad_token_id": reader.tokenizer.pad_token_id, "advance": advance}
        train = probe.features(base.model, seen, **options)
        test = probe.features(base.model, rows, **options)
    linear = probe.probe(train, references[chosen], test, labels=labels, multi_label=multi_label)
    return {"majority": majority, "baseline": linear}


def _check_reload(plan: LabelledPlan, reader: Reader, run: RunDir, model: PreTrainedModel) -> None:
    """The adapter from disk must score the validation rows as the trained model did when it was saved."""
    validate = validator(plan, reader)
    noted: list[Any] = [row["valid"] for row in read_log(run.train_log) if row.get("best")]
    if validate is None or not noted:
        return
    before, now = noted[-1]["log_loss"], validate(model)["log_loss"]
    check_reloaded(model, run.adapter, "log-loss", before, now)


def _thresholds(plan: LabelledPlan, reader: Reader, model: PreTrainedModel) -> tuple[float, ...]:
    """Tuned on the validation rows where the recipe asks for it; else none."""
    if plan.recipe.eval.threshold != "tune":
        return ()
    multi_label = plan.task.multi_label
    rows = reader.rows([example.text for example in plan.splits.valid])
    found = probabilities(reader.score(model, rows), multi_label=multi_label)
    references = targets(plan.splits.valid, plan.labels, multi_label=multi_label)
    return tune_thresholds(references, found, average=plan.recipe.eval.average, multi_label=multi_label)


def _report(
    plan: LabelledPlan,
    scored: dict[str, Scored],
    thresholds: tuple[float, ...],
    seconds: dict[str, float],
    others: dict[int, Scored],
) -> EvalReport:
    comparison = {
        "adapter_vs_baseline": compare(scored["adapter"], scored["baseline"]),
        "adapter_vs_majority": compare(scored["adapter"], scored["majority"]),
    }
    models = {name: each.scores for name, each in scored.items()}
    rows = len(plan.splits.test)
    return EvalReport(
        task=plan.task.type,
        split="test",
        n=rows,
        labels=plan.labels,
        multi_label=plan.task.multi_label,
        data_sha256=examples_sha256(plan.splits.test),
        metrics_average=plan.recipe.eval.average,
        seed=plan.recipe.train.seed,
        models=models,
        comparison=comparison,
        gate=judge(plan.recipe.gate, models["adapter"], models["baseline"], comparison["adapter_vs_baseline"], n=rows),
        thresholds=thresholds,
        seconds=seconds,
        seeds={str(seed): dict(found.scores.metrics) for seed, found in others.items()},
    )


def _predictions(
    plan: LabelledPlan,
    found: Floats,
    predictions: Integers,
    baseline: Integers,
    says: FreeAnswers | None,
    written: Integers | None,
) -> Iterator[dict[str, Any]]:
    """A line for each test row; where a decoder answers with words also what it writes."""
    multi_label = plan.task.multi_label
    ours = label_names(predictions, plan.labels, multi_label=multi_label)
    theirs = label_names(baseline, plan.labels, multi_label=multi_label)
    for number, example in enumerate(plan.splits.test):
        reference = [label for label in plan.labels if label in example.labels]
        line = {
            "id": example.id,
            "input": example.text,
            "reference": reference,
            "prediction": ours[number],
            "scores": dict(zip(plan.labels, map(float, found[number]), strict=True)),
            "baseline": theirs[number],
            "correct": ours[number] == reference,
        }
        if says is not None and written is not None:
            line |= {"generated": plan.labels[written[number]], "said": says.texts[number]}
        yield line
