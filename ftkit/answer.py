"""Answers prompts with the model that a run has taught to, in constant memory, as its evaluation let it answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem
from ftkit.models.base import Loaded
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.records import Prompt
from ftkit.tasks.batches import chunks
from ftkit.tasks.chat import Chat, Unfit
from ftkit.tasks.generation import generate
from ftkit.tasks.templates import load_chat
from ftkit.trained import Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 64  # prompts


@dataclass(frozen=True, slots=True)
class Answerer:
    """A loaded model with its chat template. ``limit``: its positions, None where there is no limit."""

    model: PreTrainedModel
    chat: Chat
    limit: int | None
    max_new_tokens: int

    def predict(self, prompts: Iterable[Prompt]) -> Iterator[dict[str, Any]]:
        """One answer a prompt, in order, greedy: ``prediction``, and whether it ``ended`` by itself.

        Raises DataError for a prompt that leaves no room for an answer, or that holds a mark of the template.
        """
        for chunk in chunks(prompts, _AT_ONCE):
            found = generate(
                self.model,
                [self._ids(prompt) for prompt in chunk],
                max_new_tokens=self.max_new_tokens,
                limit=self.limit,
                stop_ids=self.chat.stop_ids,
                pad_token_id=self.chat.pad_token_id,
            )
            for prompt, answer in zip(chunk, found, strict=True):
                yield {"input": prompt.text, "prediction": self.chat.said(answer.ids), "ended": answer.ended}

    def _ids(self, prompt: Prompt) -> list[int]:
        try:
            ids = self.chat.prompt(prompt.turns, prompt.tools)
        except Unfit as unfit:
            raise DataError("a prompt cannot be answered", [Problem(prompt.where, "", str(unfit))]) from unfit
        if self.limit is not None and len(ids) >= self.limit:
            fix = f"{len(ids):,} tokens, and the model holds {self.limit:,} with the answer. Shorten it."
            raise DataError("a prompt is too long", [Problem(prompt.where, "", fix)])
        return ids


def chat_of(trained: Trained) -> Chat:
    """The tokenizer and the template that the run was trained with."""
    limit = trained.plan["data"]["lengths"]["positions"]
    return load_chat(trained.own, "model", trained.folder, max_length=limit, trust_remote_code=False)


def loader_of(trained: Trained, chat: Chat, machine: Machine) -> Callable[[BaseFiles, bool], Loaded]:
    """What loads the run's merged model or its base, with room for the tokens of the template."""
    pad, vocab = chat.pad_token_id, len(chat.tokenizer)
    return trained.language_loader("causal", pad_token_id=pad, vocab=vocab, machine=machine)


def load_answerer(trained: Trained, machine: Machine) -> Answerer:
    """The run's model as it is used. Raises MachineError where its base is not to be had."""
    data, chat = trained.plan["data"], chat_of(trained)
    model = trained.model(loader_of(trained, chat, machine), machine)
    return Answerer(model, chat, data["lengths"]["positions"], int(data["max_new_tokens"]))
