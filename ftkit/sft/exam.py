"""What a model makes of held-out conversations: how likely it finds their answers, and what it answers itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.evals.answers import ScoredAnswers, score_answers
from ftkit.evals.section import GENERATED, Eval, MetricName, selected_answer_metrics
from ftkit.evals.statistics import RESAMPLES
from ftkit.plan.chat import AnsweredSide
from ftkit.tasks.chat import Chat
from ftkit.tasks.generation import Generated, generate
from ftkit.tasks.language import Scores, score
from ftkit.tasks.rendering import decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Integers


@dataclass(frozen=True, slots=True)
class Result:
    """One model's. ``texts`` of its own answers, and which ``ended`` by themselves: None where none were asked for."""

    scores: Scores
    texts: list[str] | None
    ended: list[bool] | None
    scored: ScoredAnswers


@dataclass(frozen=True, slots=True)
class Exam:
    """The conversations of a side, and how every model is asked to answer them.

    ``limit``: positions of the model, None where it has no limit; ``max_new_tokens``: of an answer; ``settings``: what
    is measured.
    """

    chat: Chat
    side: AnsweredSide
    limit: int | None
    max_new_tokens: int
    settings: Eval
    seed: int

    @property
    def generates(self) -> bool:
        """Whether answers are generated: not where their likelihood alone is asked for."""
        return not GENERATED.isdisjoint(selected_answer_metrics(self.settings))

    @property
    def prompts(self) -> list[list[int]]:
        """What generation starts from."""
        return [self.side.answers.prompt(row) for row in range(len(self.side))]

    @property
    def labels(self) -> list[list[int]]:
        """The tokens that are scored: the last answers', without their stop tokens."""
        return [self.side.answers.scored(row) for row in range(len(self.side))]

    @property
    def references(self) -> list[tuple[str, ...]]:
        """The right answers; the first as the template writes it, with the tools that it calls."""
        written = self.texts([row.ids[row.answer : row.end] for row in self.side.answers])
        return [(first, *row.references[1:]) for first, row in zip(written, self.side.rows, strict=True)]

    @property
    def bytes(self) -> Integers:
        """UTF-8 bytes of each answer as the template writes it [n]."""
        import numpy as np

        answers = (decode(self.chat.tokenizer, row.ids[row.answer : row.end]) for row in self.side.answers)
        return np.array([len(text.encode()) for text in answers], dtype=np.int64)

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return int(self.side.answers.answer_tokens.sum())

    def sit(
        self,
        model: PreTrainedModel,
        *,
        positions: Sequence[tuple[int, int]] = (),
        advance: Callable[[int], None] | None = None,
    ) -> Result:
        """Scores the model and lets it answer; ``advance`` is told of rows done, once for each of the two.

        Raises TrainingFailed where a score is not finite.
        """
        scores = self.score(model, positions=positions, advance=advance)
        generated = self.answer(model, advance=advance) if self.generates else None
        return self.result(scores, generated)

    def score(
        self,
        model: PreTrainedModel,
        *,
        positions: Sequence[tuple[int, int]] = (),
        advance: Callable[[int], None] | None = None,
    ) -> Scores:
        """Nats of the last answer of each row. Raises TrainingFailed for one that is not finite."""
        rows = [row.ids for row in self.side.answers]
        pad = self.chat.pad_token_id
        return score(model, rows, labels=self.labels, pad_token_id=pad, positions=positions, advance=advance)

    def answer(self, model: PreTrainedModel, *, advance: Callable[[int], None] | None = None) -> list[Generated]:
        """The model's own last answers, greedy."""
        return generate(
            model,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            limit=self.limit,
            stop_ids=self.chat.stop_ids,
            pad_token_id=self.chat.pad_token_id,
            advance=advance,
        )

    def result(
        self,
        scores: Scores,
        generated: Sequence[Generated] | None,
        *,
        metrics: tuple[MetricName, ...] | None = None,
        resamples: int = RESAMPLES,
    ) -> Result:
        """What a model made of the rows, by the metrics of the settings or by ``metrics``.

        Their intervals are of so many ``resamples``; there are none with 0.
        """
        import numpy as np

        texts = None if generated is None else self.texts([each.ids for each in generated])
        ended = None if generated is None else [each.ended for each in generated]
        scored = score_answers(
            references=self.references,
            predictions=texts,
            ended=None if ended is None else np.array(ended),
            nll=scores.nll,
            tokens=self.side.answers.answer_tokens,
            bytes_=self.bytes,
            settings=self.settings if metrics is None else self.settings.model_copy(update={"metrics": metrics}),
            seed=self.seed,
            resamples=resamples,
        )
        return Result(scores, texts, ended, scored)

    def texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Answers as a reader gets them: marks left out, no white space around."""
        return [self.chat.said(ids) for ids in answers]
