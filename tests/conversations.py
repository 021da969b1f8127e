"""A task that a pico decoder learns in seconds, decoders to learn it, and how their files are read."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOUNDS = {
    "cat": "meow", "dog": "woof woof", "hen": "cluck", "fox": "yip yip yip", "owl": "hoot hoot", "cow": "moo",
    "rat": "squeak", "bee": "buzz buzz",
}  # fmt: skip
PLACES = ["garden", "meadow", "kitchen", "forest", "harbour", "library", "market", "station", "village", "workshop"]
TIMES = ["in the morning", "at noon", "after supper", "on Sunday", "before sunrise", "during the storm"]
WHOM = ["child", "baker", "teacher", "sailor", "farmer", "painter", "doctor", "singer"]
# As Qwen's, and without generation markers.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def asked(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions with their answers, no two alike, each animal as often as the others."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        animal = [*SOUNDS][number % len(SOUNDS)]
        place, when, whom = chance.choice(PLACES), chance.choice(TIMES), chance.choice(WHOM)
        prompt = f"{seed}.{number}: A {whom} meets a {animal} in the {place} {when}. What does it say?"
        rows.append({"prompt": prompt, "completion": SOUNDS[animal]})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, base: Path | str, **sections: str) -> Path:
    """A recipe that learns the answers, with its rows where they are not there yet."""
    for name, count, seed in (("train", 64, 1), ("valid", 16, 2), ("test", 16, 3)):
        if not (folder / f"{name}.jsonl").exists():
            write_rows(folder / f"{name}.jsonl", asked(count, seed))
    keys = {
        "name": "pico",
        "base": str(base),
        "task": "{type: sft}",
        "data": "{train: train.jsonl, valid: valid.jsonl, test: test.jsonl}",
        "adapter": "{type: lora, r: 8}",
        "train": "{epochs: 2, batch_size: 8, learning_rate: 1e-2, seed: 7}",
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (keys | sections).items()), encoding="utf-8")
    return path


def carried_out(path: Path, out: Path, *, resume: bool = False) -> Path:
    """Runs a recipe, with the libraries' warnings silenced as the command line does; gives the run's folder."""
    from ftkit.console import Console
    from ftkit.pipeline import Request, run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(Request(path, out=out, resume=resume), Console(quiet=True, results=False)).folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """Of each step."""
    return [line["loss"] for line in lines(folder, "train.jsonl") if "loss" in line]


def spoil(monkeypatch: Any, method: str, change: Callable[[Path], None]) -> None:
    """Has the merged folder changed before the fresh process reads it, as a broken merge would leave it."""
    from ftkit.proof import FreshProcess

    honest = getattr(FreshProcess, method)

    def spoiled(self: FreshProcess, folder: Path, *arguments: Any, **options: Any) -> Any:
        change(folder)
        return honest(self, folder, *arguments, **options)

    monkeypatch.setattr(FreshProcess, method, spoiled)


def move_weights(folder: Path) -> None:
    """Some of the weights in a folder, by half."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.5
    save_file(weights, file, metadata={"format": "pt"})


def make_decoder(folder: Path, name: str) -> Path:
    """A decoder 64 wide with a byte-level tokenizer.

    llama: ChatML in its tokenizer, a start token; long: the same with more positions. gpt2: one special token, no template, tied embeddings. qwen2: ends
    turns with its end token, pads with another, no start token; more embeddings than tokens; in bfloat16. mamba: no
    attention.
    """
    import torch
    import transformers as t

    from ftkit.models.scratch import Scratch, build

    texts = [f"{row['prompt']} {row['completion']}" for row in asked(400, 9)]
    torch.manual_seed(0)
    if name in ("llama", "long", "mamba"):
        from ftkit.models.train_tokenizer import train_tokenizer

        tokenizer = train_tokenizer(iter(texts), vocab=384, max_length=512, masked=False)
        special = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
        if name != "mamba":
            positions = 96 if name == "llama" else 512
            model = build(
                Scratch(init="llama", layers=2, hidden=64, vocab=384, positions=positions, tied=False),
                tokenizer,
                seed=0,
            )
        else:
            shape = {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 1, "state_size": 4}
            model = t.MambaForCausalLM(t.MambaConfig(**shape, **special))
    elif name == "gpt2":
        tokenizer = _byte_level(texts, ["<|endoftext|>"], eos_token="<|endoftext|>")
        shape = {"vocab_size": len(tokenizer), "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 96}
        model = t.GPT2LMHeadModel(t.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    else:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        tokenizer = _byte_level(texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **names)
        tokenizer.chat_template = TEMPLATE
        shape = {"vocab_size": 448, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96}
        special = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**shape, **special, tie_word_embeddings=False)).to(torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)  # so that an adapter can make one token much likelier than another
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _byte_level(texts: list[str], special: list[str], **names: str) -> Any:
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, vocab_size=384, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(learned.to_str()),
        extra_special_tokens=special[1:2],
        model_max_length=96,
        **names,
    )
