"""Turns of a conversation and the tools on offer, from the forms in which data sets write them.

A turn is {"role", "content"} (OpenAI, TRL) or {"from", "value"} (ShareGPT). Nothing is guessed: what is neither is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ftkit.data.cells import listed, no_unicode, short
from ftkit.errors import did_you_mean
from ftkit.records import Turn

Role = Literal["system", "user", "assistant", "tool"]

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CALLING = ("function_call", "tool_call")  # roles whose value is the JSON of one or several calls
_WEIGHTS = ("loss_weight", "weight", "train")


class RowError(Exception):
    """What is wrong with a row, in words that end with the fix, and the column that it is about."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


def read_turns(value: Any, column: str) -> tuple[Turn, ...]:
    """The turns of a list of messages. Empty for null.

    ``loss_weight``, ``weight`` or ``train`` (0 or 1, false or true) of a message says whether it is trained.
    Raises RowError for what is no list of messages, an unknown role, content that is no text, a weight between 0 and 1
    and a call that is none.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(column, f'got {short(value)}. Write a list of turns: [{{"role": "user", "content": …}}, …].')
    turns = []
    for number, message in enumerate(value, 1):
        try:
            turns.append(_turn(message))
        except ValueError as error:
            raise RowError(column, f"turn {number}: {error}") from error
    return tuple(turns)


def check_order(turns: Sequence[Turn], column: str) -> None:
    """Raises RowError unless the last turn is the assistant's, and the first alone may be a system turn."""
    _check_system(turns, column)
    if turns and all(turn.role != "assistant" for turn in turns):
        raise RowError(
            column, "no turn is the assistant's, so there is no answer to learn. Add one, or remove the row."
        )
    if turns and turns[-1].role != "assistant":
        message = f"the last turn is the {turns[-1].role}'s. End with the assistant's turn, or remove the row."
        raise RowError(column, message)


def check_asked(turns: Sequence[Turn], column: str) -> None:
    """Raises RowError where the turns leave nothing to answer, or a system turn is not the first."""
    _check_system(turns, column)
    if not any(said(turn).strip() for turn in turns):
        raise RowError(column, "there is nothing to answer. Write a prompt, or remove the row.")
    if turns[-1].role == "system":
        raise RowError(column, "the last turn is the system's. End with the user's turn, or remove the row.")


def read_tools(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    """The JSON schemas of tools: a list of objects, or a text that holds one as JSON; none for null and "".

    A bare {"name", "description", "parameters"} is put into {"type": "function", "function": …}. Raises RowError for
    anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise RowError(column, f"is no JSON: {error}. Write a list of tools as JSON.") from error
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(column, f"got {short(value)}. Write a list of tools.")
    for number, tool in enumerate(value, 1):
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            message = f'tool {number}: got {short(tool)}. Write an object such as {{"name": …, "parameters": …}}.'
            raise RowError(column, message)
    if wrong := no_unicode(json.dumps(value, ensure_ascii=False)):
        raise RowError(column, wrong)
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)


def said(turn: Turn) -> str:
    """What a turn says, as plain text: its content, and its calls as JSON below it."""
    calls = (json.dumps(call, ensure_ascii=False) for call in turn.calls)
    return "\n".join(part for part in (turn.content, *calls) if part)


def plain_text(turns: Sequence[Turn]) -> str:
    """A single user turn as it is; else "role: content" for each turn, with blank lines between."""
    if len(turns) == 1 and turns[0].role == "user":
        return said(turns[0])
    return "\n\n".join(f"{turn.role}: {said(turn)}" for turn in turns)


def _check_system(turns: Sequence[Turn], column: str) -> None:
    for number, turn in enumerate(turns[1:], 2):
        if turn.role == "system":
            raise RowError(
                column, f"turn {number} is a system turn, which only the first can be. Move it to the start."
            )


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f'got {short(message)}. Write an object: {{"role": "user", "content": …}}.')
    name = message.get("role", message.get("from"))
    known = name.lower() if isinstance(name, str) else ""
    role = _ROLES.get(known)
    if role is None:
        raise ValueError(_unknown_role(name, message))
    value = message.get("content", message.get("value"))
    if known in _CALLING:
        content, calls = "", _calls_of_value(value)
    else:
        content, calls = _content(value), _calls_of_message(message)
    if calls and role != "assistant":
        raise ValueError(f"the {role} calls a tool, which only the assistant can. Remove its calls.")
    if value is None and not calls:
        raise ValueError(f"has no content. Keys of this turn: {listed(list(message))}. Write its content.")
    turn = Turn(role, content, _is_trained(message), calls)
    if wrong := no_unicode(said(turn)):
        raise ValueError(wrong)
    return turn


def _unknown_role(name: Any, message: Mapping[str, Any]) -> str:
    if name is None:
        return f"has no role. Keys of this turn: {listed(list(message))}. Write role and content."
    hint = did_you_mean(name.lower(), _ROLES) if isinstance(name, str) else ""
    return f"the role {short(name)} is not known. {hint or 'Roles here: system, user, assistant, tool.'} Correct it."


def _content(value: Any) -> str:
    """The text of a content: itself, or its typed parts in a row."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"its content is {short(value)}, which is no text. Write it in quotes.")
    texts = []
    for part in value:
        text = part.get("text", part.get("value")) if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise ValueError(f"has a part of type {kind}, and text alone can be trained. Remove the part, or the row.")
        if not isinstance(text, str):
            raise ValueError(f'a part of it is {short(part)}. Write {{"type": "text", "text": …}}.')
        texts.append(text)
    return "".join(texts)


def _is_trained(message: Mapping[str, Any]) -> bool:
    given = [key for key in _WEIGHTS if message.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} say both whether it is trained. Keep one.")
    weight = message[given[0]] if given else 1
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise ValueError(f"{given[0]} is {short(weight)}. Write 0 or 1: a turn is trained, or it is not.")
    return bool(weight)


def _calls_of_message(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The calls of a message in OpenAI's form, today's (tool_calls) or the older one (function_call)."""
    calls = message.get("tool_calls")
    if calls is None:
        calls = [] if message.get("function_call") is None else [message["function_call"]]
    if not isinstance(calls, list):
        raise ValueError(f"tool_calls is {short(calls)}. Write a list of calls.")
    return tuple(_call(call.get("function", call) if isinstance(call, dict) else call) for call in calls)


def _calls_of_value(value: Any) -> tuple[Mapping[str, Any], ...]:
    calls = _from_json(value, "its value")
    return tuple(map(_call, calls if isinstance(calls, list) else [calls]))


def _call(call: Any) -> Mapping[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise ValueError(f'got the call {short(call)}. Write {{"name": …, "arguments": {{…}}}}.')
    arguments = call.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    arguments = _from_json(arguments, f"arguments of {call['name']}")
    if not isinstance(arguments, dict):
        raise ValueError(f'arguments of {call["name"]} are {short(arguments)}. Write an object: {{"NAME": value}}.')
    return {"name": call["name"], "arguments": arguments}


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: no JSON ({error}). Write it as JSON.") from error
