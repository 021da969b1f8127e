"""How a classifier reads a text and scores its labels: with a head, or by the words that a decoder answers with.

Training, evaluation, proof and predict read and score through a reader: there is no second path to a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from ftkit.data.template import Template
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.records import Conversation, Turn
from ftkit.tasks import classify, words
from ftkit.tasks.chat import Answered, Chat, Unfit
from ftkit.tasks.tokens import cut_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats

Result = TypeVar("Result")


class Reader(Protocol):
    """What evaluation, proof and use need of either kind."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read."""

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids that the model is given for each text."""

    def score(
        self, model: PreTrainedModel, rows: Sequence[Sequence[int]], *, advance: Callable[[int], None] | None = None
    ) -> Floats:
        """Scores [n, K] whose softmax (or sigmoid, for a multi-label head) are the labels' probabilities."""


@dataclass(frozen=True, slots=True)
class HeadReader:
    """Texts as they are, cut to ``max_length`` tokens; the head's logits."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        return classify.encode(self.tokenizer, texts, self.max_length)

    def score(
        self, model: PreTrainedModel, rows: Sequence[Sequence[int]], *, advance: Callable[[int], None] | None = None
    ) -> Floats:
        return classify.score(model, rows, pad_token_id=int(str(self.tokenizer.pad_token_id)), advance=advance)


@dataclass(frozen=True, slots=True)
class WordsReader:
    """Texts in a prompt, cut to ``max_length`` tokens before; the log-probability of each label's word as the answer.

    ``said``: the word for each label, in the label set's order; ``limit``: positions of the model. Raises DataError
    for a text that holds a mark of the chat template.
    """

    chat: Chat
    prompt: str
    said: tuple[str, ...]
    max_length: int
    limit: int | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._prompt(text) for text in texts]

    def answered(self, text: str, label: int) -> Answered:
        """A training row: the word for the label is trained, with its stop token."""
        turns = (*self._asked(text), Turn("assistant", self.said[label]))
        row = Conversation("", "", text, (), turns=turns, references=(self.said[label],))
        return _fitting(text, lambda: self.chat.encode(row, train_on="answers"))

    def answers(self) -> list[list[int]]:
        """The token ids of each label's word, stop token included."""
        rows = [self.answered("", label) for label in range(len(self.said))]
        return [row.ids[row.answer : row.end + 1] for row in rows]

    def score(
        self, model: PreTrainedModel, rows: Sequence[Sequence[int]], *, advance: Callable[[int], None] | None = None
    ) -> Floats:
        pad = self.chat.pad_token_id
        return words.label_scores(model, rows, self.answers(), pad_token_id=pad, advance=advance)

    def _asked(self, text: str) -> tuple[Turn, ...]:
        cut = cut_text(self.tokenizer, text, self.max_length)
        return (Turn("user", Template.parse(self.prompt).fill({"text": cut})),)

    def _prompt(self, text: str) -> list[int]:
        return _fitting(text, lambda: self.chat.prompt(self._asked(text), ()))


def words_reader(chat: Chat, prompt: str, said: Sequence[str], *, max_length: int, limit: int | None) -> WordsReader:
    """``max_length``: tokens of a text at most; less where prompt and word leave less of the model's ``limit``.

    Raises RecipeError where they leave nothing.
    """
    reader = WordsReader(chat, prompt, tuple(said), max_length, limit)
    if limit is None:
        return reader
    around = max(len(reader.answered("", label).ids) for label in range(len(said)))
    room = limit - around - _MARGIN
    if room < 1:
        fix = f"prompt and answer have {around} tokens, and the base takes {limit}. Shorten it, or name another base."
        raise RecipeError("the prompt leaves no room for a text", [Problem("", "task.words.prompt", fix)])
    return replace(reader, max_length=min(max_length, room))


# A cut text may give a few tokens more in its prompt than alone, where its ends meet other signs.
_MARGIN = 4


def _fitting(text: str, encode: Callable[[], Result]) -> Result:
    try:
        return encode()
    except Unfit as unfit:
        raise DataError("a text cannot be read by the model", [Problem("", repr(text[:60]), str(unfit))]) from unfit
