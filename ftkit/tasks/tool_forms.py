"""How a chat template writes calls of tools, found out on small ones.

There is no table of model families: a model writes calls as the template that it was trained with does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.records import Turn
from ftkit.tasks.rendering import Unfit, render, tokenise
from ftkit.tasks.templates import special_ids
from ftkit.tasks.tool_calls import Call, CallForm, Slot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER, _PLAIN = Turn("user", "which of them?"), Turn("assistant", "the first")
# Whatever a template does not write as JSON shows: quotes, a line break, letters beyond ASCII, values that are no text.
_ARGUMENTS = {"words": 'a "b" \\ c\n<é>', "deep": {"list": [1, 2.5, True, None]}}
_CALLS: tuple[Mapping[str, Any], ...] = (
    {"name": "first_probe", "arguments": _ARGUMENTS},
    {"name": "second_probe", "arguments": {"count": 7}},
)
_TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": call["name"],
            "description": "looks up",
            "parameters": {"type": "object", "properties": {key: {"description": key} for key in call["arguments"]}},
        },
    }
    for call in _CALLS
)


def call_form(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    """How the tokenizer's chat template writes calls; None where it writes none, or not as JSON objects.

    Nor where it ends a turn with calls otherwise than one with words, as answers end with the latter's stop token.
    """
    try:
        frame = _frame(tokenizer)
        one = frame.inside(tokenizer, _CALLS[:1])
    except Unfit:
        return None
    first = None if one is None else _located(one, _CALLS[0])
    if one is None or first is None:
        return None
    begin, end = one[: first.start].strip(), one[first.end :].strip()
    between = _between(tokenizer, frame, first.shape, begin, end)
    marks = tokenise(tokenizer, begin + (between or "") + end)[0]
    form = CallForm(begin, between, end, first.shape, frozenset(marks) & special_ids(tokenizer))
    asked = Call(_CALLS[0]["name"], json.dumps(_ARGUMENTS, ensure_ascii=False))
    return form if form.read(one, [asked.name]) == ("", [asked]) else None


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands around an answer: the ``prompt`` before it, the ``opening`` that it begins with, its ``closing``."""

    prompt: str
    opening: str
    closing: str

    def inside(self, tokenizer: PreTrainedTokenizerBase, calls: Sequence[Mapping[str, Any]]) -> str | None:
        """An answer of these calls alone; None where it is framed otherwise. Raises Unfit as ``render`` does."""
        text = render(tokenizer, (_USER, Turn("assistant", "", calls=tuple(calls))), _TOOLS, asked=False)
        if not text.startswith(self.prompt) or not text.rstrip().endswith(self.closing):
            return None
        inner = text[len(self.prompt) :].rstrip().removesuffix(self.closing)
        return inner.lstrip().removeprefix(self.opening)


def _frame(tokenizer: PreTrainedTokenizerBase) -> _Frame:
    prompt = render(tokenizer, (_USER,), _TOOLS, asked=True)
    text = render(tokenizer, (_USER, _PLAIN), _TOOLS, asked=False)
    opening, _, closing = text[len(prompt) :].partition(_PLAIN.content)
    return _Frame(prompt, opening.strip(), closing.strip())


@dataclass(frozen=True, slots=True)
class _Located:
    """Characters [start, end) of a call's object."""

    start: int
    end: int
    shape: Mapping[str, Any]


def _between(
    tokenizer: PreTrainedTokenizerBase, frame: _Frame, shape: Mapping[str, Any], begin: str, end: str
) -> str | None:
    """What the template writes between two calls; None where it writes one alone, or ends the turn between them."""
    try:
        both = frame.inside(tokenizer, _CALLS)
    except Unfit:
        return None
    found = [] if both is None else [_located(both, call) for call in _CALLS]
    match found:
        case [_Located() as first, _Located() as second] if both is not None and first.end <= second.start:
            between = both[first.end : second.start].strip()
            same = (both[: first.start].strip(), both[second.end :].strip()) == (begin, end)
            ends = bool(frame.closing) and frame.closing in between
            return between if same and not ends and first.shape == second.shape == shape else None
    return None


def _located(text: str, call: Mapping[str, Any]) -> _Located | None:
    """The outermost JSON object that holds a call's name and its arguments once each."""
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, brace.start())
        except ValueError:
            continue
        shape = _shaped(value, call)
        slots = list(_slots(shape))
        if slots.count(Slot.NAME) == slots.count(Slot.ARGUMENTS) == 1:
            return _Located(brace.start(), end, shape)
    return None


def _shaped(value: Any, call: Mapping[str, Any]) -> Any:
    """A value with slots where it has the call's name and arguments."""
    for slot in Slot:
        if value == call[slot.value]:
            return slot
    return {key: _shaped(inner, call) for key, inner in value.items()} if isinstance(value, dict) else value


def _slots(shape: Any) -> Iterator[Slot]:
    if isinstance(shape, Slot):
        yield shape
    elif isinstance(shape, dict):
        for inner in shape.values():
            yield from _slots(inner)
