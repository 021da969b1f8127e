"""What a decoder that answers with label words writes: freely, and with nothing but the labels allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.classify.reader import Reader, WordsReader
from ftkit.console import Console
from ftkit.evals.classification import Scored, score_classification
from ftkit.evals.section import METRICS_OF
from ftkit.plan.labelled import LabelledPlan
from ftkit.tasks.generation import Allowed, Generated, generate
from ftkit.tasks.words import constrained, label_named, label_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Bools, Integers

_LONGER = 8  # tokens that a free answer may have beyond the longest label's, to say something else
# Metrics of an answer: those of probabilities need scores for all labels.
_OF_ANSWERS = frozenset({"accuracy", "precision", "recall", "f1", "mcc"})


@dataclass(frozen=True, slots=True)
class FreeAnswers:
    """``texts``: written freely; ``outside`` [n]: which of them are no label."""

    texts: list[str]
    outside: Bools


def free_answers(
    reader: Reader, model: PreTrainedModel, prompts: Sequence[Sequence[int]], console: Console, who: str
) -> FreeAnswers | None:
    """What the model writes after each prompt, greedy; None for a head, which writes nothing."""
    import numpy as np

    if not isinstance(reader, WordsReader):
        return None
    found = _written(reader, model, prompts, console, f"answers of {who}", more=_LONGER)
    texts = [reader.chat.said(answer.ids) for answer in found]
    return FreeAnswers(texts, np.array([label_named(text, reader.said) is None for text in texts]))


def constrained_answers(
    reader: WordsReader, model: PreTrainedModel, prompts: Sequence[Sequence[int]], console: Console, who: str
) -> Integers:
    """The numbers of the labels that the model writes where nothing but labels is allowed [n], greedy."""
    import numpy as np

    words = reader.answers()
    what = f"constrained answers of {who}"
    found = _written(reader, model, prompts, console, what, more=0, allowed=constrained(words))
    numbers = [label_of(answer.ids, words) for answer in found]
    assert None not in numbers, "a constrained answer is a label's"
    return np.array(numbers, dtype=np.int64)


def _written(
    reader: WordsReader,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    console: Console,
    what: str,
    *,
    more: int,
    allowed: Allowed | None = None,
) -> list[Generated]:
    """Answers of as many tokens as the longest label has, and ``more``."""
    with console.progress(what, len(prompts)) as advance:
        return generate(
            model,
            prompts,
            max_new_tokens=max(map(len, reader.answers())) + more,
            limit=reader.limit,
            stop_ids=reader.chat.stop_ids,
            pad_token_id=reader.chat.pad_token_id,
            advance=advance,
            allowed=allowed,
        )


def scored_as_generated(plan: LabelledPlan, references: Integers, numbers: Integers) -> Scored:
    """The constrained answers by the recipe's metrics, those that need probabilities left out."""
    import numpy as np

    chosen = plan.recipe.eval.metrics or METRICS_OF["classify"]
    metrics = tuple(name for name in chosen if name in _OF_ANSWERS) or ("accuracy",)
    certain = np.eye(len(plan.labels))[numbers]  # (n, K)
    return score_classification(
        references,
        certain,
        numbers,
        plan.labels,
        multi_label=False,
        settings=plan.recipe.eval.model_copy(update={"metrics": metrics}),
        seed=plan.recipe.train.seed,
    )
