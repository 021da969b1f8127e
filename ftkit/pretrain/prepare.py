"""What training and evaluation of a language model share: the tokenizer, the tokens of the corpus, and its windows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import MachineError, Problem, RecipeError
from ftkit.files import sha256_text
from ftkit.models.base import Loaded, inference_mode, load_adaptable, load_tokenizer
from ftkit.models.hardware import Machine
from ftkit.models.scratch import Scratch, build
from ftkit.models.train_tokenizer import train_tokenizer
from ftkit.plan import common
from ftkit.plan.text import TextPlan
from ftkit.records import Decision
from ftkit.tasks.heldout import HeldOut, held_out, layout
from ftkit.tasks.language import keeps_apart
from ftkit.tasks.masked import Masking, masking
from ftkit.tasks.tokens import Tokens, tokenise
from ftkit.tasks.windows import Pieces, Windows, repeated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = 24  # tokens of each of the two documents on which it is tried whether packing keeps them apart


@dataclass(frozen=True, slots=True)
class Prepared:
    """The tokenizer and all that is read with it. ``masking``: None for the causal objective."""

    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    valid: HeldOut
    test: HeldOut
    train_tokens: Tokens
    packing: bool
    masking: Masking | None
    decisions: tuple[Decision, ...]

    @property
    def pad_token_id(self) -> int:
        return int(str(self.tokenizer.pad_token_id))


def prepare(plan: TextPlan, machine: Machine, console: Console) -> Prepared:
    """Loads or trains the tokenizer, makes the tokens, and cuts and packs the windows.

    Raises RecipeError where the recipe asks for packing and the model cannot keep documents apart, DataError where a
    side has nothing to predict, MachineError for a base that is not to be had.
    """
    tokenizer = _tokenizer(plan, console)
    masked = plan.task.objective == "masked"
    if masked and tokenizer.mask_token_id is None:
        fix = "Name an encoder, or write objective: causal."
        raise MachineError(f"the tokenizer of {_name(plan)} has no mask token", [Problem("", "base", fix)])
    found: dict[str, Tokens] = {}
    with console.progress("tokenising", sum(map(len, plan.corpus.named().values()))) as advance:
        for side, documents in plan.corpus.named().items():
            found[side] = tokenise(documents, tokenizer, advance=advance)
    packing, decisions = _packing(plan, tokenizer, machine)
    objective, length = plan.task.objective, plan.max_length
    pieces = Pieces(found["train"], layout(tokenizer, objective, length, end=True))
    chosen = None
    if plan.recipe.data.weights is not None:
        sources = plan.corpus.train.table["source"][pieces.document]
        chosen = repeated(sources, pieces.length, plan.recipe.data.weights, seed=plan.recipe.train.seed)
    windows = Windows(pieces, packed=packing, chosen=chosen)
    task, seed = plan.task, plan.recipe.train.seed
    hiding = masking(tokenizer, share=task.mask_share, whole_word=task.whole_word) if masked else None
    return Prepared(
        tokenizer=tokenizer,
        windows=windows,
        valid=held_out(plan.corpus.valid, found["valid"], tokenizer, objective, length, masking=hiding, seed=seed),
        test=held_out(plan.corpus.test, found["test"], tokenizer, objective, length, masking=hiding, seed=seed),
        train_tokens=found["train"],
        packing=packing,
        masking=hiding,
        decisions=decisions,
    )


def facts(prepared: Prepared) -> dict[str, Any]:
    """What plan.json tells of the tokens, under ``data``."""
    return {
        "tokens": {
            "train": len(prepared.train_tokens.ids),
            "valid": len(prepared.valid.pieces.tokens.ids),
            "test": len(prepared.test.pieces.tokens.ids),
        },
        "windows": {"train": len(prepared.windows), "valid": len(prepared.valid), "test": len(prepared.test)},
        "packing": prepared.packing,
    }


def load_base(plan: TextPlan, *, seed: int, quantize: bool, machine: Machine, tokenizer: Any) -> Loaded:
    """The plan's base as a language model, or the model from scratch with its first weights in float32."""
    if isinstance(plan.base, Scratch):
        loaded = Loaded(build(plan.base, tokenizer, seed=seed), (), None, None)
        loaded.model.to(machine.device)
        return loaded
    assert plan.files is not None
    assert plan.adapter is not None  # the recipe's rules see to both
    return load_adaptable(
        plan.files,
        plan.task.objective,
        plan.adapter,
        pad_token_id=int(str(tokenizer.pad_token_id)),
        precision=plan.recipe.train.precision,
        machine=machine,
        seed=seed,
        trust_remote_code=plan.base.trust_remote_code,
        quantize=quantize,
    )


def _name(plan: TextPlan) -> str:
    return plan.files.name if plan.files else "the model from scratch"


def _tokenizer(plan: TextPlan, console: Console) -> PreTrainedTokenizerBase:
    if isinstance(plan.base, Scratch):
        console.stage(f"training a tokenizer of {plan.base.vocab:,} tokens")
        masked = plan.task.objective == "masked"
        return train_tokenizer(
            iter(plan.corpus.train), vocab=plan.base.vocab, max_length=plan.max_length, masked=masked
        )
    assert plan.files is not None
    return load_tokenizer(plan.files, max_length=plan.max_length, trust_remote_code=plan.base.trust_remote_code)


def _packing(plan: TextPlan, tokenizer: PreTrainedTokenizerBase, machine: Machine) -> tuple[bool, tuple[Decision, ...]]:
    """Whether documents are packed; what the recipe asks for is refused where the model mixes them."""
    wanted = plan.task.packing
    if plan.task.objective == "masked":
        return False, (Decision("task.packing", False, "left out; the masked objective looks both ways"),)
    if wanted is False:
        return False, ()
    loaded = load_base(plan, seed=plan.recipe.train.seed, quantize=True, machine=machine, tokenizer=tokenizer)
    inference_mode(loaded.model)
    chance = random.Random(sha256_text(plan.loaded.text))
    length = min(_PROBE, plan.max_length // 2)
    first, second = ([chance.randrange(len(tokenizer)) for _ in range(length)] for _ in range(2))
    apart = keeps_apart(loaded.model, first, second)
    if wanted and not apart:
        where, key = common.place(plan.loaded, "task", "packing")
        message = f"the attention of {_name(plan)} lets packed texts see each other. Write false."
        raise RecipeError.in_file(str(plan.loaded.path), [Problem(where, key, message)])
    why = (
        "packed texts get the logits that they get alone" if apart else "this model's attention would mix packed texts"
    )
    return apart, (() if wanted else (Decision("task.packing", apart, f"left out; tried: {why}"),))
