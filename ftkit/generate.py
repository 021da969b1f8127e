"""Goes on with texts, or fills the gaps in them, with the language model of a run, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import DataError, Problem
from ftkit.models.base import Loaded, inference_mode, load_tokenizer
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.rundir import RunDir
from ftkit.tasks.batches import chunks
from ftkit.tasks.generation import generate
from ftkit.tasks.tokens import start_token
from ftkit.trained import Trained, trained_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AT_ONCE = 16  # texts
NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Generator:
    """A loaded language model. ``max_length``: tokens that it can hold, those of the text included."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    objective: Literal["causal", "masked"]
    max_length: int

    def predict(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """One answer a text, in order: how it goes on (greedy, to the end token or 64 tokens), or its gaps filled.

        Raises DataError for a text that is too long, or, for a masked model, that has no gap.
        """
        answer = self._continued if self.objective == "causal" else self._filled
        for chunk in chunks(texts, _AT_ONCE):
            for text, prediction in zip(chunk, answer(chunk), strict=True):
                yield {"input": text, "prediction": prediction}

    def _continued(self, texts: list[str]) -> list[str]:
        start, end = start_token(self.tokenizer), self.tokenizer.eos_token_id
        opening = [] if start is None else [start]
        rows = [[*opening, *ids] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        if max(map(len, rows)) >= self.max_length:
            raise self._too_long(texts)
        found = generate(
            self.model,
            rows,
            max_new_tokens=NEW_TOKENS,
            limit=self.max_length,
            stop_ids=[] if end is None else [int(str(end))],
            pad_token_id=int(str(self.tokenizer.pad_token_id)),
        )
        return [str(self.tokenizer.decode(answer.ids, skip_special_tokens=True)) for answer in found]

    def _filled(self, texts: list[str]) -> list[str]:
        import torch

        mask = self.tokenizer.mask_token
        without = [text for text in texts if str(mask) not in text]
        if without:
            fix = f"Write {mask} where a token is to be found: {without[0][:60]!r} has none."
            raise DataError("a text has no gap", [Problem("", "text", fix)])
        batch = self.tokenizer(texts, padding=True, return_tensors="pt")
        if batch["input_ids"].shape[1] > self.max_length:
            raise self._too_long(texts)
        given = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            likeliest = self.model(**given).logits.argmax(-1)
        gaps = given["input_ids"] == self.tokenizer.mask_token_id
        filled = torch.where(gaps, likeliest, given["input_ids"])
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in filled]

    def _too_long(self, texts: list[str]) -> DataError:
        longest = max(texts, key=len)
        fix = f"The model holds {self.max_length:,} tokens. Shorten it: {longest[:60]!r}…"
        return DataError("a text is too long", [Problem("", "text", fix)])


def load_generator(run: RunDir, machine: Machine) -> Generator:
    """The run's merged model, its base with the adapter, or its model from scratch.

    Raises RecipeError where nothing is trained yet, MachineError where the base is not to be had.
    """
    trained = trained_by(run)
    length = int(trained.plan["data"]["lengths"]["max_length"])
    objective = trained.plan["recipe"]["task"]["objective"]
    tokenizer = load_tokenizer(trained.own, max_length=length)
    model = trained.model(_loader(trained, tokenizer, machine), machine)
    return Generator(model, tokenizer, objective, length)


def load_base(run: RunDir, machine: Machine, generator: Generator) -> PreTrainedModel | None:
    """The run's base alone, in 4 bits where the run's model is on such a one.

    None where there is none to compare with: from scratch, or without a head of its own.
    """
    trained = trained_by(run)
    if trained.plan["base"]["ref"] is None:
        return None
    loaded = _loader(trained, generator.tokenizer, machine)(trained.base(), trained.quantised)
    if loaded.head:
        return None
    inference_mode(loaded.model)
    return loaded.model


def _loader(
    trained: Trained, tokenizer: PreTrainedTokenizerBase, machine: Machine
) -> Callable[[BaseFiles, bool], Loaded]:
    pad, vocab = int(str(tokenizer.pad_token_id)), len(tokenizer)
    objective = trained.plan["recipe"]["task"]["objective"]
    return trained.language_loader(objective, pad_token_id=pad, vocab=vocab, machine=machine)
