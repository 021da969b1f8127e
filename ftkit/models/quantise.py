"""Bases in 4 bits (NF4 with double quantisation, QLoRA, Dettmers et al. 2023) by bitsandbytes, and out of them again.

Only linear layers are quantised: embeddings, norms and heads keep their weights, which hold little and lose much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import MachineError, Problem
from ftkit.models.hardware import Machine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftkit.models.adapters import Adapter

_BLOCK = 64  # bitsandbytes quantises weights in blocks of this many values


def nf4(skip: Sequence[str], compute: torch.dtype) -> Any:
    """transformers' configuration. ``skip``: modules that are left as they are; ``compute``: the dtype of products."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(skip),
    )


def is_four_bit(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer in 4 bits. bitsandbytes is not imported: most runs do not need it."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


def is_quantised(model: torch.nn.Module) -> bool:
    """Whether any layer of the model, or of the base beneath an adapter, is held in 4 bits."""
    return any(map(is_four_bit, model.modules()))


def check_blocks(model: PreTrainedModel) -> None:
    """Raises MachineError where a quantised layer's shape is no multiple of bitsandbytes' block."""
    for name, module in model.named_modules():
        if is_four_bit(module) and (module.in_features % _BLOCK or module.out_features % _BLOCK):
            shape = f"{module.in_features} x {module.out_features}"
            fix = f"{name} is {shape}; sizes must be multiples of {_BLOCK}. Use a lora preset."
            raise MachineError("the base cannot be quantised to 4 bits", [Problem("", "adapter.quantize", fix)])


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with each weight in float32 at the value that its 4 bits stand for, as LoftQ is merged into it."""
    import torch

    dequantised: PreTrainedModel = model.dequantize(dtype=torch.float32)
    return dequantised.float()  # with what was not quantised, which a GPU holds in bfloat16


def check_loftq(adapter: Adapter | None, machine: Machine) -> None:
    """Raises MachineError where the adapter starts with LoftQ and the machine cannot: PEFT decomposes on CUDA alone."""
    if adapter is not None and adapter.init == "loftq" and machine.device != "cuda":
        fix = "LoftQ decomposes weights on a CUDA device, and there is none here. Use the qlora preset."
        raise MachineError("the adapter needs a GPU to start from", [Problem("", "adapter.init", fix)])


def start_from_loss(model: PreTrainedModel, folder: Path) -> None:
    """Sets the update B A of each layer in 4 bits to the nearest of its rank to what quantising lost (LoftQ).

    One step of LoftQ (Li et al. 2023, https://arxiv.org/abs/2310.08659) with the base's plain NF4 weights kept, so that
    any later load has the same base. ``folder``: the base's files. Raises MachineError where they cannot be read so.
    """
    from peft import replace_lora_weights_loftq
    from transformers.pytorch_utils import Conv1D

    turned = [name for name, module in model.named_modules() if getattr(module, "source_cls", None) is Conv1D]
    if turned:
        fix = f"{turned[0]} is stored (in x out), which PEFT does not know there. Use the qlora preset."
        raise MachineError("LoftQ cannot read the base", [Problem("", "adapter.init", fix)])
    try:
        replace_lora_weights_loftq(model, model_path=str(folder))
    except (OSError, KeyError) as error:
        fix = f"its weights are not stored under the names of its layers ({error}). Use the qlora preset."
        raise MachineError("LoftQ cannot read the base", [Problem("", "adapter.init", fix)]) from error
