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
from ftkit.tasks.generation import generate
from ftkit.tasks.words import constrained, label_named, label_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Bools, Integers

_LONGER = 8  # tokens that a free answer may have beyond the longest label's, to say something else
# Metrics of an answer: those of probabilities need scores for all labels.
_OF_ANSWERS = frozenset({"accuracy", "precision", "recall", "f1", "mcc"})


@dataclass(frozen=True, slots=True)
class FreeAnswers:
    """``texts``: written freely; ``outside`` [n]: which of them are no label; ``constrained`` [n]: label numbers."""

    texts: list[str]
    outside: Bools
    constrained: Integers


def free_answers(
    reader: Reader, model: PreTrainedModel, prompts: Sequence[Sequence[int]], console: Console, who: str
) -> FreeAnswers | None:
    """What the model writes after each prompt, greedy; None for a head, which writes nothing."""
    import numpy as np

    if not isinstance(reader, WordsReader):
        return None
    words = reader.answers()
    longest = max(map(len, words))
    with console.progress(f"answers of {who}", 2 * len(prompts)) as advance:
        free, held = (
            generate(
                model,
                prompts,
                max_new_tokens=longest + more,
                limit=reader.limit,
                stop_ids=reader.chat.stop_ids,
                pad_token_id=reader.chat.pad_token_id,
                advance=advance,
                allowed=allowed,
            )
            for more, allowed in ((_LONGER, None), (0, constrained(words)))
        )
    texts = [reader.chat.said(answer.ids) for answer in free]
    numbers = [label_of(answer.ids, words) for answer in held]
    assert None not in numbers, "a constrained answer is a label's"
    outside = np.array([label_named(text, reader.said) is None for text in texts])
    return FreeAnswers(texts, outside, np.array(numbers, dtype=np.int64))


def scored_as_generated(plan: LabelledPlan, references: Integers, says: FreeAnswers) -> Scored:
    """The constrained answers by the recipe's metrics, those that need probabilities left out."""
    import numpy as np

    chosen = plan.recipe.eval.metrics or METRICS_OF["classify"]
    metrics = tuple(name for name in chosen if name in _OF_ANSWERS) or ("accuracy",)
    certain = np.eye(len(plan.labels))[says.constrained]  # (n, K)
    return score_classification(
        references,
        certain,
        says.constrained,
        plan.labels,
        multi_label=False,
        settings=plan.recipe.eval.model_copy(update={"metrics": metrics}),
        seed=plan.recipe.train.seed,
    )
