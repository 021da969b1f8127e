"""Where a model stands: device and number format, beside what else has to fit there, and how its memory comes back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_ROOM = 1.2  # a model and what it computes, over its weights


@dataclass(frozen=True, slots=True)
class Placement:
    """``device``: cpu or cuda; ``dtype``: of the weights and of what is computed with them, as torch names it.

    ``spread``: some layers stand in the computer's memory, as the GPU's does not hold them all.
    """

    device: str
    dtype: str
    spread: bool = False

    def __str__(self) -> str:
        where = "a GPU" if self.device == "cuda" else "the processor"
        return f"{self.dtype} on {where}{', which does not hold all layers at once' if self.spread else ''}"


def placement_of(model: PreTrainedModel) -> Placement:
    """Where a model stands, or the base beneath its adapter."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    spread = len(set(getattr(base, "hf_device_map", {}).values())) > 1
    return Placement(base.device.type, str(base.dtype).removeprefix("torch."), spread)


def device_map(device: str, weights: Iterable[Path]) -> dict[str, Any]:
    """What ``from_pretrained`` needs to know of a model whose weights are larger than what is free on the GPU.

    Accelerate then keeps as many layers there as fit, and brings the others from the computer's memory when they are
    needed. Empty where the model fits, or ``device`` is no GPU.
    """
    import torch

    if device != "cuda":
        return {}
    free, _ = torch.cuda.mem_get_info()
    return {"device_map": "auto"} if sum(file.stat().st_size for file in weights) * _ROOM > free else {}


def release(model: PreTrainedModel) -> None:
    """Gives the memory of a model's weights back, whoever still refers to it; it cannot be used any more."""

    tensors: Iterable[torch.Tensor] = (*model.parameters(), *model.buffers())
    for tensor in tensors:
        tensor.data = tensor.data.new_empty(0)
    empty_gpu_cache()


def empty_gpu_cache() -> None:
    """Gives what torch holds on the GPU for later back to whoever asks."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the GPU's or the computer's."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
