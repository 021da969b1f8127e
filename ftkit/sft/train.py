"""From encoded conversations to a trained adapter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.console import Console
from ftkit.errors import Problem, RecipeError
from ftkit.evals.section import GENERATED
from ftkit.models.base import Loaded, inference_mode, load_adaptable, with_new_adapter
from ftkit.models.fingerprint import write_fingerprint
from ftkit.models.hardware import Machine, training_dtype
from ftkit.plan import common
from ftkit.plan.chat import AnsweredSide, ChatPlan
from ftkit.rundir import RunDir
from ftkit.sft.exam import Exam
from ftkit.tasks.answers import AnswerWindows
from ftkit.tasks.batches import trained_at_once
from ftkit.tasks.language import Collate, keeps_apart, sharing
from ftkit.tasks.templates import save_chat
from ftkit.train import Job, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_base(plan: ChatPlan, *, seed: int, quantize: bool, machine: Machine) -> Loaded:
    """The plan's base on the machine's device, with room for the tokens that the template adds."""
    return load_adaptable(
        plan.files,
        "causal",
        plan.adapter,
        pad_token_id=plan.chat.pad_token_id,
        precision=plan.recipe.train.precision,
        machine=machine,
        seed=seed,
        trust_remote_code=plan.base.trust_remote_code,
        quantize=quantize,
        vocab=len(plan.chat.tokenizer),
    )


def check_packing(plan: ChatPlan, machine: Machine) -> None:
    """Raises RecipeError where rows in one window would see each other: it depends on the model's attention."""
    model = load_base(plan, seed=plan.recipe.train.seed, quantize=True, machine=machine).model
    inference_mode(model)
    answers = plan.sides["train"].answers
    first, second = (answers[row].ids[: plan.max_length // 2] for row in (0, len(answers) - 1))
    if not keeps_apart(model, first, second):
        where, key = common.place(plan.loaded, "task", "packing")
        message = f"the attention of {plan.files.name} lets packed rows see each other. Write false."
        raise RecipeError.in_file(str(plan.loaded.path), [Problem(where, key, message)])


def train_run(plan: ChatPlan, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
    """Trains with ``seed`` and leaves ``adapter/`` (with the tokenizer and its template) and train.json in the folder.

    Goes on from the last checkpoint in the folder. Raises as ``train.train`` does.
    """
    adapter, side = plan.adapter, plan.sides["train"]

    def build() -> PreTrainedModel:
        loaded = load_base(plan, seed=seed, quantize=True, machine=machine)
        return with_new_adapter(loaded, adapter, new_tokens=plan.chat.added_ids)

    def complete(trained: Path) -> None:
        save_chat(plan.chat, plan.files, trained)
        write_fingerprint(trained, plan.files, adapter)

    dtype = training_dtype(plan.recipe.train.precision, machine, plan.width)
    windows = AnswerWindows(side.answers, packed=plan.task.packing, max_length=plan.max_length)
    job = Job(
        build=build,
        adapted=True,
        rows=windows,
        lengths=windows.lengths,
        places=lambda window: ", ".join(side.rows[row].where for row in windows.members(window)),
        mixed=True,
        collate=lambda model: sharing(
            Collate(plan.chat.pad_token_id, plan.limit), model, windows, windows.lengths, dtype
        ),
        loss=None,
        validate=validator(plan),
        best_by=plan.best_by,
        lowest=plan.lowest,
        section=plan.recipe.train,
        dtype=dtype,
        tokenizer=plan.chat.tokenizer,
        lr_ratio=adapter.lr_ratio,
        tokens_at_once=trained_at_once(machine, plan.width),
        converted=adapter.type == "lora" and adapter.init == "pissa",
        complete=complete,
    )
    train(job, folder, seed=seed, machine=machine, console=console)


def exam_on(plan: ChatPlan, side: AnsweredSide) -> Exam:
    """How every model of the plan is asked about a side."""
    return Exam(plan.chat, side, plan.limit, plan.max_new_tokens, plan.recipe.eval, plan.recipe.train.seed)


def validator(plan: ChatPlan) -> Callable[[PreTrainedModel], dict[str, float]] | None:
    """A function that scores the validation rows as the test rows are scored; None without validation rows.

    Loss in nats a token of the answers, and perplexity; a metric of generated answers only where it is chosen by.
    """
    if not len(plan.sides["valid"]):
        return None
    exam = exam_on(plan, plan.sides["valid"])
    chosen = plan.best_by

    def validate(model: PreTrainedModel) -> dict[str, float]:
        inference_mode(model)
        scores = exam.score(model)
        loss = float(scores.nll.sum() / exam.tokens)
        figures = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
        if chosen != "loss" and chosen not in figures:
            generated = exam.answer(model) if chosen in GENERATED else None
            found = exam.result(scores, generated, metrics=(chosen,), resamples=0).scored.scores.metrics
            figures |= {name: value for name, value in found.items() if value is not None}
        return figures

    return validate
