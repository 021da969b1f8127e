"""Goes on with texts, or fills the gaps in them, with the language model of a run, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import DataError, Problem, RecipeError
from ftkit.files import read_json
from ftkit.merging import full_precision
from ftkit.models.base import Loaded, inference_mode, load_language_model, load_tokenizer
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.predict import base_address
from ftkit.rundir import RunDir
from ftkit.tasks.batches import chunks
from ftkit.tasks.generation import generate
from ftkit.tasks.tokens import start_token

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
    folder = next((path for path in (run.merged, run.adapter, run.model) if path.is_dir()), None)
    if folder is None:
        fix = f"Train it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} has no trained model", [Problem("", "RUN", fix)])
    plan = read_json(run.plan)
    length = int(plan["data"]["lengths"]["max_length"])
    own = BaseFiles(str(folder), "folder", folder, None)
    tokenizer = load_tokenizer(own, max_length=length)
    pad = int(str(tokenizer.pad_token_id))
    if folder == run.adapter:
        adapter, base, vocab = plan["recipe"]["adapter"], _base(plan), len(tokenizer)

        def load(quantize: bool) -> Loaded:
            whole = adapter.get("modules_to_save") or ()
            return _loaded(plan, base, pad, vocab=vocab, quantize=quantize, whole=whole)

        model = full_precision(load, folder, loftq=adapter.get("init") == "loftq")
    else:
        model = _loaded(plan, own, pad).model
    model.to(machine.device)
    inference_mode(model)
    return Generator(model, tokenizer, plan["recipe"]["task"]["objective"], length)


def load_base(run: RunDir, machine: Machine, generator: Generator) -> PreTrainedModel | None:
    """The run's base alone; None where there is none to compare with: from scratch, or without a head of its own."""
    plan = read_json(run.plan)
    if plan["base"]["ref"] is None:
        return None
    loaded = _loaded(plan, _base(plan), int(str(generator.tokenizer.pad_token_id)))
    if loaded.head:
        return None
    loaded.model.to(machine.device)
    inference_mode(loaded.model)
    return loaded.model


def _base(plan: dict[str, Any]) -> BaseFiles:
    return locate(base_address(plan["base"]), Path.cwd(), weights=True)


def _loaded(plan: dict[str, Any], files: BaseFiles, pad_token_id: int, **more: Any) -> Loaded:
    import torch

    return load_language_model(
        files,
        plan["recipe"]["task"]["objective"],
        pad_token_id=pad_token_id,
        dtype=torch.float32,
        seed=0,
        trust_remote_code=bool(plan["recipe"]["base"].get("trust_remote_code", False)),
        **more,
    )
