"""Several LoRA adapters as one plain PEFT adapter: all their factors side by side, or the best ones of fewer ranks.

The sum of the updates, sum_i w_i s_i B_i A_i (s_i an adapter's own scaling), is the product of [w_1 s_1 B_1, ...] and
[A_1; ...] put together: ``cat``, of the added ranks, exact but for rounding. ``svd`` keeps the largest singular values
of that product: the nearest matrix of the rank in the least squares (Eckart and Young 1936).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem
from ftkit.export.adapter import AdapterFiles, scale
from ftkit.export.combine import (
    REFUSED,
    check_alike,
    check_one_base,
    check_settings,
    combination,
    plain_modules,
    shared_files,
)
from ftkit.export.tensors import Header, Shards, Stored, check_space
from ftkit.files import write_json, writing_folder

if TYPE_CHECKING:
    import torch

_FACTORS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
# What says where an adapter belongs and how its factors lie. All else is PEFT's default: scales are in the factors.
_KEPT = ("peft_type", "task_type", "base_model_name_or_path", "revision", "fan_in_fan_out")
_CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_ONE_FILE = 2**63


@dataclass(frozen=True, slots=True)
class _Factors:
    """A module's factors a [r, in] and b [out, r] with their names, and by what their product is multiplied."""

    a: Stored
    b: Stored
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class _Module:
    """What all adapters have for a module, and the rank that is written."""

    parts: tuple[_Factors, ...]
    rank: int

    @property
    def planned(self) -> tuple[Header, Header]:
        a, b = self.parts[0].a, self.parts[0].b
        shapes = (self.rank, *a.shape[1:]), (b.shape[0], self.rank, *b.shape[2:])
        return Header(a.name, "F32", shapes[0]), Header(b.name, "F32", shapes[1])


def combined_adapter(
    adapters: Sequence[AdapterFiles], out: Path, method: str, weights: Sequence[float], *, rank: int | None = None
) -> dict[str, Any]:
    """Writes the folder ``out`` with one adapter that plain peft loads, and returns what combined.json in it says.

    ``rank``: what svd keeps of each module; None for the largest rank that an adapter has there. One module is in
    memory at a time; the factors are float32. Raises RecipeError for settings that do not fit, DataError for adapters
    that are no plain LoRA on one base.
    """
    check_settings(method, weights, len(adapters), density=None, rank=rank)
    check_one_base(adapters)
    modules = _modules(adapters, method, weights, rank)
    whole = _whole(adapters)
    planned = [header for module in modules.values() for header in module.planned] + list(whole)
    check_space(out, sum(header.nbytes for header in planned))
    gone = total = 0.0
    with writing_folder(out) as folder:
        with Shards(folder, planned, _ONE_FILE) as shards:
            for module in modules.values():
                lost, norm = _write(shards, module, method)
                gone, total = gone + lost, total + norm
            for stored in whole:
                shards.copy(stored)
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        write_json(folder / "adapter_config.json", _config(adapters, modules))
        for file in shared_files(adapters):
            (folder / file.name).write_bytes(file.read_bytes())
        record = combination(adapters, method, weights)
        record["ranks"] = sorted({module.rank for module in modules.values()})
        record["relative_error"] = math.sqrt(gone / total) if total else 0.0
        write_json(folder / "combined.json", record)
    return record


def truncated(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Factors [rank, in] and [out, rank] of the nearest matrix to b a of that rank, and all singular values of b a.

    The product [out, in] itself is not made: the singular values are those of a square of the factors' rank.
    """
    import torch

    outer, left = torch.linalg.qr(b)
    inner, right = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(left @ right.T)
    root = values[:rank].sqrt()
    return root[:, None] * (v[:rank] @ inner.T), (outer @ u[:, :rank]) * root, values


def _write(shards: Shards, module: _Module, method: str) -> tuple[float, float]:
    """Writes a module's factors. Returns the squared norms of what was lost and of the whole sum; 0 and 0 for cat."""
    import torch

    a = torch.cat([part.a.tensor().double() for part in module.parts])
    b = torch.cat([part.b.tensor().double() * part.scale for part in module.parts], 1)
    lost = norm = 0.0
    if method == "svd":
        a, b, values = truncated(a, b, module.rank)
        lost, norm = float(values[module.rank :].square().sum()), float(values.square().sum())
    for header, factor in zip(module.planned, (a, b), strict=True):
        flat = factor.float().contiguous().flatten()
        shards.write(header.name, [flat.view(torch.uint8).numpy().data])
    return lost, norm


def _modules(
    adapters: Sequence[AdapterFiles], method: str, weights: Sequence[float], rank: int | None
) -> dict[str, _Module]:
    found: dict[str, list[_Factors]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, own in _factors(adapter, weight).items():
            others = found.setdefault(name, [])
            if others and (own.a.shape[1:], own.b.shape[0]) != (others[0].a.shape[1:], others[0].b.shape[0]):
                message = f"its {name} is of another shape than in {adapters[0].folder}. Give adapters of one base."
                raise DataError("the adapters have different bases", [Problem("", str(adapter.folder), message)])
            if method == "svd" and len(own.a.shape) != 2:
                message = f"svd is for matrices, and {name} is a convolution. Use cat."
                raise DataError(REFUSED, [Problem("", str(adapter.folder), message)])
            others.append(own)
    return {name: _Module(tuple(parts), _rank(parts, method, rank)) for name, parts in found.items()}


def _rank(parts: Sequence[_Factors], method: str, rank: int | None) -> int:
    added = sum(part.rank for part in parts)
    if method == "cat":
        return added
    wanted = rank or max(part.rank for part in parts)
    return min(wanted, added, parts[0].a.shape[1], parts[0].b.shape[0])


def _factors(adapter: AdapterFiles, weight: float) -> dict[str, _Factors]:
    """The factors by module, ``weight`` in their scale. Raises DataError where an adapter is not plain LoRA."""
    wrong = "target_parameters" if adapter.config.get("target_parameters") else None
    found = {}
    for module, own in plain_modules(adapter).adapted.items():
        pair = next((pair for pair in _FACTORS if own.keys() == set(pair)), None)
        if pair is None:
            wrong = f"{module} with {', '.join(own)}"
            break
        found[module] = _Factors(own[pair[0]], own[pair[1]], weight * scale(adapter.config, module))
    if wrong is not None:
        message = f"it has {wrong}, which one pair of factors does not hold. Use task_arithmetic, which writes a model."
        raise DataError(REFUSED, [Problem("", str(adapter.folder), message)])
    return found


def _whole(adapters: Sequence[AdapterFiles]) -> list[Stored]:
    """Tensors that are no factors: the same in all adapters, or the adapters cannot be combined.

    A module's own weight below its factors (base_layer), which peft saves of embeddings, is the base's: an adapter that
    does not have it has the same.
    """
    found = [plain_modules(adapter).whole for adapter in adapters]
    kept = []
    for name in dict.fromkeys(name for own in found for name in own):
        having = [number for number, own in enumerate(found) if name in own]
        stored = found[having[0]][name]
        asked = having if ".base_layer." in stored.name else range(len(adapters))
        check_alike(name, [found[number].get(name) for number in asked], [adapters[number] for number in asked])
        kept.append(stored)
    return kept


def _config(adapters: Sequence[AdapterFiles], modules: dict[str, _Module]) -> dict[str, Any]:
    """The adapter's configuration, with every scale 1: alpha is the rank."""
    configs = [adapter.config for adapter in adapters]
    rank = max(module.rank for module in modules.values())
    other = {name: module.rank for name, module in modules.items() if module.rank != rank}
    alike = all(_choice(config) == _choice(configs[0]) for config in configs)
    choice = {key: configs[0].get(key) for key in _CHOICE} if alike else {"target_modules": sorted(modules)}
    return {
        **{key: configs[0].get(key) for key in _KEPT},
        **choice,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "modules_to_save": configs[0].get("modules_to_save"),
        "lora_dropout": 0.0,
        "bias": configs[0].get("bias", "none"),
        "inference_mode": True,
    }


def _choice(config: dict[str, Any]) -> list[Any]:
    """Which modules an adapter takes, as values that can be compared: peft writes sets in any order."""
    return [sorted(value) if isinstance(value := config.get(key), list) else value for key in _CHOICE]
