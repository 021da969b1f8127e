"""Labels texts with a run's model, a chunk at a time, in memory that does not grow with the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.classify.reader import HeadReader, Reader, WordsReader
from ftkit.errors import Problem, RecipeError
from ftkit.evals.thresholds import apply_thresholds
from ftkit.files import read_json
from ftkit.models.base import Loaded, load_classifier, load_tokenizer
from ftkit.models.hardware import Machine, training_dtype
from ftkit.models.locate import BaseFiles
from ftkit.rundir import RunDir
from ftkit.tasks.batches import chunks
from ftkit.tasks.classify import label_names, probabilities
from ftkit.tasks.templates import load_chat
from ftkit.trained import Trained, trained_by

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
    return predictor_of(trained_by(run), machine)


def predictor_of(trained: Trained, machine: Machine) -> Predictor:
    """The model in ``trained.folder``, read by what stands beside it. Raises as ``load_predictor`` does."""
    facts = _facts(trained)
    reader = _reader(trained.own, facts)
    if isinstance(reader, WordsReader):
        pad, vocab = reader.chat.pad_token_id, len(reader.tokenizer)
        load = trained.language_loader("causal", pad_token_id=pad, vocab=vocab, machine=machine)
    else:
        load = _with_head(trained, facts, reader, machine)
    model = trained.model(load, machine)
    return Predictor(model, reader, tuple(facts["labels"]), facts["multi_label"], tuple(facts["thresholds"]))


def reader_of(trained: Trained) -> Reader:
    """How the model in ``trained.folder`` was trained to read. Raises RecipeError where that is not written down."""
    return _reader(trained.own, _facts(trained))


def _facts(trained: Trained) -> dict[str, Any]:
    path, run = trained.folder / "labels.json", trained.run
    if not path.exists():
        fix = f"Go on with it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} is not trained to its end", [Problem("", "RUN", fix)])
    facts: dict[str, Any] = read_json(path)
    return facts


def _reader(own: BaseFiles, facts: dict[str, Any]) -> Reader:
    """How the model was trained to read, from what stands beside it."""
    length, words = int(facts["max_length"]), facts.get("words")
    if words is None:
        return HeadReader(load_tokenizer(own, max_length=length), length)
    limit = words["limit"]
    chat = load_chat(own, "model", own.folder, max_length=limit, trust_remote_code=False)
    return WordsReader(chat, words["prompt"], tuple(words["said"]), length, limit)


def _with_head(
    trained: Trained, facts: dict[str, Any], reader: Reader, machine: Machine
) -> Callable[[BaseFiles, bool], Loaded]:
    """What loads a classifier, quantised but for the modules that the adapter holds whole, of which the head is one."""
    import torch

    def load(files: BaseFiles, quantize: bool) -> Loaded:
        whole = read_json(trained.folder / "adapter_config.json")["modules_to_save"] if quantize else None
        return load_classifier(
            files,
            facts["labels"],
            multi_label=facts["multi_label"],
            pad_token_id=int(str(reader.tokenizer.pad_token_id)),
            dtype=torch.float32,
            seed=0,
            trust_remote_code=trained.trusted,
            skip_quantising=whole,
            compute=training_dtype(trained.plan["recipe"]["train"]["precision"], machine, files.width),
        )

    return load
