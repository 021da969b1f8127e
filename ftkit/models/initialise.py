"""The first weights of a model that is made from nothing: named schemes, drawn from a seed alone.

It knows the architectures that ``ftkit.models.scratch`` makes; another one may have matrices it refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Scheme = Literal["default", "xavier", "he", "gpt2"]
_STD = 0.02
# Matrices whose output is added to the residual stream: of the attention and of the MLP; Llama, GPT-2, BERT.
_RESIDUAL = ("self_attn.o_proj", "mlp.down_proj", "attn.c_proj", "mlp.c_proj", "output.dense")
_FUSED = "attn.c_attn"  # GPT-2 keeps query, key and value in one matrix


def initialise(model: PreTrainedModel, scheme: Scheme, *, seed: int, layers: int) -> None:
    """Draws every weight of ``model`` anew, in place; equal seeds give equal weights on every device.

    Linear layers, an untied output head among them:
      default  what transformers does: normal with the configuration's initializer_range; GPT-2 as ``gpt2``
      xavier   uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010)
      he       normal with variance 2 / fan_in (He et al. 2015)
      gpt2     normal(0, 0.02), what feeds the residual stream scaled by 1 / sqrt(2 * layers) (Radford et al. 2019)
    Embeddings are normal(0, 0.02) in every scheme, a padding row zero; biases 0, norms 1. Tied weights stay tied and
    are drawn as the embedding. Raises ValueError where a weight is none of these.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()  # by identity: a tied weight is met twice
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or id(weight) in drawn:
                continue
            drawn.add(id(weight))
            if isinstance(module, torch.nn.Embedding):
                weight.copy_(torch.empty(weight.shape).normal_(0, _STD, generator=generator))
                if module.padding_idx is not None:
                    weight[module.padding_idx] = 0
            elif isinstance(module, torch.nn.Linear | Conv1D):
                weight.copy_(_linear(model, name, weight, scheme, layers, isinstance(module, Conv1D), generator))
            else:
                raise ValueError(f"{name} is a {type(module).__name__}, for which no initialisation is known.")
        _settle_vectors(model, drawn)


def _linear(
    model: PreTrainedModel,
    name: str,
    weight: torch.Tensor,
    scheme: Scheme,
    layers: int,
    transposed: bool,
    generator: torch.Generator,
) -> torch.Tensor:
    """New values for a linear layer's ``weight``: (out x in), or (in x out) where ``transposed``, as GPT-2 has them."""
    import torch

    fan_in, fan_out = weight.shape if transposed else reversed(weight.shape)
    fan_out = fan_out // 3 if name.endswith(_FUSED) else fan_out
    values = torch.empty(weight.shape)
    if scheme == "xavier":
        limit = (6 / (fan_in + fan_out)) ** 0.5  # a uniform's variance is limit^2 / 3
        return values.uniform_(-limit, limit, generator=generator)
    if scheme == "he":
        return values.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    std = _STD if scheme == "gpt2" else model.config.initializer_range
    if name.endswith(_RESIDUAL) and (scheme == "gpt2" or transposed):
        std /= (2 * layers) ** 0.5
    return values.normal_(0, std, generator=generator)


def _settle_vectors(model: PreTrainedModel, drawn: set[int]) -> None:
    """Biases 0 and norms 1. Raises ValueError for a parameter that is neither, nor drawn."""
    for name, parameter in model.named_parameters():
        if id(parameter) in drawn:
            continue
        if parameter.dim() != 1:
            raise ValueError(f"{name} has the shape {tuple(parameter.shape)}, for which no initialisation is known.")
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
