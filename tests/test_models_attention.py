"""Attention by document computes what transformers' masks compute: logits, gradients, generation, whatever is asked."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from ftkit.models.attention import BY_DOCUMENT, attend_by_document, attend_by_mask, attend_in_blocks
from ftkit.models.narrow_heads import attend_with_narrow_heads
from tests.conftest import pico_config

WINDOW = 8
LENGTHS = (5, 1, 17, 30, 11)


def config_of(family: str):
    if family == "sliding":
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return MistralConfig(**small, **heads, sliding_window=WINDOW)
    return pico_config(family)


def pair_of(family: str, attention: str = "sdpa"):
    """The same model twice, the second to attend by document. Large weights: each token shows in the first digit."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation=attention).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(5)
        models.append(model)
    return models


def line(lengths, seed=0):
    """Documents of these lengths one after the other: ids and positions [1, T]."""
    torch.manual_seed(seed)
    ids = torch.randint(4, 60, (1, sum(lengths)))
    return {"input_ids": ids, "position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}


@pytest.mark.parametrize("family", ["llama", "qwen2", "sliding"])
def test_logits_and_gradients_are_those_of_the_mask(family):
    """Several documents a row, rows that are cut elsewhere, and rows of one document; windows that slide stay so."""
    masked, separate = pair_of(family)
    assert attend_by_document(separate)
    two = [line(LENGTHS), line(LENGTHS[::-1], seed=1)]
    batches = [line(LENGTHS), {name: torch.cat([row[name] for row in two]) for name in two[0]}, line((40,))]
    for batch in batches:
        expected, found = (model(**batch, use_cache=False).logits for model in (masked, separate))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for model, logits in ((masked, expected), (separate, found)):
            model.zero_grad()
            logits.logsumexp(-1).square().mean().backward()
        for one, other in zip(masked.parameters(), separate.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4)


def attend_narrow(query, key, value, documents):
    rows = zip(query, key, value, documents, strict=True)
    return torch.stack([attend_with_narrow_heads()(*own, tuple(lengths)) for *own, lengths in rows])


@pytest.mark.parametrize("attend", [attend_in_blocks, attend_narrow])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(
    "documents", [[[300]], [[1]], [[128, 128]], [[127, 1, 129, 60]], [[40] * 8, [1, 200, 90, 29]], [[3, 5], [8]]]
)
def test_blocks_are_attention_over_the_square(documents, heads, groups, attend):
    """Values and gradients, in float64, of documents that end within blocks, at their borders and beyond them."""
    torch.manual_seed(0)
    total = sum(documents[0])
    shapes = [(len(documents), count, total, 8) for count in (heads, groups, groups)]
    states = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    owner = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in documents])
    seen = (owner[:, :, None] == owner[:, None, :]).tril()[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *states, attn_mask=seen, scale=1.0, enable_gqa=True
    ).transpose(1, 2)
    found = attend(*states, documents)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(each, states, upstream) for each in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def kernels_of(model, batch, *, trained, dtype=torch.bfloat16):
    """The names of torch's operations in a forward pass, as a training's is in a number format."""
    halved = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.set_grad_enabled(trained), halved:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            logits = model(**batch, use_cache=False).logits
    return {event.key for event in seen.key_averages()}, logits.detach().float()


@pytest.mark.parametrize("family", ["llama", "qwen2", "sliding"])
@pytest.mark.parametrize("lengths", [LENGTHS, (64,)])
def test_a_training_in_bfloat16_attends_in_blocks(family, lengths):
    masked, separate = pair_of(family)
    assert attend_by_document(separate)
    batch = line(lengths)
    usual, expected = kernels_of(masked, batch, trained=True)
    names, found = kernels_of(separate, batch, trained=True)
    exact = masked(**batch, use_cache=False).logits.detach()
    assert any("flash_attention" in name for name in usual)
    assert any("flash_attention" in name for name in names) == (family == "sliding")  # its window needs the mask
    limit = 2 * float((expected - exact).abs().max())
    assert float((found - exact).abs().max()) <= limit
    names, _ = kernels_of(separate, batch, trained=False)
    assert any("flash_attention" in name for name in names)  # what is measured is measured as other models are


@pytest.mark.parametrize(("heads", "amd", "narrow"), [(4, True, True), (4, False, False), (2, True, False)])
def test_a_training_in_float32_computes_narrow_heads_by_itself(heads, amd, narrow, monkeypatch):
    """Heads of 8 numbers, on AMD's processors; with 16 SDPA is as fast. Nor where nothing is trained, or some dropped."""
    monkeypatch.setattr("ftkit.models.attention.cpu_is_amd", lambda: amd)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        config = pico_config("llama")
        config.hidden_size, config.num_attention_heads, config.num_key_value_heads = 32, heads, heads // 2
        config.head_dim = 32 // heads
        models.append(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval())
    masked, separate = models
    assert attend_by_document(separate)
    for lengths in (LENGTHS, (64,), (230, 3, 100)):
        batch = line(lengths)
        for model in models:
            model.config.max_position_embeddings = 512
        names, found = kernels_of(separate, batch, trained=True, dtype=torch.float32)
        assert any("flash_attention" in name for name in names) != narrow
        torch.testing.assert_close(found, masked(**batch, use_cache=False).logits, rtol=1e-4, atol=1e-5)
        names, _ = kernels_of(separate, batch, trained=False, dtype=torch.float32)
        assert any("flash_attention" in name for name in names)
    for layer in separate.model.layers:
        layer.self_attn.attention_dropout = 0.5
    names, _ = kernels_of(separate.train(), line(LENGTHS), trained=True, dtype=torch.float32)
    assert any("scaled_dot_product" in name for name in names)


def test_long_documents_and_dropout_are_left_to_sdpa():
    """Their probabilities would fill the memory; and blocks drop none."""
    masked, separate = pair_of("llama")
    for model in (masked, separate):
        model.config.max_position_embeddings = 4096
    assert attend_by_document(separate)
    names, _ = kernels_of(separate, line((1025, 3)), trained=True)
    assert any("flash_attention" in name for name in names)
    names, _ = kernels_of(separate, line((1024, 3)), trained=True)
    assert not any("flash_attention" in name for name in names)
    for layer in separate.model.layers:
        layer.self_attn.attention_dropout = 0.5
    names, _ = kernels_of(separate.train(), line(LENGTHS), trained=True)
    assert any("scaled_dot_product" in name for name in names)


@pytest.mark.parametrize("family", ["llama", "qwen2", "sliding"])
def test_padding_and_caches_go_the_usual_way(family):
    masked, separate = pair_of(family)
    assert attend_by_document(separate)
    ids = torch.randint(4, 60, (3, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :7] = mask[2, :15] = 0  # on the left, as generation pads
    given = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        expected, found = (model(**given).logits[mask.bool()] for model in (masked, separate))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        expected, found = (model.generate(**given, **settings) for model in (masked, separate))
    assert found.tolist() == expected.tolist()


def test_it_is_taken_back_and_is_not_saved(tmp_path):
    masked, separate = pair_of("llama")
    assert attend_by_document(separate)
    separate.save_pretrained(tmp_path)
    assert BY_DOCUMENT not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    attend_by_mask(separate)
    assert separate.config._attn_implementation == masked.config._attn_implementation == "sdpa"
    batch = line(LENGTHS)
    assert torch.equal(separate(**batch, use_cache=False).logits, masked(**batch, use_cache=False).logits)


def test_a_model_with_another_attention_keeps_it():
    _, other = pair_of("llama", "eager")
    assert not attend_by_document(other)
    assert other.config._attn_implementation == "eager"
