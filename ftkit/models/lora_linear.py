"""A LoRA layer that trains small matrices with one product: x (W + s B A)' in place of x W' + s (x A') B'.

Both are the same sum. PEFT's form takes fewer operations where the matrix is large and the rank small; where the rank
is a fair part of the width, its six thin products and three sums take longer than the one full product of the
backward pass, W's gradient, from which those of A and B follow (docs/log.md has the figures).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel

# A matrix has so many numbers for each of A and B. Counting operations, 3 would be the limit; measured, 4 gained a
# fifth, 8 nothing, and 16 lost up to a fifth.
_LARGEST = 6


def train_with_one_product(model: PreTrainedModel, config: PeftConfig) -> None:
    """Asks PEFT to adapt the linear layers of ``model`` by this layer, as its guide to custom LoRA layers shows.

    Not where the base is in other numbers than its own (4 bits), or holds its weights transposed: PEFT has layers for
    each of these. Nothing of it is saved: the adapter's names, shapes and values are those of PEFT's own layer.
    """
    import torch
    from peft import LoraConfig

    if isinstance(config, LoraConfig) and not config.fan_in_fan_out and not getattr(model, "is_quantized", False):
        config._register_custom_module({torch.nn.Linear: _lora_linear()})


@cache
def _lora_linear() -> type[torch.nn.Module]:
    import torch
    from peft.tuners.lora import Linear

    class LoraLinear(Linear):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if args or kwargs or not _in_training(x) or not self._is_small():
                found: torch.Tensor = super().forward(x, *args, **kwargs)
                return found
            base, name = self.get_base_layer(), self.active_adapters[0]
            down, up = self.lora_A[name].weight, self.lora_B[name].weight
            weight = torch.addmm(base.weight, up, down, alpha=self.scaling[name])
            return torch.nn.functional.linear(x, weight, base.bias)

        def _is_small(self) -> bool:
            """Whether a plain update of one adapter, in float32, is all that a small matrix has."""
            base, names = self.get_base_layer(), self.active_adapters
            if type(base) is not torch.nn.Linear or self.disable_adapters or self.merged or len(names) != 1:
                return False
            name = names[0]
            if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
                return False
            if not isinstance(self.lora_dropout[name], torch.nn.Identity):
                return False
            own = [base.weight, self.lora_A[name].weight, self.lora_B[name].weight]
            full, *thin = [weight.numel() for weight in own]
            return {weight.dtype for weight in own} == {torch.float32} and full <= _LARGEST * sum(thin)

    return LoraLinear


def _in_training(x: torch.Tensor) -> bool:
    """Whether a training in float32 on a processor goes on: in 16 bits W would swallow a small update."""
    import torch

    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and torch.is_grad_enabled() and x.dtype == torch.float32
