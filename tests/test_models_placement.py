"""Where models stand, what does not fit on a GPU, and how memory comes back."""

from __future__ import annotations

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ftkit.models.placement import Placement, device_map, out_of_memory, placement_of, release
from tests.conftest import pico_config


def model_of(dtype=torch.float32, **changes):
    config = pico_config("llama")
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_bases_whatever_the_adapter_is_held_in(dtype):
    model = model_of(getattr(torch, dtype))
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert {weight.dtype for name, weight in adapted.named_parameters() if "lora" in name} == {torch.float32}
    assert placement_of(adapted) == placement_of(adapted.get_base_model()) == Placement("cpu", dtype)


def test_layers_that_stand_elsewhere_are_told(tmp_path):
    """As accelerate does it: here from disk, on a GPU from the computer's memory."""
    model = model_of()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{number}": "disk" for number in range(model.config.num_hidden_layers)}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, device_map=where | layers, offload_folder=tmp_path / "offloaded"
    )
    assert placement_of(spread) == Placement("cpu", "float32", spread=True)
    assert str(placement_of(spread)) == "float32 on the processor, which does not hold all layers at once"
    with torch.no_grad():
        torch.testing.assert_close(spread(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_only_what_is_larger_than_the_gpu_is_spread(tmp_path, monkeypatch):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(1000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1300, 8000))
    assert device_map("cuda", [weights]) == {}
    assert device_map("cuda", [weights, weights]) == {"device_map": "auto"}
    monkeypatch.undo()
    assert device_map("cpu", [weights, weights]) == {}


def test_memory_comes_back_while_others_still_hold_the_model():
    process = psutil.Process()
    before = process.memory_info().rss
    model = model_of(vocab_size=400_000)
    held = process.memory_info().rss - before
    assert held > 90 * 2**20
    release(model)
    assert process.memory_info().rss - before < held / 4
    assert model.config.vocab_size == 400_000


def test_what_says_that_memory_ran_out():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert out_of_memory(error.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not fit"))
