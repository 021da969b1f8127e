"""From a plan to a trained adapter: encodes the rows and puts base, adapter, loss and validation together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftkit.classify.evaluate import validator
from ftkit.classify.prepare import check_texts, labels_document, load_base
from ftkit.classify.reader import Reader, WordsReader
from ftkit.console import Console
from ftkit.files import write_json
from ftkit.models.base import with_new_adapter
from ftkit.models.fingerprint import write_fingerprint
from ftkit.models.hardware import Machine, training_dtype
from ftkit.plan.labelled import LabelledPlan
from ftkit.records import Decision
from ftkit.rundir import RunDir
from ftkit.tasks import classify, language
from ftkit.tasks.answers import Answers, AnswerWindows
from ftkit.tasks.batches import Encoded, Rows, trained_at_once
from ftkit.tasks.certificate import certificate
from ftkit.tasks.templates import save_chat
from ftkit.train import Job, train

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class _Rows(NamedTuple):
    """What one of the two ways to answer trains on."""

    rows: Rows
    lengths: Sequence[int]
    collate: Callable[[PreTrainedModel], Callable[[Sequence[Encoded]], Any]]
    loss: Callable[..., Any] | None


def train_run(
    plan: LabelledPlan, reader: Reader, folder: RunDir, *, seed: int, machine: Machine, console: Console
) -> None:
    """Trains with ``seed`` and leaves ``adapter/`` (with tokenizer and labels.json) and train.json in the folder.

    Goes on from the last checkpoint in the folder. The rows are those of the plan whatever the seed. Raises as
    ``train.train`` does.
    """
    adapter, dtype = plan.adapter, training_dtype(plan.recipe.train.precision, machine, plan.width)
    rows, lengths, collate, loss = (
        _answered(plan, reader, dtype) if isinstance(reader, WordsReader) else _labelled(plan, reader)
    )

    def build() -> PreTrainedModel:
        base = load_base(plan, reader, seed=seed, quantize=True, machine=machine)
        added = reader.chat.added_ids if isinstance(reader, WordsReader) else ()
        return with_new_adapter(base, adapter, new_tokens=added)

    def complete(trained: Path) -> None:
        if isinstance(reader, WordsReader):
            save_chat(reader.chat, plan.files, trained)
        else:
            reader.tokenizer.save_pretrained(trained)
        write_fingerprint(trained, plan.files, adapter)
        write_json(trained / "labels.json", labels_document(plan, reader))

    job = Job(
        build=build,
        adapted=True,
        rows=rows,
        lengths=lengths,
        places=lambda row: plan.splits.train[row].where,
        mixed=isinstance(reader, WordsReader),
        collate=collate,
        loss=loss,
        validate=validator(plan, reader),
        best_by=plan.best_by,
        lowest=plan.lowest,
        section=plan.recipe.train,
        dtype=dtype,
        tokenizer=reader.tokenizer,
        lr_ratio=adapter.lr_ratio,
        tokens_at_once=trained_at_once(machine, plan.width) if isinstance(reader, WordsReader) else None,
        converted=adapter.type == "lora" and adapter.init == "pissa",
        complete=complete,
    )
    train(job, folder, seed=seed, machine=machine, console=console)


def _labelled(plan: LabelledPlan, reader: Reader) -> _Rows:
    """Texts with the numbers of their labels, for a head."""
    task = plan.task
    ids = reader.rows([example.text for example in plan.splits.train])
    goals = classify.targets(plan.splits.train, plan.labels, multi_label=task.multi_label).tolist()
    weights = classify.weights_of(
        task.class_weights, plan.labels, plan.preflight.counts["train"], multi_label=task.multi_label
    )
    collate = classify.Collate(int(str(reader.tokenizer.pad_token_id)), task.multi_label)
    loss = classify.loss_function(multi_label=task.multi_label, weights=weights, label_smoothing=task.label_smoothing)
    rows = [{"input_ids": row, "labels": goal} for row, goal in zip(ids, goals, strict=True)]
    return _Rows(rows, [len(row) for row in ids], lambda _: collate, loss)


def _answered(plan: LabelledPlan, reader: WordsReader, dtype: torch.dtype) -> _Rows:
    """Texts in their prompts with the words for their labels, which alone are learned."""
    windows = AnswerWindows(answers_of(plan, reader), packed=False, max_length=plan.max_length)
    alone = language.Collate(reader.chat.pad_token_id, reader.limit)
    return _Rows(
        windows, windows.lengths, lambda model: language.sharing(alone, model, windows, windows.lengths, dtype), None
    )


def answers_of(plan: LabelledPlan, reader: WordsReader) -> Answers:
    """The train rows as a decoder learns them."""
    numbers = {label: number for number, label in enumerate(plan.labels)}
    return Answers(reader.answered(example.text, numbers[example.labels[0]]) for example in plan.splits.train)


def words_facts(plan: LabelledPlan, reader: WordsReader) -> dict[str, Any]:
    """What plan.json tells of a decoder's template, and of what is learned of the rows, under ``data``.

    Raises DataError for rows of any side that the decoder cannot read.
    """
    check_texts(plan, reader)
    return {
        "template": reader.chat.document(),
        "mask": asdict(certificate(reader.chat, answers_of(plan, reader), plan.splits.train)),
        "words": dict(zip(plan.labels, reader.said, strict=True)),
    }


def decisions(plan: LabelledPlan, reader: WordsReader) -> Iterator[Decision]:
    """What the recipe left open, or asked for more than there is of, and only a decoder's reader can tell."""
    if reader.chat.decision:
        yield reader.chat.decision
    if reader.max_length < plan.max_length:
        why = f"tokens of a text; prompt and answer take the rest of the base's {reader.limit}"
        yield Decision("train.max_length", reader.max_length, why)
