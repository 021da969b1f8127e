"""Pico models and a tiny tokenizer, made once a session: no download, no GPU, a second of work."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import settings

from tests.conversations import make_decoder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The same examples each time where a failure must be looked into later; new ones at every run at home.
settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Corpora that tests read are kept in a folder of the session, for the commands that they start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """A run in an earlier test has set them to 0 for the whole process."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a CUDA device or llama.cpp are left out where there is none."""
    if importlib.util.find_spec("llama_cpp") is None:
        for item in items:
            if item.get_closest_marker("llama_cpp"):
                item.add_marker(pytest.mark.skip(reason="llama-cpp-python is not installed"))
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory):
    """A function from a name to the folder of a pico decoder that can chat, or learn to."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = make_decoder(tmp_path_factory.mktemp(name), name)
        return made[name]

    return make


@pytest.fixture(scope="module")
def one_thread():
    """Models this small wait longer for threads than they compute, here and in the processes that are started."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


GOOD = ["great", "lovely", "superb", "delightful", "fine"]
BAD = ["awful", "dreadful", "boring", "broken", "poor"]
THINGS = ["film", "phone", "soup", "app", "plot", "screen", "waiter", "menu"]
VOCABULARY = [*GOOD, *BAD, *THINGS, "the", "was", "a", "and", "very", "quite", "not", "we", "found", "it"]


def sentences(rows: int, seed: int) -> list[tuple[str, str]]:
    """Distinct little reviews with their label; half of each."""
    chance = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < rows:
        label = "good" if len(found) % 2 else "bad"
        words = [chance.choice(GOOD if label == "good" else BAD) for _ in range(chance.randint(1, 3))]
        text = f"the {chance.choice(THINGS)} was {' and '.join(words)} we found the {chance.choice(THINGS)} {seed}"
        found.setdefault(text, label)
    return list(found.items())


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer in the form of BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *VOCABULARY, *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def pico_config(family: str):
    """A two-layer model of a family, 64 wide: every linear layer can be quantised to NF4."""
    import transformers as t

    shape = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 128, "max_position_embeddings": 64, "pad_token_id": 0}
    special = {"bos_token_id": 2, "eos_token_id": 3}
    match family:
        case "bert":
            return t.BertConfig(**shape)
        case "roberta":
            return t.RobertaConfig(**shape, **special)
        case "deberta":
            return t.DebertaV2Config(**shape, relative_attention=True, pos_att_type=["p2c", "c2p"])
        case "modernbert":
            return t.ModernBertConfig(**shape, **special, cls_token_id=2, sep_token_id=3)
        case "llama":
            return t.LlamaConfig(**(shape | {"pad_token_id": None}), **special)
        case "qwen2":
            return t.Qwen2Config(**(shape | {"pad_token_id": None}), num_key_value_heads=2, **special)
        case "gpt2":
            return t.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=64, **special)
    raise ValueError(family)


def sft_trainer(kind, model, collate, folder: Path, tokenizer: Path):
    """A trainer of a ``kind`` of SFTTrainer on the processor, given what ftkit.train gives it."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.sft_config import SFTConfig

    arguments = SFTConfig(
        output_dir=str(folder), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=True, bf16=False,
        report_to=[], remove_unused_columns=False, activation_checkpointing=False, disable_tqdm=True, save_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    return kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"position": range(2)}),
        data_collator=collate,
        processing_class=PreTrainedTokenizerFast.from_pretrained(tokenizer),
    )


FAMILIES = ("bert", "roberta", "deberta", "modernbert", "llama", "qwen2", "gpt2")


@pytest.fixture(scope="session")
def pico(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function from a family's name to a folder with its pico base model and tokenizer."""
    import shutil

    import torch
    from transformers import AutoModel

    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            AutoModel.from_config(pico_config(family)).save_pretrained(folder)
            for file in tokenizer_folder.iterdir():
                shutil.copy(file, folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture
def recipe(tmp_path: Path, pico, monkeypatch: pytest.MonkeyPatch):
    """A function that writes a small recipe with its data into a folder of the test, and goes there."""
    monkeypatch.chdir(tmp_path)

    def write(family: str = "bert", **sections: str) -> Path:
        write_csv(tmp_path / "train.csv", sentences(96, 1))
        write_csv(tmp_path / "valid.csv", sentences(24, 2))
        write_csv(tmp_path / "test.csv", sentences(60, 3))
        keys = {
            "name": "pico",
            "base": str(pico(family)),
            "task": "{type: classify, labels: [bad, good]}",
            "data": "{train: train.csv, valid: valid.csv, test: test.csv}",
            "adapter": "{type: lora, r: 8, alpha: 32}",
            "train": "{epochs: 2, batch_size: 8, learning_rate: 5e-3, seed: 7}",
        }
        path = tmp_path / "recipe.yaml"
        text = "".join(f"{key}: {value}\n" for key, value in (keys | sections).items())
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write
