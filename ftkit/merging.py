"""What merging has in common for all tasks: writing the merged weights, and what must hold before they get the name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import Problem
from ftkit.models.base import Loaded, inference_mode, merged_into_base, with_saved_adapter
from ftkit.models.locate import BaseFiles
from ftkit.models.quantise import dequantised

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Largest |logit difference| and least agreement of the most probable answer, by the merged weights' dtype.
FLOAT32 = {"max_abs_logit_diff": 1e-3, "argmax_agreement": 1.0, "metric_diff": 0.005}
ROUNDED = {"argmax_agreement": 0.995, "metric_diff": 0.005}
POSITIONS = 512  # places whose logits the merged model must reproduce
MARGIN = 2e-3  # in float32 the answers must agree where the two most probable differ by more


def spread(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Some of the places (row, token), evenly spread, whose logits are kept when a model is measured."""
    step = max(1, len(places) // POSITIONS)
    return [*places[::step][:POSITIONS]]


def tolerance(dtype: str) -> dict[str, float]:
    return FLOAT32 if dtype == "float32" else ROUNDED


def stored_dtype(files: BaseFiles) -> torch.dtype:
    """The number format of the base's weights on disk."""
    import torch
    from safetensors import safe_open

    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(files.weights()[0], framework="pt") as file:
        found = {file.get_slice(name).get_dtype() for name in file.keys()}
    return next((kinds[name] for name in ("BF16", "F16", "F32") if name in found), torch.float32)


def full_precision(load: Callable[[bool], Loaded], folder: Path, *, loftq: bool) -> PreTrainedModel:
    """The adapter in ``folder`` on a base that is not held in 4 bits: what is merged, and what that must equal.

    ``load`` loads the base, quantised or not. LoftQ's adapter holds what quantising its base lost, so its base is the
    quantised one written out in full; any other belongs to the weights that were quantised.
    """
    base = load(loftq).model
    model = with_saved_adapter(dequantised(base) if loftq else base, folder)
    inference_mode(model)
    return model


def write_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Merges the adapter into its full-precision base and saves the result, complete, into ``folder``."""
    merged = merged_into_base(model)
    merged.to("cpu", dtype=dtype)
    merged.config.dtype = dtype
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def holds(differences: dict[str, float], allowed: dict[str, float]) -> bool:
    """Whether every difference is tolerated."""
    return not any(_exceeds(name, differences[name], limit) for name, limit in allowed.items())


def shortfalls(document: dict[str, Any]) -> list[Problem]:
    """What merge.json shows to be more than tolerated."""
    return [
        Problem(
            "", name, f"got {document[name]:.6g}, tolerated {limit:g}. The adapter is kept; merge.json has the figures."
        )
        for name, limit in document["tolerance"].items()
        if _exceeds(name, document[name], limit)
    ]


def _exceeds(name: str, value: float, limit: float) -> bool:
    return value < limit if name == "argmax_agreement" else value > limit
