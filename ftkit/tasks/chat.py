"""How a conversation becomes token ids, and which of them are trained.

The whole conversation is rendered by the chat template and tokenised once; labels go by position. What the template
marks with {% generation %} is an assistant's; without markers a turn reaches from what the template writes before it to
what it writes with it. Nothing here reads files or knows the recipe: ``ftkit.tasks.templates`` loads a ``Chat``.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ftkit.records import Conversation, Decision, Turn
from ftkit.tasks.rendering import Tools, decode, left_out, marked, render, tokenise
from ftkit.tasks.rendering import Unfit as Unfit
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["answers", "last_answer", "all"]


@dataclass(frozen=True, slots=True)
class Answered:
    """A row as tokens. ``labels[i]`` is ``ids[i]`` where token i is trained, else IGNORED.

    ``ids[:answer]`` is the prompt that generation starts from, ``ids[answer:end]`` the last answer without its stop
    token, which is ``ids[end]``. ``recut``: the tokeniser would have merged the prompt's end with the answer's start,
    so the two were tokenised apart. ``cut``: tokens taken from the beginning of the first user turn to fit.
    """

    ids: list[int]
    labels: list[int]
    answer: int
    end: int
    recut: bool = False
    cut: int = 0


@dataclass(frozen=True, slots=True)
class TooLong:
    """A row that does not fit: the tokens it has."""

    length: int


@dataclass(frozen=True, slots=True)
class Chat:
    """A tokenizer that carries the chosen chat template, and what is known of the two.

    ``source``: model, chatml or the file's name, as the recipe has it. ``stop_ids``: the token that ends an assistant's
    turn in the template, then the tokenizer's own end token where that is another. ``opening``: what the template
    makes each answer begin with (Qwen3: an empty reasoning); it is trained, and ``said`` leaves it out. ``added``:
    special tokens that the model has no row for yet. ``marks`` finds special tokens in a text. ``key``: the recipe's
    key of the template, for messages.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    sha256: str
    stop_ids: tuple[int, ...]
    opening: str
    added: tuple[str, ...]
    marks: re.Pattern[str]
    key: str
    decision: Decision | None

    @property
    def pad_token_id(self) -> int:
        return int(str(self.tokenizer.pad_token_id))

    @property
    def added_ids(self) -> list[int]:
        """The ids of ``added``."""
        return [int(index) for index in self.tokenizer.convert_tokens_to_ids(list(self.added))]

    def document(self) -> dict[str, Any]:
        """The template's facts for plan.json."""
        stop = [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(self.stop_ids))]
        return {"source": self.source, "sha256": self.sha256, "stop": stop, "added": list(self.added)}

    def prompt(self, turns: Sequence[Turn], tools: Tools = ()) -> list[int]:
        """The token ids that an answer to these turns is generated from. Raises Unfit as ``encode`` does."""
        self._check_marks(turns, tools)
        return tokenise(self.tokenizer, render(self.tokenizer, turns, tools, asked=True))[0]

    def said(self, ids: Sequence[int]) -> str:
        """The words of generated tokens: no special tokens, no opening, no white space around them."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return text.strip().removeprefix(self.opening.strip()).strip()

    def encode(self, conversation: Conversation, train_on: TrainOn) -> Answered:
        """The tokens of a conversation. Raises Unfit for a row that the template does not write whole and clear."""
        turns, tools = conversation.turns, conversation.tools
        self._check_marks(turns, tools)
        text = render(self.tokenizer, turns, tools, asked=False)
        if missing := left_out(text, turns, tools):
            raise Unfit(f"the template leaves out {missing}. Write {self.key}: chatml.")
        prompt = render(self.tokenizer, turns[:-1], tools, asked=True)
        if not text.startswith(prompt):
            raise Unfit(
                "what the template asks for an answer with is not what it writes before one. "
                f"Write {self.key}: chatml, or a template where add_generation_prompt writes the same."
            )
        row = self._tokens(text, len(prompt))
        changed = self._changed(turns, train_on)
        spans = self._spans(text, turns, tools, changed | {len(turns) - 1})
        return self._labelled(text, row, spans, changed, everything=train_on == "all")

    def _check_marks(self, turns: Sequence[Turn], tools: Tools) -> None:
        """What a row says must never end a turn or begin one."""
        named = [(f"turn {number} ({turn.role})", turn.content) for number, turn in enumerate(turns, 1)]
        named += [("a tool call", json.dumps(dict(call), ensure_ascii=False)) for turn in turns for call in turn.calls]
        named += [("a tool", json.dumps(dict(tool), ensure_ascii=False)) for tool in tools]
        for name, words in named:
            if mark := self.marks.search(words):
                raise Unfit(f"{name} holds {mark.group()}, which the model reads as a mark. Remove it.")

    def _tokens(self, text: str, border: int) -> _Row:
        ids, starts = tokenise(self.tokenizer, text)
        before, before_starts = tokenise(self.tokenizer, text[:border])
        if ids[: len(before)] == before:
            return _Row(ids, starts, len(before), recut=False)
        rest, rest_starts = tokenise(self.tokenizer, text[border:])
        joined = before + rest
        if decode(self.tokenizer, joined) != decode(self.tokenizer, ids):
            raise Unfit(
                "the tokens of the prompt run into those of the answer and cannot be parted. "
                f"Write {self.key}: chatml, or a template that puts no space at the end of the prompt."
            )
        return _Row(joined, before_starts + [border + start for start in rest_starts], len(before), recut=True)

    @staticmethod
    def _changed(turns: Sequence[Turn], train_on: TrainOn) -> set[int]:
        """The assistant turns that are trained, or under "all" those that are not."""
        answers = [len(turns) - 1] if train_on == "last_answer" else range(len(turns))
        trained = train_on != "all"
        return {number for number in answers if turns[number].role == "assistant" and turns[number].trained is trained}

    def _spans(self, text: str, turns: Sequence[Turn], tools: Tools, wanted: set[int]) -> dict[int, _Span]:
        """The characters of the wanted assistant turns, with whatever the template writes up to the next turn."""
        spans = marked(self.tokenizer, turns, tools)
        if spans is None:
            return {number: self._by_prefix(text, turns, tools, number) for number in sorted(wanted)}
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        if len(spans) != len(answers):
            raise Unfit(
                f"the template marks {len(spans)} answers with generation, and there are {len(answers)}. "
                "Mark each assistant turn once."
            )
        return {number: _Span(*span) for number, span in zip(answers, spans, strict=True) if number in wanted}

    def _by_prefix(self, text: str, turns: Sequence[Turn], tools: Tools, number: int) -> _Span:
        before = render(self.tokenizer, turns[:number], tools, asked=True)
        up_to = render(self.tokenizer, turns[: number + 1], tools, asked=False)
        if not text.startswith(before) or not text.startswith(up_to):
            raise Unfit(
                "the template writes an earlier answer anew once others follow, so it cannot be trained. "
                "Write train_on: last_answer, or a template with generation markers."
            )
        return _Span(len(before), len(up_to))

    def _labelled(
        self, text: str, row: _Row, spans: dict[int, _Span], changed: set[int], *, everything: bool
    ) -> Answered:
        """The labels: of the changed turns, up to and with their stop tokens, or of ``everything`` but these."""
        labels = [IGNORED, *row.ids[1:]] if everything else [IGNORED] * len(row.ids)
        last, end = max(spans), 0
        for number, span in spans.items():
            # A token that begins before the answer is a part of what the template writes: it is not trained.
            first = bisect_left(row.starts, span.start)
            if number == last:
                first = max(first, row.answer)
            stop = self._stop(text, row, first, bisect_left(row.starts, span.end))
            if number == last:
                end = stop
            if number in changed:
                own = slice(first, stop + 1)
                labels[own] = [IGNORED] * (stop + 1 - first) if everything else row.ids[own]
        return Answered(row.ids, labels, row.answer, end, row.recut)

    def _stop(self, text: str, row: _Row, first: int, after: int) -> int:
        """The stop token that ends the turn of tokens [first, after): in it, or after it with only spaces between.

        A template may mark the words alone with {% generation %}; without the stop token the model would never end.
        """
        for index in range(after - 1, first - 1, -1):
            if row.ids[index] in self.stop_ids:
                return index
        for index in range(after, len(row.ids)):
            if row.ids[index] in self.stop_ids:
                return index
            if not text[row.starts[index] : [*row.starts, len(text)][index + 1]].isspace():
                break
        names = " or ".join(str(token) for token in self.tokenizer.convert_ids_to_tokens(list(self.stop_ids)))
        raise Unfit(f"the template ends an answer of it without {names}. Write {self.key}: chatml.")


@dataclass(frozen=True, slots=True)
class _Row:
    """A tokenised text: ids, the character at which each starts, and where the last answer begins."""

    ids: list[int]
    starts: list[int]
    answer: int
    recut: bool


@dataclass(frozen=True, slots=True)
class _Span:
    """Characters [start, end) of a rendered text."""

    start: int
    end: int


def fit(
    chat: Chat,
    conversation: Conversation,
    max_length: int,
    policy: Literal["drop", "error", "truncate_prompt"],
    train_on: TrainOn,
) -> Answered | TooLong:
    """The tokens of a conversation, within ``max_length`` or told to be too long. Raises Unfit as ``encode`` does.

    truncate_prompt: the first user turn loses tokens from its beginning, and all is rendered anew, so the template
    stays whole. No other turn is cut, least of all an answer. Drop and error are for who counts the rows.
    """
    row = chat.encode(conversation, train_on)
    whole = len(row.ids)
    first = next((number for number, turn in enumerate(conversation.turns) if turn.role == "user"), None)
    if whole > max_length and (policy != "truncate_prompt" or first is None):
        return TooLong(whole)
    cut = 0
    while len(row.ids) > max_length:
        assert first is not None
        turn = conversation.turns[first]
        starts = tokenise(chat.tokenizer, turn.content)[1]
        cut += len(row.ids) - max_length
        rest = turn.content[starts[cut] :] if cut < len(starts) else ""
        if not rest.strip():
            return TooLong(whole)
        turns = (*conversation.turns[:first], replace(turn, content=rest), *conversation.turns[first + 1 :])
        row = chat.encode(replace(conversation, turns=turns), train_on)
    return replace(row, cut=cut) if cut else row
