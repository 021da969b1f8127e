"""What training, evaluation and merge of a classifier share: how it reads a text, and its base."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from ftkit.classify.reader import HeadReader, Reader, WordsReader, words_reader
from ftkit.data.rows import data_error
from ftkit.errors import DataError, Problem
from ftkit.models.base import Loaded, load_adaptable, load_classifier, load_tokenizer
from ftkit.models.hardware import Machine, training_dtype
from ftkit.models.modules import named
from ftkit.plan.labelled import LabelledPlan
from ftkit.tasks.templates import load_chat


def reader_of(plan: LabelledPlan) -> Reader:
    """How the plan's model reads. Raises RecipeError for a chat template that cannot be trained with."""
    trusted, words = plan.base.trust_remote_code, plan.task.words
    if words is None:
        return HeadReader(
            load_tokenizer(plan.files, max_length=plan.max_length, trust_remote_code=trusted), plan.max_length
        )
    limit = plan.preflight.positions
    folder = plan.loaded.path.resolve().parent
    key = "task.words.template"
    chat = load_chat(plan.files, words.template, folder, max_length=limit, trust_remote_code=trusted, key=key)
    return words_reader(chat, words.prompt, words.said(plan.labels), max_length=plan.max_length, limit=limit)


def check_texts(plan: LabelledPlan, reader: WordsReader) -> None:
    """Raises DataError, one for all sides, for rows that the decoder cannot read: before anything is trained."""
    problems: list[Problem] = []
    for example in chain.from_iterable(plan.splits.named().values()):
        try:
            reader.rows([example.text])
        except DataError as error:
            problems += [replace(problem, subject=example.where) for problem in error.problems]
    if problems:
        raise data_error("the data", problems)


def load_base(plan: LabelledPlan, reader: Reader, *, seed: int, quantize: bool, machine: Machine) -> Loaded:
    """The plan's base, with a fresh head where it has one; quantised as the adapter asks where ``quantize``."""
    if isinstance(reader, WordsReader):
        return load_adaptable(
            plan.files,
            "causal",
            plan.adapter,
            pad_token_id=reader.chat.pad_token_id,
            precision=plan.recipe.train.precision,
            machine=machine,
            seed=seed,
            trust_remote_code=plan.base.trust_remote_code,
            quantize=quantize,
            vocab=len(reader.tokenizer),
        )
    quantize = quantize and plan.adapter.quantize is not None
    loaded = _with_head(plan, reader, seed=seed, quantize=quantize, machine=machine)
    loaded.model.to(machine.device)
    return loaded


def _with_head(plan: LabelledPlan, reader: Reader, *, seed: int, quantize: bool, machine: Machine) -> Loaded:
    import torch

    def load(skip: tuple[str, ...] | None) -> Loaded:
        return load_classifier(
            plan.files,
            plan.labels,
            multi_label=plan.task.multi_label,
            pad_token_id=int(str(reader.tokenizer.pad_token_id)),
            dtype=torch.float32,
            seed=seed,
            trust_remote_code=plan.base.trust_remote_code,
            skip_quantising=skip,
            compute=training_dtype(plan.recipe.train.precision, machine, plan.width),
        )

    classifier = load(None)
    if not quantize:
        return classifier
    # The head is known from a first, unquantised load; 4-bit weights cannot be told apart afterwards.
    return load((*classifier.head, *named(classifier.model, plan.adapter.modules_to_save or ())))


def labels_document(plan: LabelledPlan, reader: Reader, thresholds: tuple[float, ...] = ()) -> dict[str, Any]:
    """labels.json: what a program needs to read the scores of the model beside it."""
    document = {
        "labels": list(plan.labels),
        "multi_label": plan.task.multi_label,
        "thresholds": list(thresholds),
        "max_length": reader.max_length,
    }
    if isinstance(reader, WordsReader):
        document["words"] = {"prompt": reader.prompt, "said": list(reader.said), "limit": reader.limit}
    return document
