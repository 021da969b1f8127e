"""Decoders whose embeddings grow or are trained whole, and bases in 4 bits: nothing is lost on disk or in a merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from pydantic import ValidationError
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from ftkit import checkpoints
from ftkit.errors import MachineError, RecipeError
from ftkit.merging import Unquantised, full_precision, write_merged
from ftkit.models.adapters import Ia3, Lora
from ftkit.models.base import inference_mode, load_language_model, weights_dtype, with_new_adapter, with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.models.quantise import check_loftq, dequantised, is_four_bit, is_quantised
from tests.conftest import pico_config

OLD, NEW = 64, 67  # tokens of the pico models, and with three added
DECODERS = {"tied": ("llama", True), "untied": ("llama", False), "gpt2": ("gpt2", True)}
ROWS = torch.tensor([[2, 65, 10, 64, 12, 66, 20, 21], [2, 7, 66, 9, 64, 11, 65, 13]])
CPU = Machine("a processor", 2, 2, 8.0, None, None, bfloat16=True)
GPU = Machine("a processor", 2, 2, 8.0, "a GPU", 24.0, bfloat16=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small wait for threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tokenizer:
    """Stands where a merged model's tokenizer is saved."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory):
    """A function from a name of DECODERS to the folder of its pico model, with weights that make a difference."""
    made: dict[str, Path] = {}

    def make(name: str) -> BaseFiles:
        if name not in made:
            family, tied = DECODERS[name]
            config = pico_config(family)
            config.tie_word_embeddings = tied
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.dim() > 1:
                        weight.mul_(5)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
        return BaseFiles("pico", "folder", made[name], None)

    return make


def load(files: BaseFiles, *, seed: int = 0, **more):
    return load_language_model(files, "causal", pad_token_id=0, dtype=torch.float32, seed=seed, **more)


def logits(model, rows=ROWS) -> np.ndarray:
    inference_mode(model)
    with torch.no_grad():
        return model(input_ids=rows).logits.numpy()


def trained(model, *, rows=ROWS, steps: int = 3):
    """A few true steps on the rows; every trained weight moves, or the test would not see it lost."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimiser = torch.optim.SGD(weights.values(), lr=0.05)
    for _ in range(steps):
        inference_mode(model)
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert [name for name, weight in weights.items() if torch.equal(weight, before[name])] == []
    return model


def saved(model, folder: Path) -> set[str]:
    """Saves as a training does, and returns the names of what is in the file."""
    checkpoints.save(model, folder, initial=None)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return set(file.keys())


def merged_again(files: BaseFiles, model, folder: Path, into="full"):
    """From the adapter beside ``folder``. Only what was quantised is merged in memory."""
    chosen = Unquantised(model, into)
    how = write_merged(chosen, folder.parent / "adapter", files, Tokenizer(), folder)
    assert how == ("streamed" if into == "full" else "peft")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("name", DECODERS)
def test_rows_of_new_tokens_are_trained_saved_and_merged(decoder, name, quantize, tmp_path):
    """Under another seed the new rows are other random numbers: those that were trained must come from the adapter."""
    files = decoder(name)
    adapter = Lora(r=4, alpha=8, quantize=quantize)
    loaded = load(files, seed=1, vocab=NEW, quantize=quantize is not None)
    assert loaded.grown == range(OLD, NEW)
    model = trained(with_new_adapter(loaded, adapter, new_tokens=[64, 65]))
    checkpoints.forget_base(model)
    expected = logits(model)
    names = saved(model, tmp_path / "adapter")
    embeddings = [key for key in names if "lora_" not in key]
    assert len(embeddings) == (1 if DECODERS[name][1] else 2)
    assert all("trainable_tokens_delta" in key for key in embeddings)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(files.folder)
    assert list(config["trainable_token_indices"].values()) == [[64, 65, 66]] * len(embeddings)
    again = load(files, seed=2, vocab=NEW, quantize=quantize is not None)
    untrained = logits(again.model)
    reloaded = with_saved_adapter(again.model, tmp_path / "adapter")
    rows = [module.merged for module in reloaded.modules() if isinstance(module, TrainableTokensLayer)]
    assert rows == [True, True]  # no copy of the embeddings for each token generated
    np.testing.assert_allclose(logits(reloaded), expected, atol=1e-5)
    assert np.abs(untrained - expected)[..., OLD:].max() > 1e-2
    full = full_precision(lambda quantize: load(files, seed=3, vocab=NEW, quantize=quantize), tmp_path / "adapter",
                          "full")  # fmt: skip
    before = logits(full)
    if quantize is None:
        np.testing.assert_allclose(before, expected, atol=1e-5)
    merged = merged_again(files, full, tmp_path / "merged")
    np.testing.assert_allclose(logits(merged), before, atol=1e-4)
    assert merged.config.vocab_size == NEW
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == DECODERS[name][1]


def test_a_vocabulary_with_room_is_left_as_it_is(decoder):
    loaded = load(decoder("tied"), vocab=OLD - 3)
    assert loaded.grown == range(0)
    assert loaded.model.get_input_embeddings().num_embeddings == OLD
    model = with_new_adapter(loaded, Lora(r=4), new_tokens=[60])
    rows = [weight for name, weight in model.named_parameters() if "trainable_tokens_delta" in name]
    assert [tuple(weight.shape) for weight in rows] == [(1, 64)]


def test_what_has_grown_is_near_the_mean_of_the_rest(decoder):
    base = load(decoder("untied")).model.lm_head.weight
    torch.manual_seed(123)
    one, same = (load(decoder("untied"), seed=1, vocab=NEW).model.lm_head.weight for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(one[:OLD], base)
    torch.testing.assert_close(one[OLD:], base.mean(0).expand(3, -1), atol=1e-3, rtol=0)


def test_pissa_of_a_decoder_keeps_its_new_rows(decoder, tmp_path):
    files = decoder("untied")
    model = with_new_adapter(load(files, seed=1, vocab=NEW), Lora(r=4, alpha=4, init="pissa"))
    checkpoints.forget_base(model)
    checkpoints.save_start(model, tmp_path / "initial")
    expected = logits(trained(model))
    checkpoints.save(model, tmp_path / "adapter", initial=tmp_path / "initial")
    reloaded = with_saved_adapter(load(files, seed=2, vocab=NEW).model, tmp_path / "adapter")
    np.testing.assert_allclose(logits(reloaded), expected, atol=1e-4)


def test_new_tokens_that_no_adapter_can_train_are_refused(decoder):
    with pytest.raises(RecipeError) as error:
        with_new_adapter(load(decoder("tied"), vocab=NEW), Ia3(type="ia3"))
    assert str(error.value) == (
        "error: the adapter does not fit the base\n"
        "  adapter.type   (IA)^3 cannot train the rows of new tokens. Use a lora preset, or a template without new tokens."
    )
    loaded = load(decoder("untied"), vocab=NEW)
    loaded.model.lm_head.bias = torch.nn.Parameter(torch.zeros(NEW))
    with pytest.raises(RecipeError) as error:
        with_new_adapter(loaded, Lora(r=4))
    assert str(error.value) == (
        "error: the adapter does not fit the base\n"
        "  task.template   lm_head has a bias, with which PEFT cannot train new tokens. Use a template without new tokens."
    )


CHOICES = [("tied", ("embed_tokens",)), ("tied", ("lm_head",)), ("untied", ("lm_head",)),
           ("untied", ("embed_tokens", "lm_head")), ("gpt2", ("wte",)), ("untied", ("1.mlp",))]  # fmt: skip


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize(("name", "chosen"), CHOICES)
def test_modules_that_are_trained_whole_are_saved_and_merged(decoder, name, chosen, quantize, tmp_path):
    files, rows = decoder(name), ROWS.clamp(max=OLD - 1)
    adapter = Lora(r=4, alpha=8, modules_to_save=chosen, quantize=quantize)
    base = {"whole": chosen, "quantize": quantize is not None}
    model = trained(with_new_adapter(load(files, seed=1, **base), adapter), rows=rows)
    given, output = (model.get_base_model().get_submodule(each) for each in
                     (("transformer.wte", "lm_head") if name == "gpt2" else ("model.embed_tokens", "lm_head")))  # fmt: skip
    if DECODERS[name][1]:
        assert torch.equal(given.weight, output.weight)
    expected = logits(model, rows)
    saved(model, tmp_path / "adapter")
    reloaded = with_saved_adapter(load(files, seed=2, **base).model, tmp_path / "adapter")
    np.testing.assert_allclose(logits(reloaded, rows), expected, atol=1e-5)
    full = full_precision(lambda quantize: load(files, quantize=quantize), tmp_path / "adapter", "full")
    before = logits(full, rows)
    merged = merged_again(files, full, tmp_path / "merged")
    np.testing.assert_allclose(logits(merged, rows), before, atol=1e-4)
    if quantize is None:
        np.testing.assert_allclose(before, expected, atol=1e-5)


def test_a_module_that_the_base_lacks_is_told(decoder):
    for ending, fix in (
        ("embed_token", "Did you mean embed_tokens?"),
        ("act_fn", "Write one of: down_proj, embed_tokens, gate_proj, input_layernorm, k_proj, layers, lm_head, mlp, "
                   "model, norm, o_proj, post_attention_layernorm, q_proj, self_attn, up_proj, v_proj."),
    ):  # fmt: skip
        message = (
            "error: the adapter does not fit the base\n"
            f"  adapter.modules_to_save   the base has no module {ending}. {fix}"
        )
        with pytest.raises(RecipeError) as error:
            with_new_adapter(load(decoder("tied")), Lora(r=4, modules_to_save=(ending,)))
        assert str(error.value) == message
        with pytest.raises(RecipeError) as error:
            load(decoder("tied"), quantize=True, whole=(ending,))
        assert str(error.value) == message


@pytest.mark.parametrize("name", DECODERS)
def test_all_linear_layers_but_the_head_are_quantised(decoder, name):
    model = load(decoder(name), quantize=True).model
    kept = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {name for name, module in model.named_modules() if is_four_bit(module)}
    assert kept - quantised == {"lm_head"}
    assert len(quantised) == (8 if name == "gpt2" else 14)
    kept = load(decoder(name), quantize=True, whole=("mlp",)).model
    assert not any(is_four_bit(module) for each, module in kept.named_modules() if ".mlp." in each)


def test_a_masked_model_s_new_head_is_not_quantised(pico):
    """ModernBERT's head has a linear layer under a name of its own."""
    files = BaseFiles("pico", "folder", pico("modernbert"), None)
    loaded = load_language_model(files, "masked", pad_token_id=0, dtype=torch.float32, seed=0, quantize=True)
    assert "head" in loaded.head
    assert not any(is_four_bit(module) for name, module in loaded.model.named_modules() if name.startswith("head"))
    assert isinstance(loaded.model, type(AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(files.folder))))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DECODERS)
def test_a_quantised_decoder_trains_after_an_evaluation_as_before(decoder, name, compute):
    """bitsandbytes repacks 4-bit weights at a forward in eval mode on some processors, and loses the gradient."""
    rows = ROWS.clamp(max=OLD - 1)
    model = with_new_adapter(load(decoder(name), quantize=True, compute=compute), Lora(r=4, alpha=8, quantize="nf4"))
    trained(model, rows=rows)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]

    inference_mode(model)
    before = gradients()
    first, again = logits(model, rows), logits(model, rows)
    np.testing.assert_array_equal(first, again)
    assert all(float(gradient.abs().sum()) > 0 for gradient in before)
    for left, right in zip(before, gradients(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_quantised_base_scores_from_disk_as_in_memory(decoder, compute, tmp_path):
    files = decoder("untied")
    base = {"quantize": True, "compute": compute, "vocab": NEW}
    model = trained(with_new_adapter(load(files, seed=1, **base), Lora(r=4, alpha=8, quantize="nf4")))
    expected = logits(model)
    assert expected.dtype == np.float32
    saved(model, tmp_path)
    reloaded = with_saved_adapter(load(files, seed=2, **base).model, tmp_path)
    np.testing.assert_allclose(logits(reloaded), expected, atol=1e-5)


def test_sizes_that_4_bits_cannot_hold_are_told(tmp_path):
    config = pico_config("llama")
    config.intermediate_size = 96
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded = load(BaseFiles("pico", "folder", tmp_path, None), quantize=True)
    with pytest.raises(MachineError) as error:
        with_new_adapter(loaded, Lora(r=4, quantize="nf4"))
    assert error.value.exit_code == 4
    assert str(error.value) == (
        "error: the base cannot be quantised to 4 bits\n"
        "  adapter.quantize   model.layers.0.mlp.gate_proj is 64 x 96; sizes must be multiples of 64. Use a lora preset."
    )


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_an_adapter_merges_into_what_its_4_bits_stand_for(decoder, name, tmp_path):
    """As LoftQ must: its update holds what quantising lost. The plain base plus the same adapter is another model."""
    files = decoder(name)
    model = trained(with_new_adapter(load(files, vocab=NEW, quantize=True), Lora(r=4, alpha=4, quantize="nf4")))
    expected = logits(model)
    saved(model, tmp_path / "adapter")

    def base(quantize: bool):
        return load(files, seed=9, vocab=NEW, quantize=quantize)

    full = full_precision(base, tmp_path / "adapter", "dequantised")
    assert not is_quantised(full)
    np.testing.assert_allclose(logits(full), expected, atol=1e-3)
    merged = merged_again(files, full, tmp_path / "merged", "dequantised")
    assert not is_quantised(merged)
    np.testing.assert_allclose(logits(merged), expected, atol=1e-3)
    plain = full_precision(base, tmp_path / "adapter", "full")
    assert np.abs(logits(plain) - expected).max() > 1e-2


def test_a_dequantised_model_is_near_the_base_and_in_float32(decoder):
    base, quantised = load(decoder("untied")).model, load(decoder("untied"), quantize=True).model
    full = dequantised(quantised)
    assert {weight.dtype for weight in full.parameters()} == {torch.float32}
    for (name, one), (_, other) in zip(base.named_parameters(), full.named_parameters(), strict=True):
        apart = float((one - other).detach().norm() / one.detach().norm())
        assert (0.01 < apart < 0.2) == name.endswith("_proj.weight"), (name, apart)


def test_loftq_without_a_gpu_is_told_before_anything_is_loaded():
    adapter = Lora(r=8, alpha=8, init="loftq", quantize="nf4")
    check_loftq(adapter, GPU)
    check_loftq(Lora(r=8, quantize="nf4"), CPU)
    check_loftq(None, CPU)
    with pytest.raises(MachineError) as error:
        check_loftq(adapter, CPU)
    assert error.value.exit_code == 4
    assert str(error.value) == (
        "error: the adapter needs a GPU to start from\n"
        "  adapter.init   LoftQ decomposes weights on a CUDA device, and there is none here. Use the qlora preset."
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"alpha": 16, "r": 16}, "init: loftq starts from what 4 bits lose. Add quantize: nf4."),
        ({"alpha": 32, "r": 16, "quantize": "nf4"}, "init: loftq needs an update that is scaled by 1. Write alpha: 16."),
        ({"alpha": 16, "r": 16, "quantize": "nf4", "rslora": True},
         "init: loftq needs an update that is scaled by 1. Write alpha: 4."),
        ({"alpha": 16, "r": 16, "quantize": "nf4", "dora": True},
         "init: loftq and dora: true do not fit together. Remove one of the two."),
    ],
)  # fmt: skip
def test_what_loftq_cannot_stand_beside(keys, message):
    with pytest.raises(ValidationError) as error:
        Lora(init="loftq", **keys)
    assert [each["msg"] for each in error.value.errors()] == [f"Value error, {message}"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_loftq_starts_nearer_to_the_base_than_qlora_and_merges(decoder, name, tmp_path):
    files, rows = decoder(name), ROWS.clamp(max=OLD - 1)
    base = logits(load(files).model, rows)

    def start(adapter: Lora):
        loaded = load(files, quantize=True)
        loaded.model.to("cuda")
        return with_new_adapter(loaded, adapter)

    def apart(model) -> float:
        inference_mode(model)
        with torch.no_grad():
            return float(np.abs(model(input_ids=rows.to("cuda")).logits.cpu().numpy() - base).mean())

    loftq = start(Lora(r=16, alpha=16, init="loftq", quantize="nf4"))
    assert apart(loftq) < 0.8 * apart(start(Lora(r=16, alpha=16, quantize="nf4")))
    saved(loftq, tmp_path / "adapter")
    full = full_precision(lambda quantize: load(files, quantize=quantize), tmp_path / "adapter", "dequantised")
    with torch.no_grad():
        expected = loftq(input_ids=rows.to("cuda")).logits.cpu().numpy()
    np.testing.assert_allclose(logits(full, rows), expected, atol=1e-2)  # NF4 of a GPU and of a CPU round alike
    np.testing.assert_allclose(
        logits(merged_again(files, full, tmp_path / "merged", "dequantised"), rows), logits(full, rows), atol=1e-4
    )


def test_what_a_base_is_held_in():
    lora, qlora, whole = Lora(), Lora(quantize="nf4"), Lora(modules_to_save=("lm_head",))
    held = {
        name: [weights_dtype("auto", machine, adapter) for adapter in (lora, qlora, whole, None)]
        for name, machine in (("cpu", CPU), ("gpu", GPU))
    }
    single, half = torch.float32, torch.bfloat16
    assert held == {"cpu": [single] * 4, "gpu": [half, half, single, single]}
    assert weights_dtype("float32", GPU, lora) == weights_dtype("auto", GPU, lora, causal=False) == single
