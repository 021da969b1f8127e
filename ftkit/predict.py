"""Labels texts with a run's model, a chunk at a time, in memory that does not grow with the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.classify.reader import HeadReader, Reader, WordsReader
from ftkit.errors import Problem, RecipeError
from ftkit.evals.thresholds import apply_thresholds
from ftkit.files import read_json
from ftkit.models.base import (
    inference_mode,
    load_classifier,
    load_language_model,
    load_tokenizer,
    with_saved_adapter,
)
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.rundir import RunDir
from ftkit.tasks.batches import chunks
from ftkit.tasks.classify import label_names, probabilities
from ftkit.tasks.templates import load_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Predictor:
    """A loaded model with what is needed to read its scores."""

    model: PreTrainedModel
    reader: Reader
    labels: tuple[str, ...]
    multi_label: bool
    thresholds: tuple[float, ...]

    def predict(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """One answer a text, in order: ``prediction`` (label names) and ``scores`` (a probability for each label)."""
        for chunk in chunks(texts, _ROWS_AT_ONCE):
            found = probabilities(self.reader.score(self.model, self.reader.rows(chunk)), multi_label=self.multi_label)
            answers = apply_thresholds(found, self.thresholds, multi_label=self.multi_label)
            named = label_names(answers, self.labels, multi_label=self.multi_label)
            for text, answer, scores in zip(chunk, named, found, strict=True):
                shares = {label: float(share) for label, share in zip(self.labels, scores, strict=True)}
                yield {"input": text, "prediction": answer, "scores": shares}


def load_predictor(run: RunDir, machine: Machine) -> Predictor:
    """The run's merged model, or its base with the adapter where it was not merged.

    Raises RecipeError where the run has no adapter, MachineError where the base is not to be had.
    """

    folder = run.merged if run.merged.is_dir() else run.adapter
    if not (folder / "labels.json").exists():
        fix = f"Train it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} has no trained adapter", [Problem("", "RUN", fix)])
    facts, plan = read_json(folder / "labels.json"), read_json(run.plan)
    own = BaseFiles(str(folder), "folder", folder, None)
    reader = _reader(own, facts)
    files = own if folder == run.merged else locate(base_address(plan["base"]), Path.cwd(), weights=True)
    base = _base(files, facts, reader, trusted=bool(plan["recipe"]["base"]["trust_remote_code"]))
    model = base if folder == run.merged else with_saved_adapter(base, run.adapter)
    model.to(machine.device)
    inference_mode(model)
    return Predictor(model, reader, tuple(facts["labels"]), facts["multi_label"], tuple(facts["thresholds"]))


def _reader(own: BaseFiles, facts: dict[str, Any]) -> Reader:
    """How the model was trained to read, from what stands beside it."""
    length, words = int(facts["max_length"]), facts.get("words")
    if words is None:
        return HeadReader(load_tokenizer(own, max_length=length), length)
    limit = words["limit"]
    chat = load_chat(own, "model", own.folder, max_length=limit, trust_remote_code=False)
    return WordsReader(chat, words["prompt"], tuple(words["said"]), length, limit)


def _base(files: BaseFiles, facts: dict[str, Any], reader: Reader, *, trusted: bool) -> PreTrainedModel:
    import torch

    settings: dict[str, Any] = {
        "pad_token_id": int(str(reader.tokenizer.pad_token_id)),
        "dtype": torch.float32,
        "seed": 0,
        "trust_remote_code": trusted,
    }
    if isinstance(reader, WordsReader):
        return load_language_model(files, "causal", vocab=len(reader.tokenizer), **settings).model
    return load_classifier(files, facts["labels"], multi_label=facts["multi_label"], **settings).model


def base_address(base: dict[str, Any]) -> str:
    """Where the base of plan.json is: its folder, or its hub id at the commit that was trained on."""
    if base["folder"]:
        return str(base["folder"])
    name = str(base["ref"]).partition("@")[0]
    return f"{name}@{base['revision']}" if base["revision"] else str(base["ref"])
