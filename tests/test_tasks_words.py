"""Label words: a label's score is the log-probability of its whole answer, stop token included."""

import math
import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ftkit.errors import TrainingFailed
from ftkit.tasks import batches as batching
from ftkit.tasks.classify import probabilities
from ftkit.tasks.generation import generate
from ftkit.tasks.language import score
from ftkit.tasks.windows import IGNORED
from ftkit.tasks.words import constrained, label_named, label_of, label_scores
from tests.conftest import pico_config

PAD, STOP = 0, 3
# One token, two that begin alike, one that goes on from another, a longer one.
WORDS = [[20, STOP], [21, 22, STOP], [21, 23, STOP], [20, 24, STOP], [30, 31, 32, 33, STOP]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small wait for threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sharpened(model):
    """Weights ten times as large as usual: what one token does to another shows in the first digit."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    return model.eval()


def mistral():
    """Its attention looks back eight tokens, fewer than most prompts have."""
    shape = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(**shape, intermediate_size=128, num_key_value_heads=2, sliding_window=8))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, state_size=8))


def hybrid():
    """Attention beside a recurrent state, which cannot be put back as it was before an answer."""
    shape = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": PAD}
    state = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
    return FalconH1ForCausalLM(FalconH1Config(**shape, **state, intermediate_size=128, num_key_value_heads=2))


@pytest.fixture(scope="module", params=("llama", "qwen2", "gpt2", "mistral", "mamba", "hybrid"))
def model(request):
    torch.manual_seed(0)
    made = {"mistral": mistral, "mamba": mamba, "hybrid": hybrid}.get(request.param)
    return sharpened(made() if made else AutoModelForCausalLM.from_config(pico_config(request.param)))


def prompts_of(lengths, seed=0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(4, 64) for _ in range(length)] for length in lengths]


def plain(model, prompt, word) -> float:
    """Nats of each token of a word after all before it; no batch, no cache."""
    total, ids = 0.0, list(prompt)
    for token in word:
        with torch.no_grad():
            total += float(model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)[token])
        ids.append(token)
    return total


class TestLabelScores:
    def test_they_are_those_of_a_plain_loop(self, model):
        prompts = prompts_of([14, 3, 40, 1, 22])
        found = label_scores(model, prompts, WORDS, pad_token_id=PAD)
        expected = [[plain(model, prompt, word) for word in WORDS] for prompt in prompts]
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)

    def test_they_are_what_the_language_model_scores(self, model, monkeypatch):
        """For many prompts, in several batches: the same figure on both ways."""
        prompts = prompts_of(random.Random(1).choices(range(1, 58), k=50), seed=3)
        rows = [[*prompt, *word] for prompt in prompts for word in WORDS]
        labels = [[*[IGNORED] * len(prompt), *word] for prompt in prompts for word in WORDS]
        nll = score(model, rows, pad_token_id=PAD, labels=labels).nll
        monkeypatch.setitem(batching._TOKENS_AT_ONCE, "cpu", 200)
        told: list[int] = []
        found = label_scores(model, prompts, WORDS, pad_token_id=PAD, advance=told.append)
        np.testing.assert_allclose(found, -nll.reshape(50, len(WORDS)), rtol=1e-5, atol=1e-4)
        assert sum(told) == 50
        assert len(told) > 3

    def test_the_prompt_is_computed_once(self):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(pico_config("llama")).eval()
        seen = []
        model.register_forward_pre_hook(
            lambda _, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        label_scores(model, prompts_of([9, 12]), [[20, STOP], [21, 22, STOP]], pad_token_id=PAD)
        assert seen == [(2, 12), (2, 1), (2, 2)]

    def test_a_label_that_another_begins_with_has_a_probability_of_its_own(self, model):
        """All answers of two tokens and a stop, and those of one, are apart: together at most one."""
        prompt = prompts_of([6])
        words = [[STOP], *([first, STOP] for first in range(64) if first != STOP)]
        total = np.exp(label_scores(model, prompt, words, pad_token_id=PAD)).sum()
        longer = [[20, second, STOP] for second in range(64) if second != STOP]
        more = np.exp(label_scores(model, prompt, [[20, STOP], *longer], pad_token_id=PAD))
        assert total < 1
        assert more.sum() <= math.exp(plain(model, prompt[0], [20])) + 1e-6
        shares = probabilities(label_scores(model, prompt, WORDS, pad_token_id=PAD), multi_label=False)
        assert shares.sum() == pytest.approx(1)

    def test_scores_that_are_not_finite_stop_the_run(self):
        broken = AutoModelForCausalLM.from_config(pico_config("gpt2")).eval()
        with torch.no_grad():
            broken.transformer.ln_f.weight.fill_(float("nan"))
        with pytest.raises(TrainingFailed, match="the model's scores are not finite"):
            label_scores(broken, prompts_of([5]), WORDS, pad_token_id=PAD)

    def test_no_prompts_have_no_scores(self, model):
        assert label_scores(model, [], WORDS, pad_token_id=PAD).shape == (0, len(WORDS))


class TestConstrained:
    def test_every_path_of_a_label_and_no_other(self):
        allowed = constrained(WORDS)
        assert sorted(allowed(0, [])) == [20, 21, 30]
        assert sorted(allowed(5, [20])) == [STOP, 24]
        assert sorted(allowed(0, [21])) == [22, 23]
        assert allowed(0, [30, 31, 32, 33]) == [STOP]

    def test_what_is_generated_is_always_a_label(self, model):
        prompts = prompts_of([8, 3, 30, 1, 17, 25, 4, 11, 2, 6], seed=6)
        found = generate(
            model, prompts, max_new_tokens=8, limit=64, stop_ids=[STOP], pad_token_id=PAD, allowed=constrained(WORDS)
        )
        assert all(answer.ended for answer in found)
        assert None not in [label_of(answer.ids, WORDS) for answer in found]


def test_the_label_of_an_answer():
    assert [label_of(word[:-1], WORDS) for word in WORDS] == [0, 1, 2, 3, 4]
    assert label_of([21], WORDS) is None
    assert label_of([20, STOP], WORDS) is None
    assert label_of([], WORDS) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [("good", 0), (" good\n", 0), ("good enough", 1), ("Good", None), ("good.", None), ("", None), ("bad", None)],
)
def test_the_label_that_a_text_names(text, label):
    assert label_named(text, ["good", "good enough"]) == label
