"""Scores a model on a run's own test rows, wherever it was read from, by the code that evaluated the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ftkit.answer import loader_of
from ftkit.classify.reader import Reader
from ftkit.evals.answers import ScoredAnswers
from ftkit.evals.classification import Scored, score_classification
from ftkit.evals.language import ScoredWindows, score_language
from ftkit.evals.section import Eval
from ftkit.evals.thresholds import apply_thresholds
from ftkit.measured import Measured, read_measured
from ftkit.measured_answers import exam_of
from ftkit.measured_texts import own_windows
from ftkit.merging import spread
from ftkit.models.base import load_tokenizer
from ftkit.models.hardware import Machine
from ftkit.predict import predictor_of, reader_of
from ftkit.pretrain.evaluate import kept_positions
from ftkit.records import ModelScores
from ftkit.sft.exam import Exam
from ftkit.tasks.classify import probabilities, targets
from ftkit.tasks.heldout import HeldOut, score_held_out
from ftkit.tasks.windows import IGNORED
from ftkit.trained import Trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats, Integers

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model's: metrics, the logits that are compared [m, K], and its answers, or likeliest tokens, one by one."""

    scored: Scored | ScoredAnswers | ScoredWindows
    logits: Floats
    answers: Integers

    @property
    def scores(self) -> ModelScores:
        return self.scored.scores


class Rows(Protocol):
    """The test rows of a run, ready to be scored."""

    def __len__(self) -> int: ...

    @property
    def steps(self) -> int:
        """How many ``score`` tells ``advance`` of."""

    def load(self, trained: Trained, machine: Machine) -> Any:
        """The model in ``trained.folder``, as the run's own models are loaded."""

    def score(self, model: Any, advance: Advance) -> Outcome:
        """Raises TrainingFailed where a score is not finite."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows of a classifier, with a head or by words. ``ids``: what its reader makes of them."""

    reader: Reader
    measured: Measured
    settings: Eval
    thresholds: tuple[float, ...]
    ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def steps(self) -> int:
        return len(self)

    def load(self, trained: Trained, machine: Machine) -> Any:
        return predictor_of(trained, machine).model

    def score(self, model: Any, advance: Advance) -> Outcome:
        labels, multi_label = self.measured.labels, bool(self.measured.report["multi_label"])
        logits = self.reader.score(model, self.ids, advance=advance)
        found = probabilities(logits, multi_label=multi_label)
        answers = apply_thresholds(found, self.thresholds, multi_label=multi_label)
        scored = score_classification(
            targets(self.measured.examples, labels, multi_label=multi_label),
            found,
            answers,
            labels,
            multi_label=multi_label,
            settings=self.settings,
            seed=int(self.measured.report["seed"]),
        )
        return Outcome(scored, logits, answers.ravel())


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Conversations that a decoder answers."""

    exam: Exam

    def __len__(self) -> int:
        return len(self.exam.side)

    @property
    def steps(self) -> int:
        return (2 if self.exam.generates else 1) * len(self)

    def load(self, trained: Trained, machine: Machine) -> Any:
        return trained.model(loader_of(trained, self.exam.chat, machine), machine)

    def score(self, model: Any, advance: Advance) -> Outcome:
        import numpy as np

        labels = self.exam.labels
        places = [(row, at) for row, own in enumerate(labels) for at in range(len(own) - 1) if own[at + 1] != IGNORED]
        found = self.exam.sit(model, positions=spread(places), advance=advance)
        return Outcome(found.scored, found.scores.logits, np.concatenate(found.scores.best))


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of text for a language model."""

    side: HeldOut
    tokenizer: PreTrainedTokenizerBase
    settings: Eval
    seed: int

    @property
    def pad_token_id(self) -> int:
        return int(str(self.tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self.side)

    @property
    def steps(self) -> int:
        return len(self)

    def load(self, trained: Trained, machine: Machine) -> Any:
        objective = trained.plan["recipe"]["task"]["objective"]
        pad, vocab = self.pad_token_id, len(self.tokenizer)
        load = trained.language_loader(objective, pad_token_id=pad, vocab=vocab, machine=machine)
        return trained.model(load, machine)

    def score(self, model: Any, advance: Advance) -> Outcome:
        import numpy as np

        side = self.side
        kept = kept_positions(side)
        found = score_held_out(model, side, pad_token_id=self.pad_token_id, positions=kept, advance=advance)
        scored = score_language(found.nll, side.tokens, side.bytes, settings=self.settings, seed=self.seed)
        return Outcome(scored, found.logits, np.concatenate(found.best))


def own_rows(trained: Trained) -> Rows:
    """The run's own test rows. Raises RecipeError where they cannot be had any more."""
    settings, seed = trained.section("eval", Eval), int(trained.plan["seed"])
    match trained.plan["recipe"]["task"]["type"]:
        case "sft":
            return AnsweredRows(exam_of(trained, None))
        case "pretrain":
            length = int(trained.plan["data"]["lengths"]["max_length"])
            tokenizer = load_tokenizer(trained.own, max_length=length)
            return Windows(own_windows(trained, tokenizer), tokenizer, settings, seed)
    measured, reader = read_measured(trained.run), reader_of(trained)
    ids = reader.rows([example.text for example in measured.examples])
    return LabelledRows(reader, measured, settings, tuple(measured.report["thresholds"]), ids)
