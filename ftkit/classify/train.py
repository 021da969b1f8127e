"""From a plan to a trained adapter: encodes the rows and puts base, adapter, loss and validation together."""

from __future__ import annotations

from ftkit.classify.evaluate import load_base, validator
from ftkit.console import Console
from ftkit.files import write_json
from ftkit.models.base import load_tokenizer, with_new_adapter
from ftkit.models.hardware import Machine
from ftkit.plan.labelled import LabelledPlan
from ftkit.records import TrainSummary, as_json
from ftkit.rundir import RunDir
from ftkit.tasks import classify
from ftkit.train import Job, train


def train_run(plan: LabelledPlan, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> TrainSummary:
    """Trains with ``seed`` and leaves ``adapter/`` (with tokenizer and labels.json) and train.json in the folder.

    Goes on from the last checkpoint in the folder. The rows are those of the plan whatever the seed. Raises as
    ``train.train`` does.
    """
    recipe, task, adapter = plan.recipe, plan.task, plan.adapter
    tokenizer = load_tokenizer(plan.files, max_length=plan.max_length, trust_remote_code=plan.base.trust_remote_code)
    ids = classify.encode(tokenizer, [example.text for example in plan.splits.train], plan.max_length)
    goals = classify.targets(plan.splits.train, plan.labels, multi_label=task.multi_label).tolist()
    weights = classify.weights_of(
        task.class_weights, plan.labels, plan.preflight.counts["train"], multi_label=task.multi_label
    )
    job = Job(
        build=lambda: with_new_adapter(load_base(plan, seed=seed, quantize=True, machine=machine)[0], adapter),
        adapted=True,
        rows=[{"input_ids": row, "labels": goal} for row, goal in zip(ids, goals, strict=True)],
        lengths=[len(row) for row in ids],
        places=lambda row: plan.splits.train[row].where,
        collate=classify.Collate(int(str(tokenizer.pad_token_id)), task.multi_label),
        loss=classify.loss_function(
            multi_label=task.multi_label, weights=weights, label_smoothing=task.label_smoothing
        ),
        validate=validator(plan, tokenizer),
        best_by=plan.best_by,
        lowest=False,
        section=recipe.train,
        tokenizer=tokenizer,
        lr_ratio=adapter.lr_ratio,
        tokens_at_once=None,
        converted=adapter.type == "lora" and adapter.init == "pissa",
    )
    folder.folder.mkdir(parents=True, exist_ok=True)
    summary = train(job, folder, seed=seed, machine=machine, console=console, resume=True)
    tokenizer.save_pretrained(folder.adapter)
    write_json(folder.adapter / "labels.json", plan.labels_document())
    write_json(folder.train, as_json(summary))
    return summary
