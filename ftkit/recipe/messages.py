"""What pydantic found, in the words of the recipe: which key, what was got, what to write instead.

Nearly all of it is "got X. Write Y.", and Y comes from the JSON Schema of the key, not from the error: so no wording of
pydantic's can come through, whatever kind of error it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from ftkit.errors import did_you_mean
from ftkit.recipe.keys import Keys, choices, in_words
from ftkit.recipe.schema import BROKEN_RULES, Recipe
from ftkit.recipe.tree import Flaw, Key, Node, show_key
from ftkit.recipe.yaml12 import resolve

_LONGEST = 60
_KEY_ITSELF = "[key]"  # how pydantic marks an error in a mapping's key


@dataclass(frozen=True, slots=True)
class _Found:
    """One of pydantic's errors, at the user's key path; ``in_key``: it is about the name of the last key."""

    kind: str
    key: Key
    context: dict[str, Any]
    in_key: bool


@cache
def recipe_keys() -> Keys:
    return Keys(Recipe.model_json_schema())


def flaws(error: ValidationError, root: Node) -> list[Flaw]:
    """Everything that pydantic refused, each thing once, at the line of its key."""
    data = root.plain()
    keys = recipe_keys()
    # In JSON mode and without the input: what was got is shown from the tree, as it was written.
    details = error.errors(include_url=False, include_input=False)
    found = [_locate(detail["type"], detail["loc"], detail.get("ctx", {}), data) for detail in details]
    above = {one.key[:length] for one in found for length in range(len(one.key))}
    said: dict[Flaw, None] = {}
    for one in found:
        if one.kind not in _SAID and one.key in above:
            continue  # follows from what is wrong below: the other forms of a union, a list that lacks its bad items
        for key, message in _say(one, keys, root, data):
            node = root.nearest(key)
            said[Flaw(node.file, node.line, show_key(key), message)] = None
    return list(said)


def _locate(kind: str, location: tuple[int | str, ...], context: dict[str, Any], data: Any) -> _Found:
    """Tells keys from the labels that pydantic puts between them (the tag of a union, the type of a branch)."""
    key: list[int | str] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        known = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if known:
            key.append(step)
            data = data[step]
        elif last and kind == "missing" and isinstance(data, dict):
            key.append(step)
    return _Found(kind, tuple(key), context, _KEY_ITSELF in location[-1:])


def _say(found: _Found, keys: Keys, root: Node, data: Any) -> Iterator[tuple[Key, str]]:
    if found.in_key or found.kind == "extra_forbidden":
        yield found.key, _unknown(found.key, keys, data)
    elif found.kind in _SAID:
        yield from _SAID[found.kind](found, keys, root, data)
    else:
        yield found.key, _wrong(found.key, keys, root, data)


def _broken(found: _Found, keys: Keys, root: Node, data: Any) -> Iterator[tuple[Key, str]]:
    for key, message in found.context["broken"]:
        yield (*found.key, *key), message


def _own_words(found: _Found, keys: Keys, root: Node, data: Any) -> Iterator[tuple[Key, str]]:
    """A section's own validator: a ValueError whose text ends with the fix."""
    yield found.key, str(found.context["error"])


def _absent(found: _Found, keys: Keys, root: Node, data: Any) -> Iterator[tuple[Key, str]]:
    example = keys.example(found.key, data)
    yield found.key, f'missing. Write a line such as "{found.key[-1]}: {example}".'


def _tag(found: _Found, keys: Keys, root: Node, data: Any) -> Iterator[tuple[Key, str]]:
    """The ``type`` of a union is missing, or names none of its members."""
    key = (*found.key, found.context["discriminator"].strip("'"))
    if root.nearest(key) is root.nearest(found.key):
        yield key, f'missing. Write a line such as "{key[-1]}: {keys.example(key, data)}".'
    else:
        yield key, _wrong(key, keys, root, data)


_SAID = {
    BROKEN_RULES: _broken,
    "value_error": _own_words,
    "missing": _absent,
    "union_tag_invalid": _tag,
    "union_tag_not_found": _tag,
}


def _unknown(key: Key, keys: Keys, data: Any) -> str:
    parent, word = key[:-1], str(key[-1])
    here = keys.here(parent, data)
    if parent == ("adapter",):
        here = sorted({*here, "preset"})
    meant = keys.meant(word, parent, here)
    hint = f" Did you mean {meant}?" if meant else ""
    return f"unknown key.{hint} Keys here: {', '.join(here)}."


def _wrong(key: Key, keys: Keys, root: Node, data: Any) -> str:
    forms = keys.forms(key, data)
    got = root.nearest(key)
    kinds = {form.get("type") for form in forms if not choices(form)}
    words = sorted(word for form in forms for word in choices(form))
    if "string" in kinds and isinstance(got.value, bool | int | float):
        return f'got {got.written}. Write "{got.written}" in quotes.'
    if words and isinstance(got.value, str):
        hint = did_you_mean(got.value, words)
        if not kinds:
            return f"{' '.join(filter(None, (f'got {show(got)}.', hint)))} Choices: {', '.join(words)}."
        if hint:
            return f"got {show(got)}. {hint}"
    if kinds & {"integer", "number"} and isinstance(got.value, str) and _is_number(got.value):
        return f"got {show(got)}, which is text. Write {got.value} without quotes."
    need = " or ".join(dict.fromkeys([*words, *(in_words(form) for form in forms if not choices(form))]))
    optional = key and got.value is None and not isinstance(key[-1], int) and not keys.required(key, data)
    return f"got {show(got)}. Write {need}{', or remove the key' if optional else ''}."


def _is_number(text: str) -> bool:
    try:
        return isinstance(resolve(text), int | float) and not isinstance(resolve(text), bool)
    except ValueError:
        return False


def show(node: Node) -> str:
    """A value as one would write it on a line, shortened."""
    if node.value is None:
        return "nothing"
    text = repr(node.value) if isinstance(node.value, str) else _flow(node)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _flow(node: Node) -> str:
    """The start of a list or mapping in flow style: what is longer than a line is cut off by the caller."""
    if isinstance(node.value, dict):
        return "{" + ", ".join(f"{key}: {_flow(child)}" for key, child in list(node.value.items())[:_LONGEST]) + "}"
    if isinstance(node.value, tuple):
        return "[" + ", ".join(_flow(child) for child in node.value[:_LONGEST]) + "]"
    return node.written or "null"
