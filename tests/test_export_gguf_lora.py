"""LoRA adapters alone as GGUF files, compared with what peft adds to the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ftkit.errors import DataError, RecipeError
from ftkit.export.gguf import write_lora_gguf
from tests.gguf_models import edit_json, make


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, decoder):
    made = {"gpt2": decoder("gpt2"), "qwen2": decoder("qwen2")}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = make(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


def adapt(base: Path, folder: Path, **settings):
    """A LoRA with random factors on a base, saved; gives peft's model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 12, **settings}))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted


def updates(file: Path):
    """What llama.cpp adds to each weight: alpha / r * B A, r being the width of B."""
    from gguf import GGUFReader, dequantize

    read = GGUFReader(file)
    alpha = read.fields["adapter.lora.alpha"].contents()
    held = {t.name: dequantize(t.data, t.tensor_type) for t in read.tensors}
    return {
        name.removesuffix(".lora_a"): alpha / len(a) * held[name[:-1] + "b"] @ a
        for name, a in held.items()
        if name.endswith(".lora_a")
    }


def deltas(adapted):
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in adapted.named_modules()
        if hasattr(module, "get_delta_weight")
    }


CASES = {
    "llama3": {"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj", "lm_head"]},
    "mistral": {
        "target_modules": ["q_proj", "k_proj", "o_proj"], "use_rslora": True, "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
    "qwen2": {"target_modules": "all-linear"},
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_the_update_is_the_one_of_peft(base, tmp_path, family):
    import numpy as np

    from ftkit.export.gguf.architectures import read_config, target_of
    from ftkit.export.tensors import read_index

    adapted = adapt(base(family), tmp_path / "adapter", **CASES[family])
    written = write_lora_gguf(tmp_path / "adapter", base(family), tmp_path / "adapter.gguf", "F32")
    found, expected = updates(tmp_path / "adapter.gguf"), deltas(adapted)
    assert written["tensors"] == 2 * len(expected) == 2 * len(found)
    config, name = read_config(base(family))
    for module, delta in expected.items():
        target = target_of(read_index(base(family))[f"{module}.weight"], config, name)
        assert target is not None
        own = found[target.name]
        if "attn_q." in target.name or "attn_k." in target.name:
            heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}[target.name.split("attn_")[1][0]]
            if name == "llama":  # neighbours of a head go back into its halves
                own = own.reshape(heads, -1, 2, own.shape[1]).swapaxes(1, 2).reshape(own.shape)
        np.testing.assert_allclose(own.T if family == "gpt2" else own, delta, rtol=1e-5, atol=1e-6)


def test_the_file_says_what_it_is(base, tmp_path):
    from gguf import GGUFReader

    adapt(base("qwen2"), tmp_path / "adapter", target_modules=["q_proj"])
    written = write_lora_gguf(tmp_path / "adapter", base("qwen2"), tmp_path / "adapter.gguf", "F16")
    read = GGUFReader(tmp_path / "adapter.gguf")
    held = {key: field.contents() for key, field in read.fields.items() if not key.startswith("GGUF.")}
    assert held == {
        "general.architecture": "qwen2", "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 12.0,
    }  # fmt: skip
    assert {tensor.tensor_type.name for tensor in read.tensors} == {"F16"}
    assert written == {
        "kind": "F16", "tensors": 4, "alpha": 12.0, "file_bytes": (tmp_path / "adapter.gguf").stat().st_size,
    }  # fmt: skip


FIX = "Merge it into the base (ftkit merge) and export the merged model."


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "model.layers.0.self_attn.q_proj has lora_magnitude_vector."),
        ({"modules_to_save": ["lm_head"]}, "It replaces lm_head.weight as a whole."),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens has lora_embedding_A."),
    ],
)
def test_more_than_plain_lora_is_refused(base, tmp_path, settings, why):
    adapt(base("qwen2"), tmp_path / "adapter", **{"target_modules": ["q_proj"], **settings})
    (tmp_path / "adapter.gguf").write_text("before")
    with pytest.raises(DataError) as caught:
        write_lora_gguf(tmp_path / "adapter", base("qwen2"), tmp_path / "adapter.gguf", "F32")
    assert str(caught.value) == (
        f"error: {tmp_path / 'adapter'} cannot be written as a LoRA in GGUF\n  adapter   {why} {FIX}"
    )
    assert (tmp_path / "adapter.gguf").read_text() == "before"


def test_another_base_and_another_type_are_refused(base, tmp_path):
    adapt(base("qwen2"), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(DataError) as caught:
        write_lora_gguf(tmp_path / "adapter", base("gpt2"), tmp_path / "adapter.gguf", "F32")
    assert str(caught.value).endswith(
        "does not fit the base\n  base   model.layers.0.self_attn.q_proj is in the adapter, and not in the base. "
        "Name the base that it was trained on."
    )
    wide = adapt(base("mistral"), tmp_path / "other", target_modules=["v_proj"])
    assert wide is not None
    with pytest.raises(DataError, match=r"v_proj is \(64, 64\) in the base, and \(32, 64\) here"):
        write_lora_gguf(tmp_path / "other", base("qwen2"), tmp_path / "adapter.gguf", "F32")
    with pytest.raises(RecipeError) as wrong:
        write_lora_gguf(tmp_path / "adapter", base("qwen2"), tmp_path / "adapter.gguf", "Q8_0")
    assert str(wrong.value) == "error: there is no LoRA in GGUF type Q8_0\n  type   Write one of F32, F16, BF16."


def test_an_adapter_on_a_tied_output_is_refused(base, tmp_path):
    adapt(base("qwen2"), tmp_path / "adapter", target_modules=["lm_head"])
    shutil.copytree(base("qwen2"), tmp_path / "tied")
    edit_json(tmp_path / "tied" / "config.json", tie_word_embeddings=True)
    with pytest.raises(DataError, match="It changes lm_head, which is the base's embedding"):
        write_lora_gguf(tmp_path / "adapter", tmp_path / "tied", tmp_path / "adapter.gguf", "F32")
