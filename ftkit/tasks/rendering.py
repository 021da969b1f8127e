"""Turns to text by the tokenizer's chat template, and text to token ids with the character at which each starts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING_ENDS = "</think>"

Tools = Sequence[Mapping[str, Any]]


class Unfit(Exception):
    """Why a row cannot be used, with the fix. Who goes through the rows collects these."""


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], tools: Tools, *, asked: bool) -> str:
    """The turns as the template writes them; ``asked``: with what it puts before the answer that comes next.

    Raises Unfit where the template refuses them.
    """
    return str(_rendered(tokenizer, turns, tools, asked=asked)[0])


def marked(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], tools: Tools) -> list[tuple[int, int]] | None:
    """The spans of characters that the template marks with {% generation %}, in order; None where it has no markers."""
    if not _MARKERS.search(tokenizer.get_chat_template(None, list(tools) or None)):
        return None
    return [(start, end) for start, end in _rendered(tokenizer, turns, tools, asked=False)[1]]


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], tools: Tools, *, asked: bool) -> Any:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    offered = [dict(tool) for tool in tools] or None  # templates ask whether there are tools: an empty list is some
    try:
        template = tokenizer.get_chat_template(None, offered)
        texts, spans = render_jinja_template(
            conversations=[[as_message(turn) for turn in turns]],
            tools=offered,
            chat_template=template,
            add_generation_prompt=asked,
            return_assistant_tokens_mask=bool(_MARKERS.search(template)),
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        # A template is a program, and fails as one.
        message = str(error).strip().rstrip(".")
        raise Unfit(f"the template refuses it: {message}. Change the row, or name another template.") from error
    return texts[0], spans[0] if spans else []


def as_message(turn: Turn) -> dict[str, Any]:
    """A turn in the form that templates read."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.calls:
        message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in turn.calls]
    return message


def left_out(text: str, turns: Sequence[Turn], tools: Tools) -> str | None:
    """What a text rendered from turns does not say, such as "the system turn"; None where all is there.

    White space does not count. Turns stand in order, but a system turn may stand anywhere: templates of Mistral put it
    into the last turn. What an earlier answer reasons (up to </think>) may be left out, as Qwen3's template does.
    """
    squeezed, position = _squeezed(text), 0
    for number, turn in enumerate(turns):
        earlier = turn.role == "assistant" and number < len(turns) - 1
        for words in _forms(turn.content, earlier=earlier):
            found = squeezed.find(words, 0 if turn.role == "system" else position)
            if found >= 0:
                break
        else:
            return f"the {turn.role} turn" + (f" {number + 1}" if turn.role != "system" else "")
        if turn.role != "system":
            position = found + len(words)
        for name in (str(call["name"]) for call in turn.calls):
            if _squeezed(name) not in squeezed[position:]:
                return f"the call of {name}"
    names = (str((tool.get("function") or tool).get("name", "")) for tool in tools)
    return next((f"the tool {name}" for name in names if _squeezed(name) not in squeezed), None)


def _forms(content: str, *, earlier: bool) -> list[str]:
    """How a template may write a content: as it is, as a JSON text, and an earlier answer without its reasoning."""
    forms = [content, json.dumps(content, ensure_ascii=False)[1:-1]]
    if earlier and _REASONING_ENDS in content:
        forms.append(content.rpartition(_REASONING_ENDS)[2])
    return [_squeezed(form) for form in forms]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The token ids of a rendered text, whose marks become special tokens, and the character at which each starts.

    Starts never fall, and each character belongs to a token: offsets that a tokenizer has trimmed (to leave the space
    out that is in the token) begin where the token before them ends.
    """
    found = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    starts: list[int] = []
    covered = 0
    for start, end in found["offset_mapping"]:
        starts.append(max(min(start, covered), starts[-1] if starts else 0))
        covered = max(covered, end)
    return list(found["input_ids"]), starts


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, with the special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
