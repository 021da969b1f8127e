"""Attention by document computes what transformers' masks compute: logits, gradients, generation, whatever is asked."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from ftkit.models.attention import BY_DOCUMENT, attend_by_document, attend_by_mask
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
