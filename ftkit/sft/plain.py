"""The base asked in plain text, without a chat template: how much of an adapter's gain is the template alone.

A base that was never trained on the template's marks finds any answer behind them unlikely. Asked as text it shows what
it knows by itself; the adapter should beat that too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftkit.evals.answers import ScoredAnswers
from ftkit.evals.section import GENERATED, selected_answer_metrics
from ftkit.sft.exam import Exam
from ftkit.tasks.language import score
from ftkit.tasks.rendering import tokenise
from ftkit.tasks.tokens import start_token
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plain_scores(exam: Exam, model: PreTrainedModel) -> ScoredAnswers | None:
    """Likelihood metrics of the same answers behind the prompt as plain text and a line end.

    The answers are the same tokens, so perplexities compare. None where no such metric is asked for.
    """
    metrics = tuple(name for name in selected_answer_metrics(exam.settings) if name not in GENERATED)
    if not metrics:
        return None
    prompts, answers = _prompts(exam), [row.ids[row.answer : row.end] for row in exam.side.answers]
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    labels = [[*[IGNORED] * len(prompt), *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    scores = score(model, rows, labels=labels, pad_token_id=exam.chat.pad_token_id)
    return exam.result(scores, None, metrics=metrics).scored


def _prompts(exam: Exam) -> list[list[int]]:
    """The prompts as text, from their ends where the model's positions leave no room for all."""
    tokenizer = exam.chat.tokenizer
    start = start_token(tokenizer)
    found = []
    for row, own in zip(exam.side.rows, exam.side.answers, strict=True):
        ids = tokenise(tokenizer, f"{row.text}\n")[0]
        room = len(ids) if exam.limit is None else exam.limit - (own.end - own.answer) - 1
        kept = ids[max(0, len(ids) - room) :]
        found.append([start, *kept] if start is not None else kept)
    return found
