"""Instruction tuning: ftkit against the plain script on the same tokens, in turn, both adapters scored alike.

    python benchmarks/sft.py                                            # tiny-lm on the shipped translations
    python benchmarks/sft.py --base FOLDER --train a.jsonl --test b.jsonl --qlora

The rows are rendered once, by the base's own chat template; both train on the last answer and its stop token, with a
rate that falls from the first step on, as the script does by default. What the template writes after the stop token (a
line end) is in ftkit's rows only, untrained. Each trains in the number format that it takes by itself: the script in
float32 on a processor, ftkit in bfloat16 where the processor multiplies in it; --precision names one for both. Prints
each run and the ratios, to be quoted with the machine and what else it was doing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beside import HERE, base_folder, machine, ours, plain, shown

if TYPE_CHECKING:
    from ftkit.plan.chat import ChatPlan

DATA = HERE.parent / "recipes" / "data" / "translation"
TRANSLATE = ("Translate into German: {english}", "german")
RECIPE = """\
name: benchmark
base: {base}
task: {{type: sft, train_on: last_answer{prompt}}}
data: {{train: {train}, test: {test}, valid: 0%, max_leakage: 99%{columns}}}
adapter: {{type: lora, r: {rank}, alpha: {alpha}{quantize}}}
train: {{epochs: {epochs}, batch_size: 8, learning_rate: {rate}, warmup: 0, precision: {precision},
  max_length: {length}, seed: {seed}}}
eval: {{metrics: [perplexity]}}
merge: false
"""


def main() -> None:
    options = rows_options(__doc__)
    options.add_argument("--epochs", type=float, default=1)
    options.add_argument("--rate", type=float, default=2e-4)
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--seeds", type=int, nargs="+", default=[42])
    options.add_argument("--qlora", action="store_true", help="the base in 4 bits, for both")
    options.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    given = options.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = base_folder(given.base)
        chosen = {"epochs": given.epochs, "rate": given.rate, "rank": given.rank, "precision": given.precision}
        recipes = {
            seed: write_recipe(folder / f"{seed}.yaml", base, given, qlora=given.qlora, seed=seed, **chosen)
            for seed in given.seeds
        }
        plan = planned(recipes[given.seeds[0]])
        rows = write_rendered(plan, folder / "rendered.jsonl")
        print(f"{rows:,} train rows, {len(plan.sides['test']):,} test rows, {given.epochs:g} epochs; {plan.summary}")
        common = {**chosen, "max-length": given.max_length, "stop": stop(plan)}
        common["qlora"] = "yes" if given.qlora else "no"
        for seed, recipe in recipes.items():
            adapters = {"plain": folder / f"plain-{seed}", "ftkit": folder / f"ftkit-{seed}" / "adapter"}
            theirs = plain("plain_sft.py", base, folder / "rendered.jsonl", adapters["plain"], common | {"seed": seed})
            mine = ours(recipe, adapters["ftkit"].parent)
            print(shown(seed, theirs, mine, losses(plan, adapters, qlora=given.qlora)), flush=True)


def rows_options(about: str | None) -> argparse.ArgumentParser:
    """The options that say which rows there are and which base reads them."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", default="ftkit/tiny-lm")
    options.add_argument("--train", type=Path)
    options.add_argument("--test", type=Path)
    options.add_argument("--prompt", help="what the user says, with {COLUMN}; left out: columns found by name")
    options.add_argument("--answer", help="the column with the answer")
    options.add_argument("--max-length", type=int, default=512)
    return options


def write_recipe(
    path: Path,
    base: Path,
    given: argparse.Namespace,
    *,
    epochs: float = 1,
    rate: float = 2e-4,
    rank: int = 16,
    precision: str = "auto",
    qlora: bool = False,
    seed: int = 42,
) -> Path:
    """The recipe of one run; where no files are given, of the shipped translations."""
    prompt, answer = given.prompt, given.answer
    if not (given.train and given.test):
        prompt, answer = TRANSLATE
    text = RECIPE.format(
        base=json.dumps(str(base)),
        prompt=f", prompt: {json.dumps(prompt)}" if prompt else "",
        train=json.dumps(str((given.train or DATA / "train.tsv").resolve())),
        test=json.dumps(str((given.test or DATA / "test.tsv").resolve())),
        columns=f", columns: {{completion: {json.dumps(answer)}}}" if answer else "",
        rank=rank,
        alpha=2 * rank,
        quantize=", quantize: nf4" if qlora else "",
        epochs=epochs,
        rate=rate,
        precision=precision,
        length=given.max_length,
        seed=seed,
    )
    path.write_text(text, encoding="utf-8")
    return path


def planned(recipe: Path) -> ChatPlan:
    """The rows of a recipe as ftkit encodes them."""
    from ftkit.plan.chat import plan_chat
    from ftkit.recipe.load import load

    plan = plan_chat(load(recipe), weights=True)
    if plan.chat.added:
        raise SystemExit(f"{plan.files.name} has no chat template of its own, so the plain script could not read it")
    return plan


def stop(plan: ChatPlan) -> str:
    """The token that ends an answer."""
    return str(plan.chat.tokenizer.convert_ids_to_tokens(plan.chat.stop_ids[0]))


def write_rendered(plan: ChatPlan, path: Path) -> int:
    """Train rows as prompt and completion in text, up to the stop token; how many.

    TRL tokenises the text again: rows that would become other tokens end the comparison.
    """
    tokenizer = plan.chat.tokenizer
    begun = tokenizer("")["input_ids"]  # what the tokenizer writes by itself before a text
    lines = []
    for row, answered in zip(plan.sides["train"].rows, plan.sides["train"].answers, strict=True):
        ids = answered.ids[: answered.end + 1]
        first = len(begun) if begun and ids[: len(begun)] == begun else 0
        prompt = tokenizer.decode(ids[first : answered.answer], clean_up_tokenization_spaces=False)
        completion = tokenizer.decode(ids[answered.answer :], clean_up_tokenization_spaces=False)
        if (
            tokenizer(prompt + completion)["input_ids"] != ids
            or tokenizer(prompt)["input_ids"] != ids[: answered.answer]
        ):
            raise SystemExit(f"{row.where}: its text does not become the same tokens again")
        lines.append(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def losses(plan: ChatPlan, adapters: dict[str, Path], *, qlora: bool) -> dict[str, float]:
    """Nats a token of the test answers, stop tokens included, of the base and the adapters, by one function.

    In float32; for QLoRA on the base in 4 bits, as both were trained.
    """
    import torch
    from peft import PeftModel

    from ftkit.models.base import load_language_model
    from ftkit.tasks.language import score
    from ftkit.tasks.windows import IGNORED

    rows = list(plan.sides["test"].answers)
    labels = [row.labels for row in rows]
    tokens = sum(label != IGNORED for row in labels for label in row)
    pad = plan.chat.pad_token_id
    found = {}
    for name in ("base", *adapters):
        loaded = load_language_model(
            plan.files, "causal", pad_token_id=pad, dtype=torch.float32, seed=0, quantize=qlora
        )
        model: Any = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        if name in adapters:
            model = PeftModel.from_pretrained(model, adapters[name])
        scores = score(model.eval(), [row.ids for row in rows], pad_token_id=pad, labels=labels)
        found[name] = float(scores.nll.sum()) / tokens
    return found


if __name__ == "__main__":
    main()
