"""A LoRA layer for training on a processor: x W' + s x A' B' in fewer operations than PEFT's own layer takes.

Where the matrix is small, W + s B A is made first, and there is one product; its gradient is W's, from which those of
A and B follow. Elsewhere the update is added by the product that makes it, forwards and backwards, and W is brought to
bfloat16 once, not at each step (docs/log.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel

# A small matrix has at most so many numbers for each of A and B. Counting operations, 3 would be the limit. Of matrices
# that have 4 to 6, one product trained a Llama 128 wide 4% faster than the other way, and one 256 wide no faster.
_SMALL = 4


def train_with_fewer_operations(model: PreTrainedModel, config: PeftConfig) -> None:
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
        _halved: tuple[tuple[int, int], torch.Tensor] | None = None  # W in bfloat16, and where and what W then was

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            trained = None if args or kwargs else _trained_in(x)
            plain = self._plain_update() if trained else None
            if plain is None:
                found: torch.Tensor = super().forward(x, *args, **kwargs)
                return found
            weight, bias, down, up, scale = plain
            if trained == torch.bfloat16:
                return updated_product()(x, self._in_bfloat16(weight), bias, down, up, scale)
            if weight.numel() <= _SMALL * (down.numel() + up.numel()):
                return torch.nn.functional.linear(x, torch.addmm(weight, up, down, alpha=scale), bias)
            return updated_product()(x, weight, bias, down, up, scale)

        def _plain_update(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, float] | None:
            """W, bias, A, B and s where a plain update of one adapter is all that a frozen matrix has, in float32."""
            base, names = self.get_base_layer(), self.active_adapters
            if type(base) is not torch.nn.Linear or self.disable_adapters or self.merged or len(names) != 1:
                return None
            name = names[0]
            if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
                return None
            if not isinstance(self.lora_dropout[name], torch.nn.Identity):
                return None
            weight, bias, down, up = base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight
            frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
            if not frozen or not weight.dtype == down.dtype == up.dtype == torch.float32:
                return None
            return weight, bias, down, up, self.scaling[name]

        def _in_bfloat16(self, weight: torch.Tensor) -> torch.Tensor:
            """W in bfloat16, kept: autograd would hold it too, but where activations are computed twice."""
            origin = weight.data_ptr(), weight._version
            if self._halved is None or self._halved[0] != origin:
                self._halved = origin, weight.detach().bfloat16()
            return self._halved[1]

    return LoraLinear


def _trained_in(x: torch.Tensor) -> torch.dtype | None:
    """The number format in which a training on a processor computes, where this layer has a way for it."""
    import torch

    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return None
    if torch.is_autocast_enabled("cpu"):
        return torch.bfloat16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
    return torch.float32 if x.dtype == torch.float32 else None


@cache
def updated_product() -> Callable[..., torch.Tensor]:
    """A function of x [..., I], W [O, I], bias [O] or None, A [R, I], B [O, R] and s: x W' + bias + s x A' B' [..., O].

    Computed in W's number format, which under autocast is autocast's, with gradients for x, A and B.
    """
    import torch
    from torch.autograd.function import once_differentiable

    class UpdatedProduct(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            x: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            down: torch.Tensor,
            up: torch.Tensor,
            scale: float,
        ) -> torch.Tensor:
            rows, down, up = x.flatten(0, -2).to(weight.dtype), down.to(weight.dtype), up.to(weight.dtype)
            within = rows @ down.t()  # (N, R)
            found = torch.nn.functional.linear(rows, weight, None if bias is None else bias.to(weight.dtype))
            found.addmm_(within, up.t(), alpha=scale)
            ctx.save_for_backward(rows, within, weight, down, up)
            ctx.scale, ctx.shape = scale, x.shape
            return found.view(*x.shape[:-1], -1)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            rows, within, weight, down, up = ctx.saved_tensors
            slope = outer[0].to(weight.dtype).flatten(0, -2)  # (N, O)
            inner = (slope @ up).mul_(ctx.scale)  # (N, R)
            of_x = (slope @ weight).addmm_(inner, down).view(ctx.shape) if ctx.needs_input_grad[0] else None
            of_up = (within.t() @ slope).mul_(ctx.scale).t()  # MKL takes up to twice as long for slope' within
            return of_x, None, None, inner.t() @ rows, of_up, None

    apply: Callable[..., torch.Tensor] = UpdatedProduct.apply
    return apply
