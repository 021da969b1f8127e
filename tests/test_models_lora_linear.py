"""LoRA of small matrices trains with one product: PEFT's outputs and gradients, its names, and its layer for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from transformers import AutoModelForCausalLM

from ftkit.models.adapters import Lora
from ftkit.models.base import load_language_model, with_new_adapter
from ftkit.models.locate import BaseFiles
from ftkit.models.lora_linear import train_with_one_product
from tests.conftest import pico_config

IDS = torch.tensor([[2, 5, 10, 44, 12, 60, 20, 21], [2, 7, 6, 9, 50, 11, 5, 13]])
UPDATES = ("lora_A", "lora_B")


def base(family: str = "qwen2"):
    """Qwen 2 has biases at three of seven linear layers."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(pico_config(family))


def pair(**settings):
    """PEFT's model and the one with ftkit's layers, with the same update in which nothing is 0."""
    config = LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 24, "target_modules": "all-linear"} | settings
    )
    models = []
    for ours in (False, True):
        model, own = base(), copy.deepcopy(config)
        if ours:
            train_with_one_product(model, own)
        torch.manual_seed(1)
        adapted = get_peft_model(model, own).train()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if any(part in name for part in UPDATES):
                    weight.normal_(std=0.3)
        models.append(adapted)
    return models


def products(model, **given) -> int:
    """How often W + s B A was computed in a forward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        model(IDS, **given)
    shapes = [event.input_shapes for event in seen.events() if event.name == "aten::addmm"]
    return sum(len(first) == 2 for first, *_ in shapes)  # a bias has one dimension


def linear_layers(model) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"init_lora_weights": "pissa"}, {"r": 32}], ids=str)
def test_outputs_and_gradients_are_those_of_peft(settings):
    theirs, ours = pair(**settings)
    assert products(theirs) == 0
    assert products(ours) == len(linear_layers(ours)) == len(linear_layers(theirs))
    found = []
    for model in (theirs, ours):
        logits = model(IDS).logits
        logits.logsumexp(-1).square().mean().backward()
        found.append(logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    for (name, one), (other, two) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other
        assert (one.grad is None) == (two.grad is None) == (not any(part in name for part in UPDATES))
        if one.grad is not None:
            assert one.grad.abs().max() > 0
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-5)


def test_what_is_saved_is_a_plain_adapter_of_peft(tmp_path):
    theirs, ours = pair()
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.save_pretrained(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    again = PeftModel.from_pretrained(base(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(IDS).logits, ours(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}, {"r": 1}], ids=str
)
def test_other_updates_and_small_ranks_are_left_to_peft(settings):
    targets = {"target_modules": ["q_proj"]} if "lora_bias" in settings else {}
    theirs, ours = pair(**settings, **targets)
    assert products(ours) == products(theirs)
    if "lora_dropout" not in settings:
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


def test_what_is_not_trained_in_float32_is_left_to_peft():
    theirs, ours = pair()
    with torch.no_grad():
        assert products(ours) == 0
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert products(ours) == 0
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert products(ours) == 0
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    for model in (ours, theirs):
        model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=True))
        model.base_model.set_adapter(["default", "other"])
    assert products(ours) == 0
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    for model in (ours, theirs):
        model.base_model.set_adapter("default")
        model.merge_adapter()
    assert products(ours) == 0
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize(
    ("family", "quantize", "layer"),
    [("llama", None, "LoraLinear"), ("gpt2", None, "Linear"), ("llama", "nf4", "Linear4bit")],
)
def test_the_layers_of_a_run(family, quantize, layer, tmp_path):
    """Weights that are kept transposed, or in 4 bits, have PEFT's layers for them."""
    base(family).save_pretrained(tmp_path)
    files = BaseFiles("a base", "folder", tmp_path, None)
    settings = {"pad_token_id": 0, "dtype": torch.float32, "seed": 0, "quantize": quantize is not None}
    adapted = with_new_adapter(load_language_model(files, "causal", **settings), Lora(r=8, alpha=16, quantize=quantize))
    assert {type(module).__name__ for module in adapted.modules() if isinstance(module, LoraLayer)} == {layer}
