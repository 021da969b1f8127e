"""Merging from files: what is written is what peft makes of base and adapter, for every method, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from ftkit.export.stream import Streamed, merge_streamed
from ftkit.export.tensors import read_index
from ftkit.export.updates import changes_of, read_adapter
from tests.conftest import pico_config

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of what it finds unusual, which is what is tested
IDS = torch.tensor([[2, 5, 10, 33, 12, 40, 20, 3], [2, 7, 50, 9, 60, 11, 61, 13]])
ALL = "all-linear"


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Models this small wait for threads longer than they compute."""


def llama(**more: Any):
    return t.LlamaForCausalLM(pico_config_with("llama", **more))


def pico_config_with(family: str, **more: Any):
    config = pico_config(family)
    for name, value in more.items():
        setattr(config, name, value)
    return config


def gpt2():
    return t.GPT2LMHeadModel(pico_config("gpt2"))


def bert(labels: int = 3):
    return t.BertForSequenceClassification(pico_config_with("bert", num_labels=labels))


def mixtral():
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return t.MixtralForCausalLM(
        t.MixtralConfig(**shape, num_key_value_heads=2, intermediate_size=48, num_local_experts=3)
    )


def qwen_moe():
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return t.Qwen2MoeForCausalLM(
        t.Qwen2MoeConfig(
            **shape, num_key_value_heads=2, intermediate_size=48, moe_intermediate_size=24,
            shared_expert_intermediate_size=40, num_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A base, and the configuration of an adapter for it."""

    base: Callable[[], t.PreTrainedModel]
    config: Callable[[], peft.PeftConfig]
    bare: bool = False
    """The base is saved without its head, so that its tensors lack a prefix."""


def lora(**settings: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: peft.LoraConfig(**({"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6} | settings))


def ia3(**settings: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: peft.IA3Config(**({"task_type": "CAUSAL_LM"} | settings))


QV = ["q_proj", "v_proj"]
CASES = {
    "lora": Case(llama, lora(target_modules=ALL)),
    "rslora": Case(llama, lora(target_modules=ALL, use_rslora=True)),
    "patterns": Case(
        llama,
        lora(target_modules=ALL, rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 8},
             alpha_pattern={"layers.0.self_attn.k_proj": 20, "down_proj": 3}),
    ),
    "lora bias": Case(lambda: bert(), lora(task_type="SEQ_CLS", target_modules=["query", "dense"], lora_bias=True)),
    "biases": Case(lambda: bert(), lora(task_type="SEQ_CLS", target_modules=["query"], bias="all")),
    "biases of the adapted": Case(lambda: bert(), lora(task_type="SEQ_CLS", target_modules=["query"],
                                                       bias="lora_only")),
    "dora": Case(llama, lora(target_modules=ALL, use_dora=True)),
    "dora on columns": Case(gpt2, lora(target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True)),
    "gpt2": Case(gpt2, lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt2 without its head": Case(gpt2, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), bare=True),
    "gpt2, mixed": Case(gpt2, lora(target_modules=["c_attn", "c_proj", "lm_head"])),
    "ia3": Case(llama, ia3(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3 with biases": Case(lambda: bert(), ia3(task_type="SEQ_CLS", target_modules=["key", "output.dense"],
                                               feedforward_modules=["output.dense"])),
    "ia3 on columns": Case(gpt2, ia3(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
                                     fan_in_fan_out=True)),
    "embeddings": Case(llama, lora(target_modules=["embed_tokens", "q_proj"])),
    "dora of embeddings": Case(llama, lora(target_modules=["embed_tokens"], use_dora=True)),
    "whole modules": Case(llama, lora(target_modules=QV, modules_to_save=["lm_head", "norm"])),
    "tokens": Case(llama, lora(target_modules=QV, trainable_token_indices={"embed_tokens": [3, 60], "lm_head": [5]})),
    "head": Case(lambda: bert(), lora(task_type="SEQ_CLS", target_modules=["query", "value"]), bare=True),
    "head of a decoder": Case(
        lambda: t.LlamaForSequenceClassification(pico_config_with("llama", num_labels=3, pad_token_id=0)),
        lora(task_type="SEQ_CLS", target_modules=ALL),
    ),
    "tied, layers alone": Case(lambda: llama(tie_word_embeddings=True), lora(target_modules=ALL)),
    "tied, tokens": Case(lambda: llama(tie_word_embeddings=True),
                         lora(target_modules=QV, trainable_token_indices=[3, 60])),
    "tied, embeddings whole": Case(lambda: llama(tie_word_embeddings=True),
                                   lora(target_modules=QV, modules_to_save=["embed_tokens"])),
    "tied, both whole": Case(lambda: llama(tie_word_embeddings=True),
                             lora(target_modules=QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "tied, embeddings": Case(lambda: llama(tie_word_embeddings=True), lora(target_modules=["embed_tokens"])),
    "tied, output": Case(lambda: llama(tie_word_embeddings=True), lora(target_modules=["lm_head", "q_proj"])),
    "tied, both": Case(lambda: llama(tie_word_embeddings=True),
                       lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)),
    "mixtral": Case(
        mixtral, lora(target_modules=QV, target_parameters=["experts.gate_up_proj", "experts.down_proj", "gate.weight"])
    ),
    "experts' output alone": Case(mixtral, lora(target_modules=[], target_parameters=["experts.down_proj"])),
    "qwen2 moe": Case(
        qwen_moe, lora(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    base: Path
    adapter: Path
    model: t.PreTrainedModel


def make(case: Case, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Made:
    """A base on disk and an adapter on disk whose every weight has been changed, and the two together in memory."""
    torch.manual_seed(0)
    model = case.base()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
    model.tie_weights()
    model.to(dtype)
    saved = model.base_model if case.bare else model
    saved.save_pretrained(folder / "base", max_shard_size=shard)
    model.name_or_path = str(folder / "base")
    model = peft.get_peft_model(model, case.config()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                around = 1 if "ia3" in name else weight
                weight.copy_(around + torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder / "adapter")
    return Made(folder / "base", folder / "adapter", model)


def merge(made: Made, out: Path, **more: Any) -> Streamed:
    changes = changes_of(read_adapter(made.adapter), read_index(made.base))
    return merge_streamed(made.base, changes, out, extra=[made.adapter], **more)


def logits(model: t.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()


def reloaded(made: Made, out: Path, **more: Any) -> t.PreTrainedModel:
    """The merged model in the class that its own config.json names, as anyone would load it."""
    kind = getattr(t, json.loads((out / "config.json").read_text())["architectures"][0])
    assert kind is type(made.model.get_base_model())
    model, info = kind.from_pretrained(out, output_loading_info=True, **more)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_answers_as_the_adapter_does(name: str, tmp_path: Path) -> None:
    """In float32 to the last digits, read back by transformers alone, whose every tensor must be there."""
    made = make(CASES[name], tmp_path)
    expected = logits(made.model)
    done = merge(made, tmp_path / "out")
    found = logits(reloaded(made, tmp_path / "out"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert done.method == "streamed"
    assert done.touched + done.added > 0


def peft_merges(made: Made) -> dict[str, torch.Tensor]:
    """What peft makes of the weights; of outputs that are tied the embedding alone."""
    model = made.model.merge_and_unload(safe_merge=True)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def written(out: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(out.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def units(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> float:
    """The largest difference in units in the last place (bfloat16) of the largest of |W|, |delta| and the sum."""
    size = torch.maximum(base.float().abs(), (expected.float() - base.float()).abs())
    size = torch.maximum(size, expected.float().abs()).clamp(min=2**-120)
    unit = 2.0 ** (size.log2().floor() - 7)
    return float(((found.float() - expected.float()).abs() / unit).max())


# Merging one of two tied modules, peft changes the other as well; and it holds experts otherwise than files do.
OTHERS = ("tied, e", "tied, o", "tied, b", "gpt2, mixed", "mixtral", "experts", "qwen")
PLAIN = [name for name in CASES if not name.startswith(OTHERS)]


@pytest.mark.parametrize("name", PLAIN)
def test_weights_equal_those_of_peft_in_float32(name: str, tmp_path: Path) -> None:
    made = make(CASES[name], tmp_path)
    merge(made, tmp_path / "out")
    found, expected = written(tmp_path / "out"), peft_merges(made)
    assert found
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in PLAIN if "dora" not in name])
def test_in_bfloat16_weights_differ_from_those_of_peft_by_one_unit_at_most(name: str, tmp_path: Path) -> None:
    """peft rounds the update before it adds it, and the sum again."""
    made = make(CASES[name], tmp_path, dtype=torch.bfloat16)
    base = written(made.base)
    merge(made, tmp_path / "out")
    found, expected = written(tmp_path / "out"), peft_merges(made)
    for key, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        old = base.get(key, base.get(key.partition(".")[2], torch.zeros_like(tensor)))
        assert units(tensor, expected[key].to(torch.bfloat16), old) <= 1


@pytest.mark.parametrize("name", ["lora", "dora", "dora on columns", "ia3", "mixtral"])
def test_in_bfloat16_each_weight_is_rounded_once(name: str, tmp_path: Path) -> None:
    """What float32 would give, rounded: the same adapter on the same base, which only then is rounded."""
    made = make(CASES[name], tmp_path / "half", dtype=torch.bfloat16)
    merge(made, tmp_path / "out")
    full = tmp_path / "full"
    shutil.copytree(made.base, full)
    for file in full.glob("*.safetensors"):
        save_file({key: tensor.float() for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    changes = changes_of(read_adapter(made.adapter), read_index(full))
    merge_streamed(full, changes, tmp_path / "exact")
    exact, found = written(tmp_path / "exact"), written(tmp_path / "out")
    assert exact.keys() == found.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, exact[key].to(torch.bfloat16), rtol=0, atol=0)
