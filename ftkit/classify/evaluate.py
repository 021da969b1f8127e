"""Scores the trained adapter and its baselines on the test rows, judges the gate, and writes what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.data.splits import examples_sha256
from ftkit.errors import NotProved, Problem
from ftkit.evals.classification import Scored, compare, score_classification
from ftkit.evals.gate import judge
from ftkit.evals.loading import load_metrics, measure
from ftkit.evals.thresholds import apply_thresholds, tune_thresholds
from ftkit.files import write_json, write_jsonl
from ftkit.models.base import (
    Loaded,
    inference_mode,
    load_classifier,
    load_tokenizer,
    with_saved_adapter,
)  # fmt: skip
from ftkit.models.hardware import Machine
from ftkit.plan.labelled import LabelledPlan
from ftkit.records import EvalReport, Example, as_json
from ftkit.rundir import RunDir, read_log
from ftkit.tasks import probe
from ftkit.tasks.classify import encode, label_names, probabilities, score, targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats, Integers

_RELOAD_TOLERANCE = 1e-3  # of the validation log-loss, between the model in memory and the one on disk


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The report, and what the merge needs: the model that was measured and its logits on the test rows [n, K]."""

    report: EvalReport
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    logits: Floats


def load_base(plan: LabelledPlan, *, seed: int, quantize: bool, machine: Machine) -> tuple[Loaded, Any]:
    """The plan's base with a fresh head, and its tokenizer; quantised as the adapter asks where ``quantize``."""
    import torch

    tokenizer = load_tokenizer(plan.files, max_length=plan.max_length, trust_remote_code=plan.base.trust_remote_code)

    def load(skip: tuple[str, ...] | None) -> Loaded:
        return load_classifier(
            plan.files,
            plan.labels,
            multi_label=plan.task.multi_label,
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32,
            seed=seed,
            trust_remote_code=plan.base.trust_remote_code,
            skip_quantising=skip,
        )

    classifier = load(None)
    if quantize and plan.adapter.quantize:
        # The head is known from a first, unquantised load; 4-bit weights cannot be told apart afterwards.
        classifier = load(classifier.head)
    classifier.model.to(machine.device)
    return classifier, tokenizer


def validator(
    plan: LabelledPlan, tokenizer: PreTrainedTokenizerBase
) -> Callable[[PreTrainedModel], dict[str, float]] | None:
    """A function that scores the validation rows as the test rows are scored; None without validation rows."""
    if not plan.splits.valid:
        return None
    multi_label = plan.task.multi_label
    rows = encode(tokenizer, [example.text for example in plan.splits.valid], plan.max_length)
    references = targets(plan.splits.valid, plan.labels, multi_label=multi_label)
    metrics = load_metrics(
        ("f1", "log_loss"), labels=len(plan.labels), average=plan.recipe.eval.average, multi_label=multi_label
    )

    def validate(model: PreTrainedModel) -> dict[str, float]:
        inference_mode(model)
        found = probabilities(score(model, rows, pad_token_id=tokenizer.pad_token_id), multi_label=multi_label)
        predictions = apply_thresholds(found, multi_label=multi_label)
        values = measure(metrics, references=references, predictions=predictions, probabilities=found)
        return {name: value for name, value in values.items() if value is not None}

    return validate


def evaluate(
    plan: LabelledPlan, run: RunDir, seeds: Mapping[int, Path], *, machine: Machine, console: Console
) -> Evaluation:
    """Loads base and adapter from disk as a user would, and measures them beside the baselines.

    ``seeds``: the adapters of the same training with other seeds. Writes predictions.jsonl and eval.json. Raises
    NotProved where the adapter on disk is not the one that was trained.
    """
    recipe, multi_label = plan.recipe, plan.task.multi_label
    # Another seed than training's: a head that was not saved would be random here, and show.
    classifier, tokenizer = load_base(plan, seed=recipe.train.seed + 1, quantize=True, machine=machine)
    inference_mode(classifier.model)
    rows = encode(tokenizer, [example.text for example in plan.splits.test], plan.max_length)
    references = targets(plan.splits.test, plan.labels, multi_label=multi_label)
    seconds: dict[str, float] = {}
    with _timed(seconds, "baseline"):
        baselines = _baselines(plan, classifier, tokenizer, rows, console)
    model = with_saved_adapter(classifier.model, run.adapter)
    inference_mode(model)
    with _timed(seconds, "validation"):
        _check_reload(plan, run, model, tokenizer)
        thresholds = _thresholds(plan, model, tokenizer)
    with console.progress("scoring test rows", len(rows)) as advance, _timed(seconds, "adapter"):
        logits = score(model, rows, pad_token_id=tokenizer.pad_token_id, advance=advance)
    adapter = probabilities(logits, multi_label=multi_label)
    console.note("metrics, intervals and paired tests")
    scored = {name: scored_on(plan, references, found, ()) for name, found in baselines.items()} | {
        "adapter": scored_on(plan, references, adapter, thresholds)
    }
    others = {seed: _of_seed(plan, folder, rows, references, machine) for seed, folder in seeds.items()}
    report = _report(plan, scored, thresholds, seconds, others)
    baseline = apply_thresholds(baselines["baseline"], multi_label=multi_label)
    _write_predictions(
        run.predictions, plan, adapter, apply_thresholds(adapter, thresholds, multi_label=multi_label), baseline
    )
    write_json(run.eval, as_json(report))
    return Evaluation(report, model, tokenizer, logits)


def _of_seed(
    plan: LabelledPlan, adapter: Path, rows: list[list[int]], references: Integers, machine: Machine
) -> Scored:
    """Another seed's adapter on the test rows, on a base of its own and with thresholds of its own."""
    classifier, tokenizer = load_base(plan, seed=plan.recipe.train.seed + 1, quantize=True, machine=machine)
    model = with_saved_adapter(classifier.model, adapter)
    inference_mode(model)
    logits = score(model, rows, pad_token_id=tokenizer.pad_token_id)
    found = probabilities(logits, multi_label=plan.task.multi_label)
    return scored_on(plan, references, found, _thresholds(plan, model, tokenizer))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 3)


def scored_on(plan: LabelledPlan, references: Integers, found: Floats, thresholds: tuple[float, ...]) -> Scored:
    """Scores probabilities [n, K] on the test rows by the recipe's settings."""
    multi_label = plan.task.multi_label
    return score_classification(
        references,
        found,
        apply_thresholds(found, thresholds, multi_label=multi_label),
        plan.labels,
        multi_label=multi_label,
        settings=plan.recipe.eval,
        seed=plan.recipe.train.seed,
    )


def _baselines(
    plan: LabelledPlan, classifier: Loaded, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], console: Console
) -> dict[str, Floats]:
    """Probabilities of the majority class and of the linear probe on the test rows."""
    multi_label, labels = plan.task.multi_label, len(plan.labels)
    references = targets(plan.splits.train, plan.labels, multi_label=multi_label)
    chosen = probe.sample(len(plan.splits.train), plan.recipe.train.seed)
    seen = encode(tokenizer, [plan.splits.train[row].text for row in chosen], plan.max_length)
    with console.progress("features of the frozen base", len(seen) + len(rows)) as advance:
        options: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "advance": advance}
        train = probe.features(classifier.model, seen, **options)
        test = probe.features(classifier.model, rows, **options)
    linear = probe.probe(train, references[chosen], test, labels=labels, multi_label=multi_label)
    return {
        "majority": probe.majority(references, len(rows), labels=labels, multi_label=multi_label),
        "baseline": linear,
    }


def _check_reload(plan: LabelledPlan, run: RunDir, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The adapter from disk must score the validation rows as the trained model did when it was saved."""
    validate = validator(plan, tokenizer)
    noted: list[Any] = [row["valid"] for row in read_log(run.train_log) if row.get("best")]
    if validate is None or not noted:
        return
    before, now = noted[-1]["log_loss"], validate(model)["log_loss"]
    if abs(before - now) > _RELOAD_TOLERANCE:
        message = f"its validation log-loss was {before:.5f} in training and is {now:.5f} from disk. Report this."
        raise NotProved("the adapter on disk is not the trained one", [Problem("", str(run.adapter), message)])


def _thresholds(plan: LabelledPlan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[float, ...]:
    """Tuned on the validation rows where the recipe asks for it; else none."""
    if plan.recipe.eval.threshold != "tune":
        return ()
    multi_label = plan.task.multi_label
    rows = encode(tokenizer, [example.text for example in plan.splits.valid], plan.max_length)
    found = probabilities(score(model, rows, pad_token_id=tokenizer.pad_token_id), multi_label=multi_label)
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


def _write_predictions(
    path: Path, plan: LabelledPlan, found: Floats, predictions: Integers, baseline: Integers
) -> None:
    multi_label = plan.task.multi_label
    ours = label_names(predictions, plan.labels, multi_label=multi_label)
    theirs = label_names(baseline, plan.labels, multi_label=multi_label)

    def row(example: Example, number: int) -> dict[str, Any]:
        reference = [label for label in plan.labels if label in example.labels]
        return {
            "id": example.id,
            "input": example.text,
            "reference": reference,
            "prediction": ours[number],
            "scores": dict(zip(plan.labels, map(float, found[number]), strict=True)),
            "baseline": theirs[number],
            "correct": ours[number] == reference,
        }

    write_jsonl(path, (row(example, number) for number, example in enumerate(plan.splits.test)))
