"""llama.cpp itself on the files that are written: the same tokens of a text, the same greedy answers.

Needs llama-cpp-python, which builds llama.cpp when it is installed: a quarter of an hour.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ftkit
from ftkit.export.gguf import write_gguf, write_lora_gguf
from tests.gguf_models import FAMILIES, TEXTS, make
from tests.test_export_gguf_lora import CASES, adapt

pytestmark = pytest.mark.llama_cpp
TINY_LM = Path(ftkit.__file__).parent / "tiny_lm"
NEW = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, decoder):
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            own = family in ("llama", "gpt2", "qwen2")
            made[family] = decoder(family) if own else make(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


def load(file: Path, **settings):
    """llama.cpp with a cache in float32, on one thread."""
    import llama_cpp

    return llama_cpp.Llama(
        str(file), n_ctx=96, n_threads=1, n_gpu_layers=0, type_k=0, type_v=0, verbose=False, **settings
    )


def greedy(llama, ids: list[int]) -> list[int]:
    answer = []
    for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        answer.append(token)
        if len(answer) == NEW:
            return answer
    raise AssertionError("generation ended by itself")


def expected(model, ids: list[int]) -> list[int]:
    import torch

    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < NEW:
            answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(model, tmp_path, family, one_thread):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_gguf(model(family), tmp_path / "model.gguf", "F32")
    llama = load(tmp_path / "model.gguf")
    own = AutoModelForCausalLM.from_pretrained(model(family), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model(family))
    for text in TEXTS[:20]:
        ids = tokenizer(text).input_ids[:60]
        assert greedy(llama, ids) == expected(own, ids), text


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_have_the_tokens_of_the_tokenizer(model, tmp_path, family):
    import json

    from ftkit.export.gguf.probes import probes
    from ftkit.export.gguf.vocabulary import read_tokenizer, tolerated

    write_gguf(model(family), tmp_path / "model.gguf", "F32")
    llama, tokenizer = load(tmp_path / "model.gguf"), read_tokenizer(model(family))
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for group, texts in probes(described, every_token=False).items():
        if group not in tolerated(tokenizer, described):
            for text in [*texts, *(TEXTS if group == "plain" else ())]:
                own = tokenizer(text, add_special_tokens=False).input_ids
                assert llama.tokenize(text.encode(), add_bos=False, special=True) == own, text
    assert llama.tokenize(b"a", add_bos=True, special=True) == tokenizer("a").input_ids


@pytest.mark.parametrize("family", CASES)
def test_a_lora_alone_answers_as_with_peft(model, tmp_path, family, one_thread):
    import torch
    from transformers import AutoModelForCausalLM

    settings = {"lora_alpha": 48} | CASES[family]
    adapted = adapt(model(family), tmp_path / "adapter", **settings)
    write_gguf(model(family), tmp_path / "model.gguf", "F32")
    write_lora_gguf(tmp_path / "adapter", model(family), tmp_path / "adapter.gguf", "F32")
    llama = load(tmp_path / "model.gguf", lora_path=str(tmp_path / "adapter.gguf"))
    bare = AutoModelForCausalLM.from_pretrained(model(family), dtype=torch.float32)
    prompts = [[5 + number, 40, 41 + number, 100 + number] for number in range(20)]
    answers = [greedy(llama, ids) for ids in prompts]
    assert answers == [expected(adapted.eval(), ids) for ids in prompts]
    assert answers != [expected(bare, ids) for ids in prompts]


def test_a_trained_model_goes_on_with_the_same_words(tmp_path, one_thread):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(shutil.copytree(TINY_LM, tmp_path / "model"))
    write_gguf(folder, tmp_path / "model.gguf", "F32")
    llama, own = load(tmp_path / "model.gguf"), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ("Tom", "Lily", "Ben", "Mia", "Sam")
    starts = ("Once upon a time, {} had a", "One day {} saw a big", "{} was sad because", "“Look!” said {}.")
    for text in (start.format(name) for name in names for start in starts):
        ids = tokenizer(text).input_ids
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == ids
        assert greedy(llama, ids) == expected(own, ids), text
