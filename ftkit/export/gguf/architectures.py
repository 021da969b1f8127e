"""What of a transformers model becomes what in a GGUF file: its sizes, its rope, and the name and order of each tensor.

Names and keys are those of llama.cpp for the same model. Llama and Mistral: the rows of the query and key projections
change places, since llama.cpp rotates neighbouring pairs of a head where transformers rotates its two halves; Qwen
rotates halves in both. GPT-2: linear layers are stored transposed by transformers, and not by GGUF.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.errors import DataError, Problem, did_you_mean
from ftkit.export.tensors import Stored, read_index

# The class that config.json names, and llama.cpp's name of the architecture.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GPT2LMHeadModel": "gpt2",
}
Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # old files hold them; they are no weights
_BLOCK = {
    "llama": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
    "gpt2": ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"),
}
_BLOCK["qwen2"] = _BLOCK["llama"]
_BLOCK["qwen3"] = (*_BLOCK["llama"], "attn_q_norm", "attn_k_norm")


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the GGUF file and the one it is made of.

    ``heads``: above 0, the rows of each of so many heads change places. ``transposed``: rows become columns.
    ``whole``: always in float32: a norm, a bias, GPT-2's positions.
    """

    name: str
    source: Stored
    heads: int
    transposed: bool
    whole: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, as in the GGUF file once it is read."""
        return self.source.shape[::-1] if self.transposed else self.source.shape


@dataclass(frozen=True, slots=True)
class Architecture:
    """``name``: llama.cpp's. ``metadata``: GGUF keys. ``factors``: rope_freqs.weight, where the rope needs it.

    ``notes``: what llama.cpp does otherwise, in sentences.
    """

    name: str
    metadata: Mapping[str, Value]
    targets: tuple[Target, ...]
    factors: tuple[float, ...]
    vocab: int
    context: int
    notes: tuple[str, ...]


def read_architecture(model: Path) -> Architecture:
    """Of a model's folder. Raises DataError where GGUF cannot hold the model, or tensors are missing or unknown."""
    config, name = read_config(model)
    metadata = _gpt2(config) if name == "gpt2" else _llama_like(config, name)
    rope, factors = ({}, ()) if name == "gpt2" else _rope(config, name, model)
    window = getattr(config, "sliding_window", None)
    notes = []
    if window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        notes.append(f"llama.cpp attends to the whole text, the model to the last {window} tokens only.")
    return Architecture(
        name,
        {f"{name}.{key}": value for key, value in {**metadata, **rope}.items()},
        _targets(model, config, name),
        factors,
        config.vocab_size,
        config.max_position_embeddings,
        tuple(notes),
    )


def read_config(model: Path) -> tuple[Any, str]:
    """The configuration of a model's folder, with the library's defaults, and llama.cpp's name of the architecture."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).splitlines()), "")
        fix = f"config.json cannot be read: {first} Name the folder of a model."
        raise DataError(f"{model} is no model", [Problem("", "model", fix)]) from error
    kind = next(iter(config.architectures or ()), "")
    if kind not in ARCHITECTURES:
        fix = f"It is a {kind or 'model of an unnamed class'}. {did_you_mean(kind, ARCHITECTURES)}".rstrip()
        fix += f" Export one of {', '.join(ARCHITECTURES)}, or write another format."
        raise DataError(f"{model} cannot be written as GGUF", [Problem("", "architecture", fix)])
    _refuse_what_llama_cpp_lacks(config, ARCHITECTURES[kind], model)
    return config, ARCHITECTURES[kind]


def _refuse_what_llama_cpp_lacks(config: Any, name: str, model: Path) -> None:
    expected: dict[str, Any] = {"quantization_config": None}
    if name == "gpt2":
        expected |= {"activation_function": "gelu_new", "scale_attn_weights": True}
        expected |= {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    else:
        expected |= {"hidden_act": "silu"}
    for key, value in expected.items():
        if (found := getattr(config, key, value)) != value:
            shown = "set" if isinstance(found, dict) else repr(found)
            fix = f"llama.cpp computes with {value!r} alone; here it is {shown}. Write another format."
            if key == "quantization_config":
                fix = "The weights are quantised already. Export the model in full precision."
            raise DataError(f"{model} cannot be written as GGUF", [Problem("", key, fix)])


def _llama_like(config: Any, name: str) -> dict[str, Value]:
    head = _head_dim(config)
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
    }


def _gpt2(config: Any) -> dict[str, Value]:
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
    }


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any, name: str, model: Path) -> tuple[dict[str, Value], tuple[float, ...]]:
    """The keys of the rotary embedding, and the factors by which Llama 3 divides its frequencies."""
    rope = dict(config.rope_parameters)
    kind, theta = rope.get("rope_type", "default"), float(rope["rope_theta"])
    keys: dict[str, Value] = {"rope.freq_base": theta}
    taken = {"rope_type", "rope_theta", "type"}
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        taken |= {"factor"}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        keys["rope.scaling.original_context_length"] = original
        keys["rope.scaling.yarn_beta_fast"] = float(rope.get("beta_fast") or 32)
        keys["rope.scaling.yarn_beta_slow"] = float(rope.get("beta_slow") or 1)
        taken |= {"original_max_position_embeddings", "beta_fast", "beta_slow"}
    if kind == "llama3":
        taken |= {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    rest = {key: value for key, value in rope.items() if key not in taken and value is not None}
    if rest.get("partial_rotary_factor") == 1.0:
        del rest["partial_rotary_factor"]
    if kind not in ("default", "linear", "yarn", "llama3") or rest or (kind == "llama3" and name != "llama"):
        what = f"{kind} with {', '.join(sorted(rest))}" if rest else kind
        fix = f"A rope of type {what} is not carried over. Write another format."
        raise DataError(f"{model} cannot be written as GGUF", [Problem("", "rope_parameters", fix)])
    return keys, llama3_factors(rope, theta, _head_dim(config)) if kind == "llama3" else ()


def llama3_factors(rope: Mapping[str, Any], theta: float, head: int) -> tuple[float, ...]:
    """What each of the head's ``head``/2 frequencies is divided by (Llama 3.1: Grattafiori et al. 2024, section 3.4.3).

    Frequencies that turn often within the original context stay, slow ones are divided by ``factor``, and between the
    two the division grows smoothly.
    """
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    factors = []
    for index in range(0, head, 2):
        turns = context / (2 * math.pi * theta ** (index / head))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return tuple(factors)


def _targets(model: Path, config: Any, name: str) -> tuple[Target, ...]:
    stored = read_index(model)
    layers = config.num_hidden_layers
    found: dict[str, Target] = {}
    for source in stored.values():
        if source.name.endswith(_BUFFERS) or (config.tie_word_embeddings and source.name == "lm_head.weight"):
            continue
        target = target_of(source, config, name)
        if target is None:
            fix = f"{source.name} has no place in it. Export a plain {config.architectures[0]}."
            raise DataError(f"{model} cannot be written as GGUF", [Problem("", "weights", fix)])
        found[target.name] = target
    needed = ["token_embd.weight", "output_norm.weight", *(() if config.tie_word_embeddings else ("output.weight",))]
    needed += ["position_embd.weight"] if name == "gpt2" else []
    needed += [f"blk.{layer}.{part}.weight" for layer in range(layers) for part in _BLOCK[name]]
    if missing := [wanted for wanted in needed if wanted not in found]:
        fix = f"{missing[0]} and {len(missing) - 1} more are not there. Fetch the model again."
        raise DataError(f"{model} has not all of its weights", [Problem("", "weights", fix)])
    rows = found["token_embd.weight"].source.shape[0]
    if rows != config.vocab_size:
        fix = f"config.json says {config.vocab_size} tokens, and the embedding has {rows} rows. Correct vocab_size."
        raise DataError(f"{model} contradicts itself", [Problem("", "vocab_size", fix)])
    return tuple(found.values())


def target_of(source: Stored, config: Any, name: str) -> Target | None:
    """Where a tensor goes; None where the architecture has no place for it."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
    target = names.get_name(source.name, try_suffixes=(".weight", ".bias"))
    if target is None or (name.startswith("qwen") and target.endswith("attn_output.bias")):
        return None  # llama.cpp knows the bias, and reads it for Llama alone
    if source.dtype not in ("F32", "F16", "BF16"):
        fix = f"{source.name} is of type {source.dtype}. Export the model in float32, float16 or bfloat16."
        raise DataError(f"{source.file} cannot be written as GGUF", [Problem("", "weights", fix)])
    heads = 0
    if name == "llama" and ".attn_q." in target:
        heads = config.num_attention_heads
    if name == "llama" and ".attn_k." in target:
        heads = config.num_key_value_heads
    whole = len(source.shape) == 1 or target == "position_embd.weight"
    return Target(target, source, heads, name == "gpt2" and source.name.endswith(_CONV1D), whole)
