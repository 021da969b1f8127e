"""LoRA's own layer: PEFT's outputs and gradients in fewer operations, its names, and its layer for the rest."""

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
from ftkit.models.lora_linear import train_with_fewer_operations, updated_product
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
            train_with_fewer_operations(model, own)
        torch.manual_seed(1)
        adapted = get_peft_model(model, own).train()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if any(part in name for part in UPDATES):
                    weight.normal_(std=0.05)
        models.append(adapted)
    return models


def operations(model) -> tuple[int, int]:
    """How often a forward pass made W + s B A, and how often a product with the update added to it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        model(IDS)
    small = [event for event in seen.events() if event.name == "aten::addmm" and len(event.input_shapes[0]) == 2]
    return len(small), sum(event.name == "UpdatedProduct" for event in seen.events())  # a bias has one dimension


def gradients(model, inputs=IDS) -> dict[str, torch.Tensor]:
    """The logits, and the gradient of each weight that has one."""
    logits = model(inputs).logits
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), inputs.flatten()).backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert all(any(part in name for part in UPDATES) and grad.abs().max() > 0 for name, grad in found.items())
    return {"logits": logits.detach(), **found}


def linear_layers(model) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


# Of 14 layers 8 have 4,096 numbers, and 6 have 8,192.
@pytest.mark.parametrize(
    ("settings", "small"),
    [({}, 8), ({"use_rslora": True}, 8), ({"init_lora_weights": "pissa"}, 8), ({"r": 32}, 14), ({"r": 4}, 0)],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_peft(settings, small):
    theirs, ours = pair(**settings)
    layers = len(linear_layers(ours))
    assert operations(theirs) == (0, 0)
    assert operations(ours) == (small, layers - small)
    expected, found = gradients(theirs), gradients(ours)
    assert found.keys() == expected.keys()
    assert len(found) == 1 + 2 * layers
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-5, msg=name)


def test_in_bfloat16_they_are_as_near_to_float32_as_those_of_peft():
    theirs, ours = pair()
    exact = gradients(copy.deepcopy(theirs))
    with torch.autocast("cpu", torch.bfloat16):
        assert operations(ours) == (0, len(linear_layers(ours)))
        expected, found = gradients(theirs), gradients(ours)
    assert found.keys() == expected.keys() == exact.keys()
    assert all(found[name].dtype == values.dtype for name, values in expected.items())

    def lost(by):
        return [float((by[name].float() - values).norm() / values.norm()) for name, values in exact.items()]

    mean = sum(lost(expected)) / len(exact)
    assert mean < 0.1
    assert sum(lost(found)) / len(exact) < 1.2 * mean


@pytest.mark.parametrize("bias", [None, torch.randn(3, dtype=torch.float64)], ids=["no bias", "bias"])
def test_the_gradient_of_an_updated_product(bias):
    torch.manual_seed(0)
    x, weight, down, up = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 5, 4), (3, 4), (2, 4), (3, 2)))
    trained = [values.requires_grad_() for values in (x, down, up)]
    expected = torch.nn.functional.linear(x, weight + 1.5 * up @ down, bias)
    torch.testing.assert_close(updated_product()(x, weight, bias, down, up, 1.5), expected)
    assert torch.autograd.gradcheck(lambda x, a, b: updated_product()(x, weight, bias, a, b, 1.5), trained)


def test_activations_that_are_computed_twice_have_the_same_gradients():
    _, ours = pair(r=4)
    again = copy.deepcopy(ours)
    again.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    expected, found = gradients(ours), gradients(again)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)


def scaled(layer):
    layer.weight.mul_(1.5)


def exchanged(layer):
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)


def filled_anew(layer):
    layer.weight.data = layer.weight * 1.5


@pytest.mark.parametrize("change", [scaled, exchanged, filled_anew])
def test_weights_that_change_are_brought_to_bfloat16_again(change):
    _, ours = pair()
    with torch.autocast("cpu", torch.bfloat16):
        before = ours(IDS).logits
        assert torch.equal(ours(IDS).logits, before)
        with torch.no_grad():
            for layer in linear_layers(ours):
                change(layer.get_base_layer())
        fresh = copy.deepcopy(ours)
        for layer in linear_layers(fresh):
            layer._halved = None
        assert not torch.equal(ours(IDS).logits, before)
        assert torch.equal(ours(IDS).logits, fresh(IDS).logits)


def test_what_is_saved_is_a_plain_adapter_of_peft(tmp_path):
    theirs, ours = pair()
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.save_pretrained(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    again = PeftModel.from_pretrained(base(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(IDS).logits, ours(IDS).logits, rtol=1e-4, atol=1e-5)


def assert_peft_answers(ours, theirs):
    assert operations(ours)[1] == 0
    assert operations(ours) == operations(theirs)
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_other_updates_are_left_to_peft(settings):
    targets = {"target_modules": ["q_proj"]} if "lora_bias" in settings else {}
    theirs, ours = pair(**settings, **targets)
    if "lora_dropout" in settings:
        assert operations(ours) == operations(theirs) == (0, 0)
    else:
        assert_peft_answers(ours, theirs)


def test_what_is_not_trained_is_left_to_peft():
    theirs, ours = pair()
    with torch.no_grad():
        assert_peft_answers(ours, theirs)
    with torch.autocast("cpu", torch.float16):
        assert_peft_answers(ours, theirs)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert_peft_answers(ours, theirs)
    for model in (ours, theirs):
        model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=True))
        model.base_model.set_adapter(["default", "other"])
    assert_peft_answers(ours, theirs)
    for model in (ours, theirs):
        model.base_model.set_adapter("default")
        model.merge_adapter()
    assert_peft_answers(ours, theirs)


def test_a_base_that_is_trained_too_is_left_to_peft():
    theirs, ours = pair()
    for model in (theirs, ours):
        for layer in linear_layers(model):
            layer.get_base_layer().weight.requires_grad_()
    assert_peft_answers(ours, theirs)
    ours(IDS).logits.square().mean().backward()
    assert all(layer.get_base_layer().weight.grad.abs().max() > 0 for layer in linear_layers(ours))


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
