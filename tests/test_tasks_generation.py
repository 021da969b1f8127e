"""Generated answers: those of a plain loop over the likeliest token, whatever else is in the batch."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from ftkit.tasks import generation
from ftkit.tasks.generation import Generated, generate
from tests.conftest import pico_config

PAD, STOP, OTHER_STOP = 0, 3, 7
LIMIT = 64  # positions of the pico models


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small wait for threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pico_model(family: str):
    """Weights ten times as large as usual, so that what comes next depends on all that came before."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pico_config(family)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    return model


@pytest.fixture(scope="module", params=("llama", "qwen2", "gpt2"))
def model(request):
    return pico_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return pico_model("llama")


def prompts_of(lengths, seed=0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(8, 64) for _ in range(length)] for length in lengths]


def plain(model, prompt, new, stops) -> Generated:
    """The likeliest token after all that is there, again and again: no batch, no padding, no cache."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + new, LIMIT):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            return Generated(ids[len(prompt) : -1], True)
    return Generated(ids[len(prompt) :], False)


def answers(model, prompts, new=12, stops=(STOP, OTHER_STOP), **settings):
    return generate(
        model, prompts, max_new_tokens=new, stop_ids=stops, pad_token_id=PAD, **({"limit": LIMIT} | settings)
    )


class TestGenerate:
    def test_each_answer_is_what_a_plain_loop_finds(self, model):
        """Lengths of all kinds, up to the model's positions and beyond, in no order; answers of all lengths."""
        prompts = prompts_of([5, 64, 1, 40, 63, 17, 2, 58, 9, 66, 30, 61, 3, 52, 24, 60, 11, 4])
        stops = (STOP, OTHER_STOP, 11, 12, 13, 14)
        found = answers(model, prompts, stops=stops)
        assert found == [plain(model, prompt, 12, stops) for prompt in prompts]
        lengths = {len(answer.ids) for answer in found}
        assert len(lengths) > 3
        assert {answer.ended for answer in found} == {True, False}

    def test_company_and_the_size_of_batches_change_nothing(self, model, monkeypatch):
        prompts = prompts_of(random.Random(1).choices(range(1, 60), k=40), seed=2)
        together = answers(model, prompts)
        assert together == [answers(model, [prompt])[0] for prompt in prompts]
        monkeypatch.setattr(generation, "_TOKENS_AT_ONCE", {"cpu": 100})
        assert answers(model, prompts) == together
        assert answers(model, prompts[::-1]) == together[::-1]

    def test_without_a_stop_token_every_answer_is_as_long_as_it_may_be(self, model):
        prompts = prompts_of([10, 50, 60, 63])
        found = answers(model, prompts, new=20, stops=())
        assert [len(answer.ids) for answer in found] == [20, 14, 4, 1]
        assert not any(answer.ended for answer in found)

    def test_rows_that_go_on_when_most_have_ended_are_not_cut(self, llama):
        """Nine of ten rows end at once: what is left is computed with others, from where it was."""
        prompts = prompts_of([12] * 60, seed=3)
        firsts = [plain(llama, prompt, 1, ()).ids[0] for prompt in prompts]
        stops = sorted(set(firsts[:54]))
        calls = []
        honest = llama.generate
        llama.generate = lambda **given: calls.append(len(given["input_ids"])) or honest(**given)
        try:
            found = answers(llama, prompts, stops=stops)
        finally:
            del llama.generate
        assert found == [plain(llama, prompt, 12, stops) for prompt in prompts]
        assert calls[0] == 60
        assert 0 < calls[1] <= 15

    def test_rows_of_several_batches_that_go_on_together_keep_their_own_ends(self, llama, monkeypatch):
        """Two batches are left after 1 and after 6 tokens; the rest of both, with unlike room, is one batch."""
        monkeypatch.setattr(generation, "_TOKENS_AT_ONCE", {"cpu": 16 * (20 + 12)})
        prompts = prompts_of([20] * 32, seed=4)
        ends = [1] * 12 + [12] * 4 + [6] * 12 + [12] * 4

        def allowed(row: int, made: list[int]) -> list[int]:
            return [STOP] if len(made) == ends[row] else list(range(8, 64))

        found = answers(llama, prompts, allowed=allowed)
        everything = [answer.ids for answer in answers(llama, prompts, stops=(), allowed=lambda *_: list(range(8, 64)))]
        assert [answer.ids for answer in found] == [ids[:end] for ids, end in zip(everything, ends, strict=True)]
        assert [answer.ended for answer in found] == [end < 12 for end in ends]

    def test_an_adapter_counts(self, llama):
        torch.manual_seed(1)
        base = pico_model("llama")
        adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
        prompts = prompts_of([3, 20, 9])
        found = answers(adapted, prompts)
        assert found == [plain(adapted, prompt, 12, (STOP, OTHER_STOP)) for prompt in prompts]
        assert found != answers(llama, prompts)

    def test_a_model_without_positions_answers_too(self):
        torch.manual_seed(0)
        mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, state_size=8)).eval()
        prompts = prompts_of([3, 20, 9])
        assert answers(mamba, prompts, limit=None) == [plain(mamba, prompt, 12, (STOP,)) for prompt in prompts]

    def test_what_the_base_asks_for_itself_is_put_aside_and_left_as_it_was(self):
        model = pico_model("qwen2")
        prompts = prompts_of([3, 20, 9, 31])
        expected = answers(model, prompts)
        own = model.generation_config
        own.update(do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=3.0, no_repeat_ngram_size=1)
        own.update(min_new_tokens=12, suppress_tokens=[*expected[0].ids], eos_token_id=[*expected[1].ids])
        assert answers(model, prompts) == expected
        assert model.generation_config is own
        assert own.repetition_penalty == 3.0

    def test_the_cache_is_used_though_the_config_says_no(self, llama):
        seen = []
        hook = llama.register_forward_pre_hook(
            lambda _, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        llama.config.use_cache = False
        answers(llama, prompts_of([9]), new=4, stops=())
        hook.remove()
        llama.config.use_cache = True
        assert seen == [9, 1, 1, 1]

    def test_it_tells_how_many_are_done_each_once(self, model):
        told: list[int] = []
        answers(model, prompts_of([5, 64, 1, 40, 63, 70, 17] * 4), advance=told.append)
        assert sum(told) == 28
        assert all(count > 0 for count in told)

    def test_no_prompts_have_no_answers(self, model):
        assert answers(model, []) == []


class TestAllowed:
    def test_only_what_is_allowed_comes(self, model):
        """Each row has its own tokens, by its number and what it has so far; and goes on over several batches."""
        prompts = prompts_of([30, 5, 60, 12, 58, 2, 20, 9, 44, 16], seed=5)

        def allowed(row: int, made: list[int]) -> list[int]:
            assert STOP not in made
            assert len(made) <= row
            return [STOP] if len(made) == row else [20 + row, 40 + len(made)]

        found = answers(model, prompts, allowed=allowed)
        for row, (prompt, answer) in enumerate(zip(prompts, found, strict=True)):
            ids, room = list(prompt), min(12, LIMIT - len(prompt))
            for place in range(min(row, room)):
                with torch.no_grad():
                    ahead = model(torch.tensor([ids])).logits[0, -1]
                ids.append(max((20 + row, 40 + place), key=lambda token: float(ahead[token])))
            assert answer == Generated(ids[len(prompt) :], row < room)
