"""From prepared windows to a trained adapter, or to a model from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.models.base import inference_mode, with_new_adapter
from ftkit.models.fingerprint import write_fingerprint
from ftkit.models.hardware import Machine, training_dtype
from ftkit.plan.text import TextPlan
from ftkit.pretrain.prepare import Prepared, load_base
from ftkit.rundir import RunDir
from ftkit.tasks import language, masked
from ftkit.tasks.batches import trained_at_once
from ftkit.tasks.heldout import HeldOut, score_held_out
from ftkit.train import Job, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_run(
    plan: TextPlan, prepared: Prepared, folder: RunDir, *, seed: int, machine: Machine, console: Console
) -> None:
    """Trains with ``seed`` and leaves ``adapter/`` or ``model/`` (with tokenizer) and train.json in the folder.

    Goes on from the last checkpoint in the folder. Raises as ``train.train`` does.
    """
    adapter, windows = plan.adapter, prepared.windows

    def build() -> PreTrainedModel:
        loaded = load_base(plan, seed=seed, quantize=True, machine=machine, tokenizer=prepared.tokenizer)
        return loaded.model if adapter is None else with_new_adapter(loaded, adapter)

    def complete(trained: Path) -> None:
        prepared.tokenizer.save_pretrained(trained)
        if plan.files is not None and adapter is not None:
            write_fingerprint(trained, plan.files, adapter)

    hidden, dtype = prepared.masking, training_dtype(plan.recipe.train.precision, machine, plan.width)

    def collate(model: PreTrainedModel) -> Callable[..., Any]:
        if hidden is not None:
            return masked.CollateMasked(hidden, prepared.pad_token_id, seed)
        alone = language.Collate(prepared.pad_token_id, plan.max_length)
        return language.sharing(alone, model, windows, windows.lengths, dtype)

    job = Job(
        build=build,
        adapted=adapter is not None,
        rows=windows,
        lengths=windows.lengths,
        places=lambda row: plan.corpus.train.where(int(windows.pieces.document[windows.members(row)[0]])),
        mixed=False,  # windows are about alike in length
        collate=collate,
        loss=None if hidden is None else masked.loss_function(),
        validate=validator(prepared, prepared.valid) if len(prepared.valid) else None,
        best_by=plan.best_by,
        lowest=True,
        section=plan.recipe.train,
        dtype=dtype,
        tokenizer=prepared.tokenizer,
        lr_ratio=adapter.lr_ratio if adapter else None,
        tokens_at_once=trained_at_once(machine, plan.width),
        converted=adapter is not None and adapter.type == "lora" and adapter.init == "pissa",
        complete=complete,
    )
    train(job, folder, seed=seed, machine=machine, console=console)


def validator(prepared: Prepared, side: HeldOut) -> Callable[[PreTrainedModel], dict[str, float]]:
    """A function that scores a held-out side as the test windows are scored: loss in nats a token, and perplexity."""
    tokens = int(side.tokens.sum())

    def validate(model: PreTrainedModel) -> dict[str, float]:
        inference_mode(model)
        loss = float(score_held_out(model, side, pad_token_id=prepared.pad_token_id).nll.sum() / tokens)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    return validate
