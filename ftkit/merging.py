"""What merging has in common for all tasks: writing the merged weights, and what must hold before they get the name."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import DataError, Problem
from ftkit.export.stream import merge_streamed
from ftkit.export.tensors import read_index
from ftkit.export.updates import NoStreamedForm, changes_of, read_adapter
from ftkit.models.adapters import Adapter
from ftkit.models.base import GENERATION, Loaded, inference_mode, merged_into_base, with_saved_adapter
from ftkit.models.locate import BaseFiles
from ftkit.models.placement import Placement
from ftkit.models.quantise import dequantised
from ftkit.tasks.section import Into, Merge

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats

# Largest |logit difference| and least agreement of the most probable answer: where weights and what is computed with
# them are in float32, and where either is rounded to 16 bits.
FLOAT32 = {"max_abs_logit_diff": 1e-3, "argmax_agreement": 1.0}
ROUNDED = {"argmax_agreement": 0.995}
POSITIONS = 512  # places whose logits the merged model must reproduce
EVERY = -1.0  # a margin that every answer has
_MARGIN = 2e-3  # in float32 the answers must agree where the two most probable differ by more
# What is computed in 16 bits may differ by so many times what rounding alone does, and by these where that is next to
# nothing. A right merge made 1.0 times as much, an update that is a tenth too small 1.6 to 2.2, one layer's update lost
# 3.4 to 7.6 (Llamas of 2 to 36 layers, docs/log.md, 2026-11-26).
_TIMES, _RMS, _SHARE = 1.5, 1e-3, 0.005


def spread(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Some of the places (row, token), evenly spread, whose logits are kept when a model is measured."""
    step = max(1, len(places) // POSITIONS)
    return [*places[::step][:POSITIONS]]


def tolerance(
    dtype: str, metric_diff: float, rounding: Mapping[str, float] | None = None, answers: int = 1
) -> dict[str, float]:
    """What the merged model may differ by, by the number format of its weights. ``metric_diff``: of the recipe.

    ``rounding``, where 16 bits are computed with: what that alone makes of so many ``answers`` (``rounding_alone``).
    """
    if rounding is None:
        return {**(FLOAT32 if dtype == "float32" else ROUNDED), "metric_diff": metric_diff}
    turned = _TIMES * (1 - rounding["argmax_agreement"]) + _SHARE + 1 / answers
    return {
        "rms_logit_diff": max(_TIMES * rounding["rms_logit_diff"], _RMS),
        "argmax_agreement": max(0.0, 1 - turned),
        "metric_diff": metric_diff,
    }


def margin(stored: str, computed: str) -> float:
    """By how much the most probable answer must lead for it to count; see ``tolerance``."""
    return _MARGIN if stored == computed == "float32" else EVERY


def apart(expected: Floats, found: Floats) -> dict[str, float]:
    """How far logits lie apart: at most, and as the root of the mean square."""
    import numpy as np

    differences = np.abs(expected - found)
    return {
        "max_abs_logit_diff": float(differences.max()),
        "rms_logit_diff": float(np.sqrt(np.square(differences).mean())),
    }


def rounding_alone(
    chosen: Unquantised,
    how: Literal["streamed", "peft"],
    placement: Placement,
    differences: Callable[[PreTrainedModel], dict[str, float]],
) -> dict[str, float] | None:
    """How the adapter differs once PEFT has merged it where it stands, which rounds as often; ``how`` it was written.

    None where it is computed in float32, and rounding makes next to nothing. ``differences`` compares with the adapter.
    """
    import torch

    if placement.dtype == "float32":
        return None
    if how == "streamed":
        return differences(merged_into_base(chosen.model))
    # It was merged so to be written, and stands in the computer's memory as it was saved.
    return differences(chosen.model.get_base_model().to(placement.device, getattr(torch, placement.dtype)))


def stored_dtype(files: BaseFiles) -> torch.dtype:
    """The number format of the base's weights on disk."""
    import torch
    from safetensors import safe_open

    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(files.weights()[0], framework="pt") as file:
        found = {file.get_slice(name).get_dtype() for name in file.keys()}
    return next((kinds[name] for name in ("BF16", "F16", "F32") if name in found), torch.float32)


@dataclass(frozen=True, slots=True)
class Unquantised:
    """An adapter on a base that is not held in 4 bits: what is merged, and what the merged model must equal.

    ``into``: which base that is. ``figures``: of the validation rows by ``metric``, for each base, where they decided.
    """

    model: PreTrainedModel
    into: Into = "full"
    metric: str = ""
    figures: Mapping[Into, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chooser:
    """What decides between two bases: a figure of the validation rows, as it chose the checkpoint."""

    validate: Callable[[PreTrainedModel], dict[str, float]] | None
    best_by: str
    lowest: bool


def full_precision(load: Callable[[bool], Loaded], folder: Path, into: Into) -> PreTrainedModel:
    """The adapter in ``folder`` on a base in full precision; ``load`` loads the base, quantised or not."""
    base = load(into == "dequantised").model
    model = with_saved_adapter(dequantised(base) if into == "dequantised" else base, folder)
    inference_mode(model)
    return model


def base_to_merge_into(adapter: Adapter, section: Merge) -> Literal["full", "dequantised", "auto"]:
    """LoftQ's adapter holds what quantising its base lost, so it fits the quantised base alone, written out in full."""
    into = section.into
    return "dequantised" if adapter.init == "loftq" else into


def unquantised(
    load: Callable[[bool], Loaded], folder: Path, into: Literal["full", "dequantised", "auto"], chooser: Chooser
) -> Unquantised:
    """``full_precision`` on the base that the recipe names or, for auto, the one with the better figure.

    Raises DataError for auto where no validation row is left.
    """
    if into != "auto":
        return Unquantised(full_precision(load, folder, into), into)
    if chooser.validate is None:
        fix = "No validation row is left to choose by. Write full or dequantised."
        raise DataError("the base to merge into cannot be chosen", [Problem("", "merge.into", fix)])
    figures: dict[Into, float] = {}
    model: PreTrainedModel | None = None
    bases: tuple[Into, ...] = ("full", "dequantised")
    for each in bases:
        model = None  # two models need not stand in memory at once
        model = full_precision(load, folder, each)
        figures[each] = chooser.validate(model)[chooser.best_by]
    better: Into = (min if chooser.lowest else max)(bases, key=lambda each: figures[each])
    if better != bases[-1]:
        model = None
        model = full_precision(load, folder, better)
    assert model is not None
    return Unquantised(model, better, chooser.best_by, figures)


def against_quantised(
    chosen: Unquantised, differences: dict[str, float], metric: str, adapter: float | None, merged: float | None
) -> dict[str, Any]:
    """What merge.json tells of the adapter on its base in 4 bits, which was measured, against the merged model.

    ``differences``: of their logits and answers; ``adapter`` and ``merged``: the metric of each, on the test rows.
    """
    document: dict[str, Any] = {
        "into": chosen.into,
        "quantised": {**differences, "metric": metric, "adapter": adapter, "merged": merged},
    }
    if chosen.figures:
        document["chosen_by"] = {"metric": chosen.metric, **chosen.figures}
    return document


def write_merged(
    chosen: Unquantised, adapter: Path, files: BaseFiles, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Literal["streamed", "peft"]:
    """Merges the adapter into the base that was chosen and writes the result, complete, into ``folder``.

    Tensor by tensor from the base's files; by PEFT, in memory, into a base that was quantised and stands in no file,
    and where the adapter has no other form. Returns which.
    """
    dtype = stored_dtype(files)
    if chosen.into == "full":
        try:
            untied = _write_streamed(chosen.model, adapter, files, folder)
        except NoStreamedForm:
            pass
        else:
            _write_settings(chosen.model, tokenizer, folder, dtype, untied=untied)
            _write_generation(adapter, folder)
            return "streamed"
    merged = merged_into_base(chosen.model)
    merged.to("cpu", dtype=dtype)
    merged.config.dtype = dtype
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_generation(adapter, folder)
    return "peft"


def _write_streamed(model: PreTrainedModel, adapter: Path, files: BaseFiles, folder: Path) -> bool:
    """Writes the merged weights; whether the output is no longer the input embedding."""
    changes = changes_of(read_adapter(adapter), read_index(files.folder), model)
    merge_streamed(files.folder, changes, folder)
    return changes.untied


def _write_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype, *, untied: bool
) -> None:
    """Puts the configuration and the tokenizer of what was trained in the place of the base's."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = copy.deepcopy(inner.config)
    config.architectures, config.dtype = [type(inner).__name__], dtype
    if untied:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
    if inner.can_generate():
        inner.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_generation(adapter: Path, folder: Path) -> None:
    """Puts the settings for generation that were saved with the adapter in the place of the base's."""
    own = adapter / GENERATION
    if own.is_file():
        shutil.copyfile(own, folder / GENERATION)


def holds(differences: dict[str, float], allowed: dict[str, float]) -> bool:
    """Whether every difference is tolerated."""
    return not any(_exceeds(name, differences[name], limit) for name, limit in allowed.items())


def shortfalls(document: dict[str, Any]) -> list[Problem]:
    """What merge.json shows to be more than tolerated."""
    return [
        Problem("", name, f"got {document[name]:.6g}, tolerated {limit:g}. The adapter is kept.")
        for name, limit in document["tolerance"].items()
        if _exceeds(name, document[name], limit)
    ]


def _exceeds(name: str, value: float, limit: float) -> bool:
    return value < limit if name == "argmax_agreement" else value > limit
