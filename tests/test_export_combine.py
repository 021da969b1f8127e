"""Several adapters made one: against peft where the definitions agree, and against sums over whole matrices elsewhere."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from ftkit.errors import DataError, RecipeError

pytestmark = pytest.mark.usefixtures("one_thread")
LINEAR = ["q_proj", "v_proj", "down_proj"]
# Two whose ranks, scales and modules differ.
FIRST = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
SECOND = {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}
KEPT = 0.3


def make_adapter(base: Path, folder: Path, seed: int, config: dict, kind: str = "LoraConfig") -> Path:
    """An adapter with random factors, as peft saves it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    own = {"init_lora_weights": False} if kind == "LoraConfig" else {"init_ia3_weights": False}
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), getattr(peft, kind)(task_type="CAUSAL_LM", **own, **config)
    )
    whole = "embed_tokens" in config["target_modules"]  # where peft also saves the base's own, as it does unasked
    model.save_pretrained(folder, save_embedding_layers=whole)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    from tests.conftest import pico_config

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(pico_config("llama")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(base, folder / "first", 1, FIRST),
        make_adapter(base, folder / "second", 2, SECOND),
    ]


def read(folders: list[Path]):
    from ftkit.export.adapter import read_adapter

    return [read_adapter(folder) for folder in folders]


def deltas(base: Path, folder: Path) -> dict:
    """The whole weight updates of an adapter by peft, by the base's names."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return {
        f"{name.removeprefix('base_model.model.')}.weight": layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def combined(base: Path, folders: list[Path], method: str, weights: list[float], **settings) -> dict:
    """What ftkit adds to each tensor."""
    from ftkit.export.combine import combine
    from ftkit.export.tensors import read_index

    stored = read_index(base)
    changes = combine(read(folders), stored, method, weights, **settings)
    return {
        name: update.rows(stored[name].tensor().float(), 0) - stored[name].tensor().float()
        for name, update in changes.updates.items()
    }


def assert_close(found: dict, expected: dict, tolerance: float = 1e-6) -> None:
    import torch

    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def summed(parts: list[dict], weights: list[float]) -> dict:
    names = dict.fromkeys(name for part in parts for name in part)
    pairs = list(zip(parts, weights, strict=True))
    return {name: sum(part[name] * weight for part, weight in pairs if name in part) for name in names}


def largest(values, density: float):
    """Brute force: all but the largest absolute values set to 0."""
    import torch

    order = values.abs().flatten().argsort(descending=True)[: round(density * values.numel())]
    kept = torch.zeros(values.numel()).index_fill_(0, order, 1.0)
    return values * kept.reshape(values.shape)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_sum_is_that_of_the_whole_updates(base, pair, method):
    """Adapters of other ranks, scales and modules; a negative weight takes an update away."""
    parts = [deltas(base, folder) for folder in pair]
    assert any(name not in parts[1] for name in parts[0])
    for weights in ([1.0, 1.0], [0.7, -0.4]):
        assert_close(combined(base, pair, method, weights), summed(parts, weights))


@pytest.mark.parametrize("weight", [0.25, 1.7])
def test_shares_of_one_adapter_add_up_to_it(base, pair, weight):
    found = combined(base, [pair[0], pair[0]], "linear", [weight, 1 - weight])
    assert_close(found, deltas(base, pair[0]))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties"])
def test_one_adapter_kept_whole_is_its_plain_merge(base, pair, method):
    density = {} if method in ("linear", "task_arithmetic") else {"density": 1.0}
    assert_close(combined(base, pair[:1], method, [1.0], **density), deltas(base, pair[0]))


def test_magnitude_prune_keeps_the_largest_values_of_each_tensor(base, pair):
    parts = [{name: largest(own, KEPT) for name, own in deltas(base, folder).items()} for folder in pair]
    assert_close(combined(base, pair, "magnitude_prune", [1.0, 0.5], density=KEPT), summed(parts, [1.0, 0.5]))


def test_ties_is_peft_s_on_whole_updates(base, pair):
    """For positive, equal weights peft's own function on the products is the reference; it keeps as many values."""
    import torch
    from peft.utils.merge_utils import ties

    parts = [deltas(base, folder) for folder in pair]
    found = combined(base, pair, "ties", [0.8, 0.8], density=0.25)
    for name, values in found.items():
        own = [part.get(name, torch.zeros_like(values)) for part in parts]
        torch.testing.assert_close(values, ties(own, torch.tensor([0.8, 0.8]), 0.25), rtol=0, atol=1e-6)


def test_ties_elects_signs_by_mass():
    """By hand: agreement is averaged, the larger side wins alone, zeros do not vote, and a draw is 0."""
    import torch

    from ftkit.export.combined_update import elected_mean

    first = torch.tensor([1.0, -3.0, 2.0, 1.0, 0.0])
    second = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.0])
    third = torch.tensor([-1.0, 1.0, 4.0, 0.0, 0.0])
    assert elected_mean([first, second, third]).tolist() == [1.5, -3.0, 3.0, 0.0, 0.0]


@pytest.mark.parametrize(("method", "density"), [("linear", None), ("ties", KEPT), ("magnitude_prune", KEPT)])
def test_the_order_of_adapters_does_not_matter(base, pair, method, density):
    settings = {} if density is None else {"density": density}
    there = combined(base, pair, method, [0.6, 0.9], **settings)
    back = combined(base, pair[::-1], method, [0.9, 0.6], **settings)
    assert_close(back, {name: there[name] for name in back})


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_seeded(base, pair, method):
    def found(seed: int) -> dict:
        return combined(base, pair, method, [1.0, 1.0], density=0.5, seed=seed)

    import torch

    first, again, other = found(1), found(1), found(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_dare_drops_its_share_and_keeps_the_mean(base, pair):
    """Each value is 0 or divided by the density; over many seeds the mean is the whole update's."""
    import torch

    whole, density = deltas(base, pair[0]), 0.4
    rounds = [combined(base, pair[:1], "dare_linear", [1.0], density=density, seed=seed) for seed in range(60)]
    for name, values in whole.items():
        drawn = torch.stack([each[name] for each in rounds])
        kept = drawn.abs() > 1e-7
        torch.testing.assert_close(drawn[0][kept[0]], values[kept[0]] / density, rtol=1e-3, atol=1e-5)
        spread = math.sqrt(density * (1 - density) / kept.numel())
        assert abs(float(kept.float().mean()) - density) < 5 * spread
        error = (drawn.mean(0) - values) / (values.abs() * math.sqrt((1 - density) / density / 60))
        assert abs(float(error.square().mean()) - 1) < 0.1
    # The adapters of a merge drop other values, and so do its tensors.
    one, two = (combined(base, [pair[0]] * 2, "dare_linear", w, density=density) for w in ([1.0, 0.0], [0.0, 1.0]))
    names = list(one)
    assert all(not torch.equal(one[name] != 0, two[name] != 0) for name in names)
    assert not torch.equal(one[names[0]] != 0, one[names[3]] != 0)


@pytest.mark.parametrize("method", ["magnitude_prune", "ties", "dare_ties"])
def test_rows_are_the_same_whatever_is_asked_for_at_once(base, pair, method):
    """Bit for bit, so that a merge can be read back and made again in other pieces."""
    import torch

    from ftkit.export.combine import combine
    from ftkit.export.tensors import read_index

    stored = read_index(base)
    updates = combine(read(pair), stored, method, [1.0, 0.5], density=KEPT).updates
    name = "model.layers.0.self_attn.q_proj.weight"
    rows = stored[name].shape[0]
    whole = updates[name].delta(0, rows)
    pieces = [updates[name].delta(first, min(first + 7, rows)) for first in range(0, rows, 7)]
    assert torch.equal(torch.cat(pieces), whole)


def test_large_tensors_are_made_in_pieces_that_never_change():
    """Across the edges of what is computed at once, too; and dropping does not depend on where one begins."""
    import torch

    from ftkit.export.combined_update import Combined, Part
    from ftkit.export.methods import LowRank
    from ftkit.export.pruning import random_kept

    torch.manual_seed(0)
    shape = (3001, 101)
    left, right = torch.randn(shape[0], 4), torch.randn(4, shape[1])
    for key in (None, ("dare", 0)):
        part = Part(LowRank(lambda: left, lambda: right, shape[0]), shape, 1.0, KEPT, key)
        update = Combined(shape, (part, part), elected=True)
        whole = update.delta(0, shape[0])
        edges = [0, 1, 1000, 1297, 1298, 2500, shape[0]]
        pieces = [update.delta(first, last) for first, last in pairwise(edges)]
        assert torch.equal(torch.cat(pieces), whole)
        if key is None:
            torch.testing.assert_close(whole, largest(left @ right, KEPT))
        else:
            assert abs(float((whole != 0).float().mean()) - KEPT) < 0.01
    drawn = random_kept(("x",), 0, shape, KEPT)
    assert torch.equal(random_kept(("x",), 7, (9, 101), KEPT), drawn[7:16])


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_the_threshold_is_exact(size):
    import torch

    from ftkit.export.pruning import least_kept

    torch.manual_seed(size)
    values = torch.randn(size, 7) * torch.logspace(-30, 3, 7)
    values[0, 0] = 0.0
    ordered = values.abs().flatten().sort(descending=True).values
    for keep in {1, 2, size, 3 * size, 7 * size}:
        found = least_kept(lambda: values.split(3), keep)
        assert found == float(ordered[keep - 1])


def merged_by_peft(base: Path, folder: Path) -> dict:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return dict(model.merge_and_unload().state_dict())


def weighted_by_peft(base: Path, folders: list[Path], weights: list[float], method: str, **settings) -> dict:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folders[0], adapter_name="0")
    model.load_adapter(folders[1], adapter_name="1")
    model.add_weighted_adapter(["0", "1"], weights, "both", combination_type=method, **settings)
    model.set_adapter("both")
    return dict(model.merge_and_unload(adapter_names=["both"]).state_dict())


@pytest.mark.parametrize(
    ("method", "rank", "settings", "tolerance"),
    [("cat", None, {}, 1e-6), ("svd", 3, {"svd_rank": 3}, 1e-4), ("svd", None, {}, 1e-4)],
)
def test_one_adapter_of_two_is_peft_s(base, pair, tmp_path, method, rank, settings, tolerance):
    """Written as plain PEFT; what plain peft makes of it is what its own add_weighted_adapter gives."""
    from ftkit.export.combined_adapter import combined_adapter

    weights = [0.7, -0.4]
    record = combined_adapter(read(pair), tmp_path / "both", method, weights, rank=rank)
    assert_close(
        merged_by_peft(base, tmp_path / "both"), weighted_by_peft(base, pair, weights, method, **settings), tolerance
    )
    assert record == json.loads((tmp_path / "both" / "combined.json").read_text(encoding="utf-8"))
    assert record["ranks"] == ({"cat": [2, 4, 6]} if method == "cat" else {"svd": [2, 3] if rank else [2, 4]})[method]
    assert (record["relative_error"] > 0.01) == (method == "svd")


def test_svd_of_all_ranks_loses_nothing(base, pair, tmp_path):
    from ftkit.export.combined_adapter import combined_adapter

    record = combined_adapter(read(pair), tmp_path / "svd", "svd", [1.0, 1.0], rank=64)
    combined_adapter(read(pair), tmp_path / "cat", "cat", [1.0, 1.0])
    assert record["relative_error"] < 1e-7
    assert_close(merged_by_peft(base, tmp_path / "svd"), merged_by_peft(base, tmp_path / "cat"))


def test_one_adapter_of_embeddings_and_a_head_that_all_share(base, tmp_path):
    """The factors of embeddings lie the other way round; a module that is the same in all is kept."""
    from safetensors.torch import load_file, save_file

    from ftkit.export.combined_adapter import combined_adapter

    config = {"r": 3, "target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]}
    folders = [make_adapter(base, tmp_path / str(seed), seed, config) for seed in (1, 2)]
    head = "base_model.model.lm_head.weight"
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    save_file(tensors[1] | {head: tensors[0][head] + 1}, folders[1] / "adapter_model.safetensors")
    with pytest.raises(DataError) as caught:
        combined_adapter(read(folders), tmp_path / "both", "cat", [1.0, 1.0])
    assert str(caught.value) == (
        "error: the adapters cannot be combined\n"
        f"  {folders[1]}   lm_head.weight was trained whole, and is not the same as in {folders[0]}. "
        "Give adapters without modules_to_save, or with the same ones."
    )
    save_file(tensors[1] | {head: tensors[0][head]}, folders[1] / "adapter_model.safetensors")
    combined_adapter(read(folders), tmp_path / "both", "cat", [1.0, 0.5])
    before, after = plain(base), merged_by_peft(base, tmp_path / "both")
    added = summed([deltas(base, folder) for folder in folders], [1.0, 0.5])
    added["lm_head.weight"] = tensors[0][head] - before["lm_head.weight"]
    assert_close(after, {name: values + added.get(name, 0) for name, values in before.items()}, 1e-5)
    assert_close(combined(base, folders, "task_arithmetic", [1.0, 0.5]), added, 1e-5)


def plain(base: Path) -> dict:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(base).state_dict())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "tie",
            {},
            "--method   tie is no method. Did you mean ties? Write one of linear, task_arithmetic, magnitude_prune, "
            "ties, dare_linear, dare_ties, cat, svd.",
        ),
        ("linear", {"weights": [1.0]}, "--weights   1 for 2 adapters. Write one for each."),
        (
            "linear",
            {"weights": [1.0, math.inf]},
            "--weights   they must be finite, and not all 0. Write numbers such as 0.5.",
        ),
        ("linear", {"density": 0.5}, "--density   linear keeps all values. Leave it out."),
        (
            "ties",
            {},
            "--density   is needed: the share of values that ties keeps, above 0 and at most 1. Write 0.2, for instance.",
        ),
        (
            "dare_linear",
            {"density": 1.5},
            "--density   is 1.5: the share of values that dare_linear keeps, above 0 and at most 1. "
            "Write 0.2, for instance.",
        ),
        ("cat", {"rank": 4}, "--rank   cat does not choose a rank; svd does. Leave it out."),
        ("svd", {"rank": 0}, "--rank   0 is no rank. Write 1 or more."),
    ],
)
def test_settings_that_do_not_fit_are_refused(method, settings, message):
    from ftkit.export.combine import check_settings

    given = {"weights": [1.0, 1.0], "density": None, "rank": None} | settings
    with pytest.raises(RecipeError) as caught:
        check_settings(method, given["weights"], 2, density=given["density"], rank=given["rank"])
    assert str(caught.value) == f"error: the adapters cannot be combined\n  {message}"


@pytest.mark.parametrize(
    ("kind", "config", "what"),
    [
        (
            "LoraConfig",
            FIRST | {"use_dora": True},
            "model.layers.0.mlp.down_proj.lora_magnitude_vector: that is no update to add to others",
        ),
        (
            "IA3Config",
            {"target_modules": ["q_proj"], "feedforward_modules": []},
            "model.layers.0.self_attn.q_proj.ia3_l: that is no update to add to others",
        ),
        (
            "LoraConfig",
            FIRST | {"trainable_token_indices": [3, 4]},
            "model.embed_tokens.token_adapter.trainable_tokens_delta: that is no update to add to others",
        ),
    ],
)
def test_what_is_no_sum_is_refused(base, pair, tmp_path, kind, config, what):
    """By both ways of writing, with the reason."""
    from ftkit.export.combined_adapter import combined_adapter

    other = make_adapter(base, tmp_path / "other", 3, config, kind)
    expected = f"error: the adapters cannot be combined\n  {other}   it has {what}. Give plain LoRA adapters."
    with pytest.raises(DataError) as caught:
        combined(base, [pair[0], other], "linear", [1.0, 1.0])
    assert str(caught.value) == expected
    with pytest.raises(DataError) as caught:
        combined_adapter(read([pair[0], other]), tmp_path / "both", "cat", [1.0, 1.0])
    assert str(caught.value) == expected
    assert not (tmp_path / "both").exists()


def test_adapters_of_different_bases_are_refused(base, pair, tmp_path):
    """By the fingerprints that training leaves; without these, by the shapes."""
    import shutil

    from ftkit.export.combined_adapter import combined_adapter
    from ftkit.models.adapters import Lora
    from ftkit.models.fingerprint import write_fingerprint
    from ftkit.models.locate import BaseFiles

    other = shutil.copytree(base, tmp_path / "other-base")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    first, second = (shutil.copytree(folder, tmp_path / folder.name) for folder in pair)
    bases = [BaseFiles("x", "folder", folder, None) for folder in (base, other)]
    for folder, own in zip((first, second), bases, strict=True):
        write_fingerprint(folder, own, Lora())
    hashes = [own.sha256()[:12] for own in bases]
    expected = (
        "error: the adapters have different bases\n"
        f"  {second}   trained on other-base ({hashes[1]}…), and {first} on {base.name} ({hashes[0]}…). "
        "Give adapters of one base."
    )
    with pytest.raises(DataError) as caught:
        combined(base, [first, second], "linear", [1.0, 1.0])
    assert str(caught.value) == expected
    with pytest.raises(DataError) as caught:
        combined_adapter(read([first, second]), tmp_path / "both", "cat", [1.0, 1.0])
    assert str(caught.value) == expected
    wide = make_wide(tmp_path)
    with pytest.raises(DataError, match="is of another shape than in"):
        combined_adapter(read([pair[0], wide]), tmp_path / "both", "cat", [1.0, 1.0])
    with pytest.raises(DataError, match="does not fit the base"):
        combined(base, [pair[0], wide], "linear", [1.0, 1.0])


def make_wide(folder: Path) -> Path:
    """An adapter of a base with wider layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=128)).save_pretrained(folder / "wide-base")
    return make_adapter(folder / "wide-base", folder / "wide", 4, FIRST)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("llama", FIRST, SECOND),
        # Stored (in x out), and an output that is tied to the embedding; one adapter changes what the other does not.
        (
            "gpt2",
            {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True},
            {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        ),
        ("tied", {"r": 4, "target_modules": ["lm_head", "q_proj"]}, {"r": 2, "target_modules": ["q_proj"]}),
        ("tied", {"r": 4, "target_modules": ["embed_tokens"]}, {"r": 2, "target_modules": ["lm_head", "v_proj"]}),
    ],
)
def test_a_merged_model_of_two_has_the_logits_of_peft_s_sum(tmp_path, family, first, second):
    """Written tensor by tensor, with plain transformers as its reader."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ftkit.export.combine import combine
    from ftkit.export.combined_adapter import combined_adapter
    from ftkit.export.stream import merge_streamed
    from ftkit.export.tensors import read_index
    from tests.conftest import pico_config

    config = pico_config("llama" if family == "tied" else family)
    config.tie_word_embeddings = family != "llama"
    torch.manual_seed(0)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    pair = [make_adapter(base, tmp_path / str(seed), seed, own) for seed, own in ((1, first), (2, second))]
    adapters, weights = read(pair), [0.7, 0.3]
    merge_streamed(base, combine(adapters, read_index(base), "linear", weights), tmp_path / "merged")
    combined_adapter(adapters, tmp_path / "both", "cat", weights)
    ids = torch.arange(12)[None]

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(ids).logits

    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pair[0], adapter_name="0")
    model.load_adapter(pair[1], adapter_name="1")
    model.add_weighted_adapter(["0", "1"], weights, "both", combination_type="cat")
    model.set_adapter("both")
    expected = logits(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "both")
    torch.testing.assert_close(logits(alone), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.1)


def test_stacked_experts_are_summed_too(tmp_path):
    """Parameters that PEFT targets by themselves: as a model, not as one adapter."""
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig

    from ftkit.export.combine import combine
    from ftkit.export.combined_adapter import combined_adapter
    from ftkit.export.stream import merge_streamed
    from ftkit.export.tensors import read_index

    shape = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MixtralConfig(**shape, intermediate_size=96, num_local_experts=3, num_key_value_heads=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    lora = {"r": 2, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    pair = [make_adapter(tmp_path / "base", tmp_path / str(seed), seed, lora) for seed in (1, 2)]
    stored = read_index(tmp_path / "base")
    merge_streamed(tmp_path / "base", combine(read(pair), stored, "linear", [0.7, 0.3]), tmp_path / "merged")
    before, found = plain(tmp_path / "base"), plain(tmp_path / "merged")
    both = [merged_by_peft(tmp_path / "base", folder) for folder in pair]
    sums = {
        name: values + 0.7 * (both[0][name] - values) + 0.3 * (both[1][name] - values)
        for name, values in before.items()
    }
    assert sum(not sums[name].equal(before[name]) for name in sums) == 2
    assert_close(found, sums, 1e-5)
    with pytest.raises(DataError, match=r"it has target_parameters, which one pair of factors does not hold\."):
        combined_adapter(read(pair), tmp_path / "both", "cat", [1.0, 1.0])


def test_only_files_that_all_adapters_share_go_with_the_result(base, pair, tmp_path):
    import shutil

    from ftkit.export.combined_adapter import combined_adapter

    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in pair]
    for number, folder in enumerate(folders):
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(str(number), encoding="utf-8")
    combined_adapter(read(folders), tmp_path / "both", "cat", [1.0, 1.0])
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "combined.json", "tokenizer.json"}
