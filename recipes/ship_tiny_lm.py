"""Puts a run of recipes/tiny-lm.yaml into the package as ftkit/tiny-lm.

    python recipes/ship_tiny_lm.py runs/tiny-lm/latest

Writes the weights in bfloat16, the tokenizer, the recipe, what training took and a card; measures what rounding the
weights costs on the test windows; prints the digest that ftkit/models/locate.py must hold.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ftkit.files import sha256_file, write_json, write_text, writing_folder
from ftkit.tasks.language import score

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "ftkit" / "tiny_lm"
PROMPTS = ("Return the", "The module", "def read(", "class Error", "If the file")
CARD = """\
---
library_name: transformers
license: psf-2.0
pipeline_tag: text-generation
language: en
---

# ftkit/tiny-lm

A language model of {parameters:,} parameters that ftkit ships, so that its recipes run with no network. It is made to
try things on: small enough for any machine, and of no other use.

- Architecture: Llama, {layers} layers, {hidden} wide, {vocab:,} tokens (byte-level BPE), {positions} positions.
- Trained from scratch on the documentation of Python's standard library (docstrings and help topics of Python
  {python}): {documents:,} documents, {tokens:,} tokens, {epochs:g} epochs, seed {seed}, {minutes:.0f} minutes on
  {machine}, on {date}.
- Validation: loss {valid_loss:.4f}, perplexity {valid:.2f}. Test: perplexity {test:.2f} (95% {low:.2f} to {high:.2f}),
  {bits:.3f} bits a byte, on {windows} windows of documents that training never saw. As shipped, in bfloat16:
  {shipped:.2f}.
- Chat template: ChatML (`<|im_start|>`, `<|im_end|>`). It has not been trained to chat; `<|im_end|>` ends a document.
- Made by `ftkit run recipes/tiny-lm.yaml`; recipe.yaml and train.json stand beside this file.

What it writes looks like documentation and says nothing true. Greedy, from a few starts:

{samples}
"""


def main(run: Path) -> None:
    plan, train, report = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("plan", "train", "eval"))
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with writing_folder(TARGET) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copy(run / "recipe.yaml", folder / "recipe.yaml")
        write_json(folder / "train.json", train)
        rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        write_text(folder / "README.md", card(run, plan, train, report, rounded, tokenizer))
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"{TARGET}: {size:,} bytes, model.safetensors sha256 {sha256_file(TARGET / 'model.safetensors')}")


def card(run: Path, plan: dict, train: dict, report: dict, model: object, tokenizer: object) -> str:
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
    first = [row for row in rows if row["id"].endswith("#1")]
    ids = [[tokenizer.bos_token_id, *tokenizer(row["input"], add_special_tokens=False)["input_ids"]] for row in first]
    nll = score(model, ids, pad_token_id=tokenizer.pad_token_id).nll.sum() / sum(len(row) - 1 for row in ids)
    before = sum(row["nll"] for row in first) / sum(row["tokens"] for row in first)
    scores, init, data = report["models"]["model"], plan["base"]["init"], plan["data"]
    low, high = scores["ci95"]["perplexity"]
    log = [json.loads(line) for line in (run / "train.jsonl").read_text("utf-8").splitlines()]
    valid = min(line["valid"]["loss"] for line in log if "valid" in line)
    return CARD.format(
        parameters=plan["base"]["parameters"],
        **{name: init[name] for name in ("layers", "hidden", "vocab", "positions")},
        python=plan["versions"]["python"],
        documents=data["splits"]["train"],
        tokens=data["tokens"]["train"],
        epochs=train["epochs"],
        seed=plan["seed"],
        minutes=train["seconds"] / 60,
        machine=f"{plan['machine']['threads']} cores of an {plan['machine']['cpu']}",
        date=plan["created"][:10],
        valid_loss=valid,
        valid=math.exp(valid),
        test=scores["metrics"]["perplexity"],
        low=low,
        high=high,
        bits=scores["metrics"]["bits_per_byte"],
        windows=report["n"],
        shipped=scores["metrics"]["perplexity"] * math.exp(nll - before),
        samples="\n".join(f"- {prompt!r} → {greedy(model, tokenizer, prompt)!r}" for prompt in PROMPTS),
    )


def greedy(model: object, tokenizer: object, prompt: str) -> str:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
