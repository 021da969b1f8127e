"""A recipe's ``train`` section in the words of transformers' TrainingArguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models.hardware import Machine
from ftkit.tasks.section import Train

if TYPE_CHECKING:
    import torch

_DECAYING = 0.2  # share of the steps in which the schedule wsd falls (Hu et al. 2024)


def settings(
    section: Train,
    *,
    dtype: torch.dtype,
    steps: int,
    micro_batch: int,
    recomputing: bool,
    paged: bool,
    machine: Machine,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """The arguments of a training of ``steps`` optimiser steps with ``micro_batch`` rows at once.

    ``dtype``: the number format; ``recomputing``: activations are computed twice, to save memory; ``paged``: AdamW
    holds its state in 8 bits, and in the machine's memory where the GPU's is full (Dettmers et al. 2023).
    The Trainer neither validates, nor saves, nor reports by itself: that is done between the steps (train_watch.py).
    """
    return {
        "output_dir": str(folder),
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": section.batch_size // micro_batch,
        "learning_rate": section.learning_rate,
        "warmup_steps": math.ceil(steps * section.warmup),
        **_schedule(section, steps),
        "weight_decay": section.weight_decay,
        "bf16": str(dtype) == "torch.bfloat16",
        "use_cpu": machine.device == "cpu",
        "dataloader_pin_memory": machine.device != "cpu",
        "train_sampling_strategy": "sequential",
        "activation_checkpointing": recomputing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "neftune_noise_alpha": section.neftune,
        **({"optim": "paged_adamw_8bit"} if paged else {}),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": seed,
    }


def _schedule(section: Train, steps: int) -> dict[str, Any]:
    """The schedule in transformers' words."""
    match section.schedule:
        case "constant":
            return {"lr_scheduler_type": "constant_with_warmup"}
        case "wsd":
            decay = {"num_decay_steps": max(1, round(steps * _DECAYING)), "min_lr_ratio": 0.0}
            return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": decay}
        case _:
            return {"lr_scheduler_type": section.schedule}
