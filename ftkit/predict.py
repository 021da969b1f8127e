"""Labels texts with a run's model, a chunk at a time, in memory that does not grow with the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import Problem, RecipeError
from ftkit.evals.thresholds import apply_thresholds
from ftkit.files import read_json
from ftkit.models.base import inference_mode, load_classifier, load_tokenizer, with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.rundir import RunDir
from ftkit.tasks.batches import chunks
from ftkit.tasks.classify import encode, label_names, probabilities, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Predictor:
    """A loaded model with what is needed to read its scores."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    multi_label: bool
    thresholds: tuple[float, ...]
    max_length: int

    def predict(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """One answer a text, in order: ``prediction`` (label names) and ``scores`` (a probability for each label)."""
        for chunk in chunks(texts, _ROWS_AT_ONCE):
            rows = encode(self.tokenizer, chunk, self.max_length)
            logits = score(self.model, rows, pad_token_id=int(str(self.tokenizer.pad_token_id)))
            found = probabilities(logits, multi_label=self.multi_label)
            answers = apply_thresholds(found, self.thresholds, multi_label=self.multi_label)
            named = label_names(answers, self.labels, multi_label=self.multi_label)
            for text, answer, scores in zip(chunk, named, found, strict=True):
                shares = {label: float(share) for label, share in zip(self.labels, scores, strict=True)}
                yield {"input": text, "prediction": answer, "scores": shares}


def load_predictor(run: RunDir, machine: Machine) -> Predictor:
    """The run's merged model, or its base with the adapter where it was not merged.

    Raises RecipeError where the run has no adapter, MachineError where the base is not to be had.
    """
    import torch

    folder = run.merged if run.merged.is_dir() else run.adapter
    if not (folder / "labels.json").exists():
        fix = f"Train it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} has no trained adapter", [Problem("", "RUN", fix)])
    facts = read_json(folder / "labels.json")
    plan = read_json(run.plan)
    base, trusted = plan["base"], bool(plan["recipe"]["base"]["trust_remote_code"])
    own = BaseFiles(str(folder), "folder", folder, None)
    files = own if folder == run.merged else locate(base_address(base), Path.cwd(), weights=True)
    tokenizer = load_tokenizer(own, max_length=facts["max_length"])
    classifier = load_classifier(
        files,
        facts["labels"],
        multi_label=facts["multi_label"],
        pad_token_id=int(str(tokenizer.pad_token_id)),
        dtype=torch.float32,
        seed=0,
        trust_remote_code=trusted,
    )
    model = classifier.model if folder == run.merged else with_saved_adapter(classifier.model, run.adapter)
    model.to(machine.device)
    inference_mode(model)
    labels, thresholds = tuple(facts["labels"]), tuple(facts["thresholds"])
    return Predictor(model, tokenizer, labels, facts["multi_label"], thresholds, facts["max_length"])


def base_address(base: dict[str, Any]) -> str:
    """Where the base of plan.json is: its folder, or its hub id at the commit that was trained on."""
    if base["folder"]:
        return str(base["folder"])
    name = str(base["ref"]).partition("@")[0]
    return f"{name}@{base['revision']}" if base["revision"] else str(base["ref"])
