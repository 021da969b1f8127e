"""Answers to test rows: ftkit's batches against one model.generate call a row, same model, same tokens.

    python benchmarks/generate.py                                       # tiny-lm on the shipped translations
    python benchmarks/generate.py --base FOLDER --train a.jsonl --test b.jsonl --new-tokens 64 --rows 100
    python benchmarks/generate.py --adapter runs/NAME/latest/adapter

Greedy, in float32, where a batch gives the same tokens as a single row; any difference is an error. A base that never
learned to stop answers every row with --new-tokens tokens; name an adapter for answers of different lengths. Prints the
times and their ratio, to be quoted with the machine and what else it was doing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beside import base_folder, machine
from sft import planned, rows_options, write_recipe

if TYPE_CHECKING:
    from ftkit.plan.chat import ChatPlan


def main() -> None:
    options = rows_options(__doc__)
    options.add_argument("--adapter", type=Path)
    options.add_argument("--new-tokens", type=int, default=48)
    options.add_argument("--rows", type=int, default=100)
    given = options.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        plan = planned(write_recipe(Path(name) / "recipe.yaml", base_folder(given.base), given))
    answers = plan.sides["test"].answers
    prompts = [answers.prompt(row) for row in range(min(given.rows, len(answers)))]
    model = load(plan, given.adapter)
    for answer in (one_by_one, batched):  # what is done once is done before the clock starts
        answer(model, plan, prompts[:2], given.new_tokens)
    theirs, plain_seconds = timed(one_by_one, model, plan, prompts, given.new_tokens)
    mine, our_seconds = timed(batched, model, plan, prompts, given.new_tokens)
    different = sum(left != right for left, right in zip(theirs, mine, strict=True))
    if different:
        raise SystemExit(f"{different} of {len(prompts)} answers differ")
    made = sum(map(len, mine))
    print(
        f"{len(prompts):,} answers of {made / len(prompts):.1f} tokens, all equal: one by one {plain_seconds:.1f} s, ",
        end="",
    )
    print(f"ftkit {our_seconds:.1f} s; one by one / ftkit = {plain_seconds / our_seconds:.2f}")


def load(plan: ChatPlan, adapter: Path | None) -> Any:
    """The model in float32, without settings of its own for generation, so that both ways are greedy."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(plan.files.folder, dtype="float32")
    model.generation_config = GenerationConfig()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def timed(answer: Any, *given: Any) -> tuple[list[list[int]], float]:
    started = time.perf_counter()
    found = answer(*given)
    return found, time.perf_counter() - started


def one_by_one(model: Any, plan: ChatPlan, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """The answers, without their stop tokens, as a loop over the rows makes them."""
    import torch

    stops = list(plan.chat.stop_ids)
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room(plan, prompt, new_tokens),
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=plan.chat.pad_token_id,
            )
        answer = made[0, len(prompt) :].tolist()
        found.append(answer[:-1] if answer[-1] in stops else answer)
    return found


def batched(model: Any, plan: ChatPlan, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    from ftkit.tasks.generation import generate

    found = generate(
        model,
        prompts,
        max_new_tokens=new_tokens,
        limit=plan.limit,
        stop_ids=plan.chat.stop_ids,
        pad_token_id=plan.chat.pad_token_id,
    )
    return [answer.ids for answer in found]


def room(plan: ChatPlan, prompt: Sequence[int], new_tokens: int) -> int:
    return new_tokens if plan.limit is None else min(new_tokens, plan.limit - len(prompt))


if __name__ == "__main__":
    main()
