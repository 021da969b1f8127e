"""Several adapters on one base: their weight updates dW_i become one, W' = W + combined, tensor by tensor.

With weights w_i, and a density d where values are dropped (docs/merging.md has the formulas and their sources):

    linear, task_arithmetic   sum_i w_i dW_i; the two differ in the weights that are used where none are given
    magnitude_prune           sum_i w_i top_d(dW_i): the largest values of each tensor
    dare_linear               sum_i w_i drop_d(dW_i) / d: random values
    ties, dare_ties           of the pruned values, the mean of those that have the elected sign
    cat, svd                  the sum of task_arithmetic, written as one adapter (ftkit/export/combined_adapter.py)

All act on dW_i, the product of an adapter's factors. peft's methods of the same names act on the factors themselves,
where a sum of products becomes a product of sums: another result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.errors import DataError, Problem, RecipeError, did_you_mean
from ftkit.export.adapter import AdapterFiles, Modules, NoStreamedForm, check_start, modules
from ftkit.export.combined_update import Combined, Part, step_of
from ftkit.export.methods import Additive, Replaced, Update
from ftkit.export.tensors import Stored
from ftkit.export.updates import Changes, changes_of
from ftkit.models.fingerprint import read_fingerprint

REFUSED = "the adapters cannot be combined"
AS_ADAPTER = ("cat", "svd")
PRUNED = ("magnitude_prune", "ties", "dare_linear", "dare_ties")
METHODS = ("linear", "task_arithmetic", *PRUNED, *AS_ADAPTER)
_ELECTED = ("ties", "dare_ties")
_ADDED = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_B.bias")


def default_weights(method: str, adapters: int) -> list[float]:
    """What is used where no weights are given: for linear the mean of the merged models, else each update whole."""
    return [1 / adapters if method == "linear" else 1.0] * adapters


def combine(
    adapters: Sequence[AdapterFiles],
    base: Mapping[str, Stored],
    method: str,
    weights: Sequence[float],
    *,
    density: float | None = None,
    seed: int = 0,
) -> Changes:
    """What several adapters together do to their base. Updates hold the factors alone, and compute values on demand.

    ``density``: the share of values that the methods in ``PRUNED`` keep; ``seed``: of those that DARE drops. Raises
    RecipeError for settings that do not fit the method, DataError for adapters of different bases or with parts that
    are no update to add: DoRA, IA3, modules or tokens that were trained whole, unless all have the same.
    """
    check_settings(method, weights, len(adapters), density=density, rank=None)
    if method in AS_ADAPTER:
        raise ValueError(f"{method} makes an adapter: use combined_adapter")
    check_one_base(adapters)
    for adapter in adapters:
        plain_modules(adapter)
    found = [_changes(adapter, base) for adapter in adapters]
    pruning = _Pruning(method, density or 1.0, seed)
    names = dict.fromkeys(name for own in found for name in own.updates)
    configs = [own.config for own in found if own.config is not None]
    if any(config != configs[0] for config in configs):
        raise _refused(adapters[-1], "another config.json than the others ask for")
    return Changes(
        {name: _combined(name, [own.updates.get(name) for own in found], adapters, weights, pruning, base)
         for name in names},
        {name: new for own in found for name, new in own.renamed.items()},
        tuple(dict.fromkeys(name for own in found for name in own.dropped)),
        configs[0] if configs else None,
    )  # fmt: skip


def _changes(adapter: AdapterFiles, base: Mapping[str, Stored]) -> Changes:
    try:
        return changes_of(adapter, base)
    except NoStreamedForm as form:
        raise _refused(adapter, str(form)) from None


def check_settings(
    method: str, weights: Sequence[float], adapters: int, *, density: float | None, rank: int | None
) -> None:
    """Raises RecipeError for an unknown method, and for settings that it needs and lacks, or has and does not use."""
    wrong = []
    if method not in METHODS:
        known = f"Write one of {', '.join(METHODS)}."
        fix = " ".join(filter(None, (f"{method} is no method.", did_you_mean(method, METHODS), known)))
        wrong.append(Problem("", "--method", fix))
        raise RecipeError(REFUSED, wrong)
    if len(weights) != adapters:
        wrong.append(Problem("", "--weights", f"{len(weights)} for {adapters} adapters. Write one for each."))
    elif not all(map(math.isfinite, weights)) or not any(weights):
        wrong.append(Problem("", "--weights", "they must be finite, and not all 0. Write numbers such as 0.5."))
    if method in PRUNED and (density is None or not 0 < density <= 1):
        got = "is needed" if density is None else f"is {density:g}"
        message = f"{got}: the share of values that {method} keeps, above 0 and at most 1. Write 0.2, for instance."
        wrong.append(Problem("", "--density", message))
    if method not in PRUNED and density is not None:
        wrong.append(Problem("", "--density", f"{method} keeps all values. Leave it out."))
    if method == "svd" and rank is not None and rank < 1:
        wrong.append(Problem("", "--rank", f"{rank} is no rank. Write 1 or more."))
    if method != "svd" and rank is not None:
        wrong.append(Problem("", "--rank", f"{method} does not choose a rank; svd does. Leave it out."))
    if wrong:
        raise RecipeError(REFUSED, wrong)


def check_one_base(adapters: Sequence[AdapterFiles]) -> str | None:
    """The fingerprint of the base that ftkit.json beside the adapters names; None where none has one.

    Raises DataError where they name bases with different weights.
    """
    noted = [(adapter.folder, base) for adapter in adapters if (base := read_fingerprint(adapter.folder)) is not None]
    for folder, base in noted[1:]:
        first, its = noted[0]
        if base.base_sha256 != its.base_sha256:
            message = (
                f"trained on {base.base} ({base.base_sha256[:12]}…), and {first} on {its.base} "
                f"({its.base_sha256[:12]}…). Give adapters of one base."
            )
            raise DataError("the adapters have different bases", [Problem("", str(folder), message)])
    return noted[0][1].base_sha256 if noted else None


def plain_modules(adapter: AdapterFiles) -> Modules:
    """The adapter's tensors by module. Raises DataError where it is more than an update of the base's own weights."""
    check_start(adapter)
    try:
        found = modules(adapter)
    except NoStreamedForm as form:
        raise _refused(adapter, str(form)) from None
    for module, own in found.adapted.items():
        odd = next((kind for kind in own if kind not in _ADDED), None)
        if odd is not None:
            raise _refused(adapter, f"{module}.{odd}")
    return found


def _refused(adapter: AdapterFiles, what: str) -> DataError:
    message = f"it has {what}: that is no update to add to others. Give plain LoRA adapters."
    return DataError(REFUSED, [Problem("", str(adapter.folder), message)])


def check_alike(name: str, stored: Sequence[Stored | None], adapters: Sequence[AdapterFiles]) -> None:
    """Raises DataError where a tensor that was trained whole is not the same in all adapters."""
    first = stored[0]
    for adapter, other in zip(adapters[1:], stored[1:], strict=True):
        if first is None or other is None or not _alike(first, other):
            message = (
                f"{name} was trained whole, and is not the same as in {adapters[0].folder}. "
                "Give adapters without modules_to_save, or with the same ones."
            )
            raise DataError(REFUSED, [Problem("", str(adapter.folder), message)])


def _alike(first: Stored, second: Stored) -> bool:
    """Whether two tensors have the same values, in whatever number format."""
    if first.shape != second.shape:
        return False
    if not first.shape:
        return bool(first.tensor().float() == second.tensor().float())
    step = step_of(first.shape)
    return all(
        first.rows(start, min(start + step, first.shape[0]))
        .float()
        .equal(second.rows(start, min(start + step, first.shape[0])).float())
        for start in range(0, first.shape[0], step)
    )


def combination(adapters: Sequence[AdapterFiles], method: str, weights: Sequence[float]) -> dict[str, Any]:
    """What combined.json says: the method, and of each adapter its folder, weight and fingerprint."""
    return {
        "method": method,
        "adapters": [
            {"folder": str(adapter.folder), "weight": weight, "sha256": adapter.sha256}
            for adapter, weight in zip(adapters, weights, strict=True)
        ],
    }


def shared_files(adapters: Sequence[AdapterFiles]) -> list[Path]:
    """Files that stand beside all adapters with the same content: their tokenizer, template and base's fingerprint."""
    own = ("adapter_config.json", "adapter_model.safetensors", "README.md", "training_args.bin", "combined.json")
    files = [path for path in sorted(adapters[0].folder.iterdir()) if path.is_file() and path.name not in own]
    return [path for path in files if all(_is_copy(path, adapter.folder / path.name) for adapter in adapters[1:])]


def _is_copy(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()


@dataclass(frozen=True, slots=True)
class _Pruning:
    method: str
    density: float
    seed: int


def _combined(
    name: str,
    updates: Sequence[Update | None],
    adapters: Sequence[AdapterFiles],
    weights: Sequence[float],
    pruning: _Pruning,
    base: Mapping[str, Stored],
) -> Update:
    """The update of one tensor; adapters that do not touch it add nothing to it."""
    own = [_own(update, base.get(name)) for update in updates]
    values = next((update.values for update in own if isinstance(update, Replaced)), None)
    if values is not None and values not in base.values():
        check_alike(name, [update.values if isinstance(update, Replaced) else None for update in own], adapters)
    shape = base[name].shape if values is None else values.shape
    parts = []
    for number, (update, adapter, weight) in enumerate(zip(own, adapters, weights, strict=True)):
        added = update.then if isinstance(update, Replaced) else update
        if added is None:
            continue
        if not isinstance(added, Additive):
            raise _refused(adapter, f"another change of {name} than a sum")
        key = (pruning.seed, number, name) if pruning.method.startswith("dare") else None
        parts.append(Part(added, shape, weight, pruning.density, key))
    total = Combined(shape, tuple(parts), elected=pruning.method in _ELECTED) if parts else None
    if values is not None:
        return Replaced(values, total)
    return total or Replaced(base[name])


def _own(update: Update | None, stored: Stored | None) -> Update | None:
    """The update alone where an adapter also holds the tensor itself, unchanged, as peft saves embeddings."""
    if isinstance(update, Replaced) and stored is not None and _alike(update.values, stored):
        return update.then
    return update
