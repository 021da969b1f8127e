"""A model from nothing: the recipe section that describes it, its configuration, its size and its first weights.

The tokenizer that goes with it is trained in ``ftkit.models.train_tokenizer``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ftkit.models.initialise import Scheme, initialise
from ftkit.models.train_tokenizer import SMALLEST_VOCAB
from ftkit.section import Section

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_BLOCK = 64  # sizes are multiples of it: fast on every device, and such weights can be quantised to 4 bits


def _whole_blocks(value: int) -> int:
    if value % _BLOCK:
        below = value // _BLOCK * _BLOCK
        raise ValueError(f"got {value}, which is no multiple of {_BLOCK}. Write {below} or {below + _BLOCK}.")
    return value


_BLOCKS = {"multipleOf": _BLOCK}
Width = Annotated[int, Field(ge=_BLOCK, le=2**16, json_schema_extra=_BLOCKS), AfterValidator(_whole_blocks)]
Vocab = Annotated[int, Field(ge=SMALLEST_VOCAB, le=2**18, json_schema_extra=_BLOCKS), AfterValidator(_whole_blocks)]


class Scratch(Section):
    """A model that is made anew: its architecture by numbers, its weights by a named initialisation."""

    init: Literal["llama", "gpt2", "bert"] = Field(
        description="The architecture. llama and gpt2 predict the next token, bert the hidden ones."
    )
    layers: int = Field(ge=1, le=200, description="Transformer layers.", examples=[6])
    hidden: Width = Field(description="Width of the model: a multiple of 64.", examples=[256])
    heads: int | None = Field(None, ge=1, description="Attention heads; they divide hidden. Left out: hidden / 64.")
    kv_heads: int | None = Field(
        None, ge=1, description="Heads of keys and values (llama only); they divide heads. Left out: heads."
    )
    intermediate: Width | None = Field(
        None,
        description="Width of the feed-forward layers: a multiple of 64. Left out: 4 * hidden; llama: 8/3 * hidden, "
        "rounded up to a multiple of 64.",
    )
    vocab: Vocab = Field(
        description="Tokens of the byte-level BPE that is trained on the corpus, special ones included: a multiple of "
        "64.",
        examples=[4096],
    )
    positions: int = Field(512, ge=16, le=2**17, description="The longest text the model can read, in tokens.")
    tied: bool = Field(default=True, description="One matrix for embedding and output.")
    weights: Scheme = Field(
        "default",
        description="First weights. default: what transformers does; xavier: Glorot and Bengio 2010; he: He et al. "
        "2015; gpt2: residual projections scaled down by depth (Radford et al. 2019).",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Scratch:
        heads = self.attention_heads
        # Rotary positions turn pairs of values, so a head has an even width.
        possible = [count for count in _divisors(self.hidden) if self.hidden // count % 2 == 0]
        if heads not in possible:
            raise ValueError(
                f"heads is {heads}, which does not divide hidden {self.hidden} into heads of even width. "
                f"{_nearest(heads, possible)}"
            )
        if self.kv_heads is None:
            return self
        if self.init != "llama":
            raise ValueError(f"kv_heads is a key of init: llama, not of {self.init}. Remove kv_heads.")
        if heads % self.kv_heads:
            near = _nearest(self.kv_heads, _divisors(heads))
            raise ValueError(f"kv_heads is {self.kv_heads}, which does not divide heads {heads}. {near}")
        return self

    @property
    def attention_heads(self) -> int:
        """``heads``, or what is taken where it is left out."""
        return self.heads or self.hidden // _BLOCK

    @property
    def key_value_heads(self) -> int:
        """``kv_heads``, or what is taken where it is left out."""
        return self.kv_heads or self.attention_heads

    @property
    def inner(self) -> int:
        """``intermediate``, or what is taken where it is left out."""
        if self.intermediate is not None:
            return self.intermediate
        return -(-8 * self.hidden // (3 * _BLOCK)) * _BLOCK if self.init == "llama" else 4 * self.hidden


def config(scratch: Scratch, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of transformers, with the special tokens of ``tokenizer``.

    Dropout is that of the architecture in transformers: 0.1 for gpt2 and bert, none for llama. Raises ValueError where
    the tokenizer has more tokens than the model.
    """
    from transformers import BertConfig, GPT2Config, LlamaConfig

    if len(tokenizer) > scratch.vocab:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {scratch.vocab}.")
    shared: dict[str, Any] = {
        "vocab_size": scratch.vocab,
        "tie_word_embeddings": scratch.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if scratch.init == "gpt2":
        return GPT2Config(
            n_positions=scratch.positions,
            n_embd=scratch.hidden,
            n_layer=scratch.layers,
            n_head=scratch.attention_heads,
            n_inner=scratch.inner,
            **shared,
        )
    shared |= {
        "max_position_embeddings": scratch.positions,
        "hidden_size": scratch.hidden,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.attention_heads,
        "intermediate_size": scratch.inner,
    }
    if scratch.init == "llama":
        return LlamaConfig(num_key_value_heads=scratch.key_value_heads, **shared)
    return BertConfig(**shared)


def scratch_parameters(scratch: Scratch) -> int:
    """The number of weights of the model that ``build`` makes, a tied matrix counted once; no library is loaded."""
    h, inner, vocab = scratch.hidden, scratch.inner, scratch.vocab
    matrices = vocab * h * (1 if scratch.tied else 2)
    if scratch.init == "llama":
        keys = h // scratch.attention_heads * scratch.key_value_heads
        layer = 2 * h * h + 2 * h * keys + 3 * h * inner + 2 * h  # q, o; k, v; gate, up, down; two norms
        return matrices + scratch.layers * layer + h
    # Attention and feed-forward with biases, two norms with weight and bias.
    layer = 4 * (h * h + h) + 2 * h * inner + inner + h + 4 * h
    matrices += scratch.positions * h + scratch.layers * layer + 2 * h
    if scratch.init == "gpt2":
        return matrices
    # Two token types; the head's dense layer and norm; a bias of the output, which transformers holds twice if untied.
    return matrices + 2 * h + h * h + h + 2 * h + vocab * (1 if scratch.tied else 2)


def build(scratch: Scratch, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """A new model in float32 on the CPU, whose weights depend on ``seed`` alone; torch's own random state stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    kind = AutoModelForMaskedLM if scratch.init == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):  # transformers draws weights too; they are replaced below
        model = kind.from_config(config(scratch, tokenizer), dtype=torch.float32)
    initialise(model, scratch.weights, seed=seed, layers=scratch.layers)
    return model


def _divisors(number: int) -> list[int]:
    small = [count for count in range(1, math.isqrt(number) + 1) if number % count == 0]
    return sorted({*small, *(number // count for count in small)})


def _nearest(value: int, possible: Iterable[int]) -> str:
    """The fix: the nearest possible values on both sides."""
    choices = sorted(possible)
    near = [
        *[choice for choice in choices if choice < value][-1:],
        *[choice for choice in choices if choice > value][:1],
    ]
    return f"Write {' or '.join(map(str, near))}."
