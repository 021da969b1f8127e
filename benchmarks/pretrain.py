"""Continued pretraining: ftkit against the plain script on the same rows, in turn, both adapters scored alike.

    python benchmarks/pretrain.py                                       # tiny-lm on the documentation of some packages
    python benchmarks/pretrain.py --base FOLDER --train a.txt --test b.txt

Lines of the texts are the documents; longer ones are cut to what the model holds, as the plain script would drop the
rest. The base's special tokens are left out of them: to ftkit such a mark in a text is text, to the script it is the
token (WikiText has many an <unk>). Both train in float32, with a rate that falls from the first step on, as the script
does by default. Prints each run and the ratios, to be quoted with the machine and what else it was doing.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from beside import base_folder, machine, ours, plain, shown

PACKAGES = ("asyncio", "email", "logging", "multiprocessing", "unittest", "xml")
RECIPE = """\
name: benchmark
base: {base}
task: {{type: pretrain, packing: true, samples: 0}}
data: {{train: train.jsonl, test: test.jsonl, valid: 0%, clean: {{duplicates: keep, test_overlap: keep}}}}
adapter: {{type: lora, r: 16, alpha: 32}}
train: {{epochs: {epochs}, batch_size: 8, learning_rate: {rate}, warmup: 0, precision: float32, max_length: {length},
  seed: {seed}}}
merge: false
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", default="ftkit/tiny-lm")
    options.add_argument("--train", type=Path)
    options.add_argument("--test", type=Path)
    options.add_argument("--epochs", type=float, default=1)
    options.add_argument("--rate", type=float, default=2e-4)
    options.add_argument("--length", type=int, default=512)
    options.add_argument("--seeds", type=int, nargs="+", default=[42])
    given = options.parse_args()
    print(machine())
    base = base_folder(given.base)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = lines(given.train, given.test)
        for side, texts in (("train", train), ("test", test)):
            rows = [json.dumps({"text": text}) for text in within(base, texts, given.length)]
            (folder / f"{side}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        common = {"epochs": given.epochs, "rate": given.rate, "max-length": given.length}
        for seed in given.seeds:
            out = folder / f"plain-{seed}"
            theirs = plain("plain_pretrain.py", base, folder / "train.jsonl", out, {**common, "seed": seed})
            mine = ours(write_recipe(folder, base, given, seed), folder / f"ftkit-{seed}")
            print(shown(seed, theirs, mine, losses(folder, base, seed)), flush=True)


def lines(train: Path | None, test: Path | None) -> tuple[list[str], list[str]]:
    """Documents to train on and to score; every tenth of the packages' where no files are given."""
    if train and test:
        given, held_out = (
            [row for row in path.read_text("utf-8").splitlines() if row.strip()] for path in (train, test)
        )
        return given, held_out
    from ftkit.data.docstrings import read_docstrings
    from ftkit.data.section import Docstrings

    texts = [str(row.values["text"]) for row in read_docstrings(Docstrings(docstrings=PACKAGES))]
    return [text for at, text in enumerate(texts) if at % 10], texts[::10]


def within(base: Path, texts: list[str], length: int) -> Iterator[str]:
    """The texts without special tokens, cut so that start and end token still fit."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    for marked in texts:
        text = special.sub("", marked)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        kept = text if len(ids) <= length - 4 else tokenizer.decode(ids[: length - 4])
        if kept.strip():
            yield kept


def write_recipe(folder: Path, base: Path, given: argparse.Namespace, seed: int) -> Path:
    path = folder / f"{seed}.yaml"
    text = RECIPE.format(base=base, epochs=given.epochs, rate=given.rate, length=given.length, seed=seed)
    path.write_text(text, encoding="utf-8")
    return path


def losses(folder: Path, base: Path, seed: int) -> dict[str, float]:
    """Nats a token of base, plain adapter and ftkit's on the test rows, all in float32 by one function."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftkit.tasks.language import score
    from ftkit.tasks.tokens import start_token

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["text"] for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]
    start = start_token(tokenizer)
    ids = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in rows]
    tokens = sum(len(row) - 1 for row in ids)
    found = {}
    for name, adapter in (("base", None), ("plain", f"plain-{seed}"), ("ftkit", f"ftkit-{seed}/adapter")):
        model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        if adapter:
            model = PeftModel.from_pretrained(model, folder / adapter)
        found[name] = score(model.eval(), ids, pad_token_id=tokenizer.eos_token_id).nll.sum() / tokens
    return found


if __name__ == "__main__":
    main()
