"""What pydantic found, in the words of the recipe: which key, what was got, what to write instead.

Nearly all of it is "got X. Write Y.", and Y comes from the JSON Schema of the key, not from the error: so no wording of
pydantic's can come through, whatever kind of error it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from ftkit.errors import did_you_mean
from ftkit.evals.section import METRICS_OF
from ftkit.recipe.keys import Keys, Schema, brief, choices, in_words
from ftkit.recipe.rules import READ_BY
from ftkit.recipe.schema import BROKEN_RULES, Recipe
from ftkit.recipe.synonyms import SYNONYMS
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
    return _Found(kind, _path(kind, location, data), context, _KEY_ITSELF in location[-1:])


def _path(kind: str, location: tuple[int | str, ...], data: Any) -> Key:
    """Tells keys from the labels that pydantic puts between them (the tag of a union, the type of a branch).

    A label may be called as a key is. The reading that leads further into the data is right, or else to the later step.
    """
    if not location:
        return ()
    step, rest = location[0], location[1:]
    skipped = _path(kind, rest, data)
    if step in data if isinstance(data, dict) else isinstance(data, list) and step in range(len(data)):
        taken = (step, *_path(kind, rest, data[step]))
        return taken if len(taken) > len(skipped) else skipped
    # What is not there: a key that is missing, or one whose default breaks a rule.
    absent = not rest and kind in ("missing", BROKEN_RULES) and isinstance(data, dict)
    return (step,) if absent else skipped


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
    here = _of_the_task(keys.here(parent, data), parent, data)
    if parent == ("adapter",):
        here = sorted({*here, "preset"})
    name, form = keys.elsewhere(word, parent, data)
    meant = (name if name != word else "") if name and name not in here else keys.meant(word, parent, here)
    hint = f" Did you mean {meant}?" if meant else ""
    if name and name not in here:
        hint += f" It belongs to {form}." if name == word else f" That belongs to {form}."
    return f"unknown key.{hint} Keys here: {', '.join(here)}."


def _of_the_task(names: list[str], parent: Key, data: Any) -> list[str]:
    """Without the keys and metrics that another task than the recipe's reads."""
    task = data.get("task") if isinstance(data, dict) else None
    own = task.get("type") if isinstance(task, dict) else None
    measured = next((metrics for known, metrics in METRICS_OF.items() if known == own), None)
    if measured is None:
        return names
    others = {path for path, tasks in READ_BY.items() if own not in tasks}
    if parent[:1] in (("eval",), ("gate",)) or parent == ("train", "best_by"):
        known = {name for metrics in METRICS_OF.values() for name in metrics}
        others |= {(*parent, name) for name in known.difference(measured)}
    return [name for name in names if (*parent, name) not in others]


def _wrong(key: Key, keys: Keys, root: Node, data: Any) -> str:
    forms = keys.forms(key, data)
    got = root.nearest(key)
    kinds = {form.get("type") for form in forms if not choices(form)}
    words = sorted(word for form in forms for word in choices(form))
    if key[:2] in (("eval", "metrics"), ("train", "best_by")):
        words = _of_the_task(words, key, data)
    if _is_quoted(forms, got):
        return f'got {got.written}. Write "{got.written}" in quotes.'
    if words and isinstance(got.value, str):
        known = SYNONYMS.get(got.value, "")
        hint = f"Did you mean {known}?" if known in words else did_you_mean(got.value, words)
        if not kinds:
            return f"{' '.join(filter(None, (f'got {show(got)}.', hint)))} Choices: {', '.join(words)}."
        if hint:
            return f"got {show(got)}. {hint}"
    if kinds & {"integer", "number"} and isinstance(got.value, str) and _is_number(got.value):
        return f"got {show(got)}, which is text. Write {got.value} without quotes."
    need = _need(words, [form for form in forms if not choices(form)], got)
    optional = key and got.value is None and not isinstance(key[-1], int) and not keys.required(key, data)
    return f"got {show(got)}. Write {need}{', or remove the key' if optional else ''}."


def _is_quoted(forms: list[Schema], got: Node) -> bool:
    """Whether what was got would do as a text."""
    texts = [form for form in forms if form.get("type") == "string" and not choices(form)]
    written = isinstance(got.value, bool | int | float) and got.written
    return bool(written) and any(re.search(form.get("pattern", ""), str(written)) for form in texts)


def _need(words: list[str], forms: list[Schema], got: Node) -> str:
    """What to write. Where mappings are among several forms, each is told in brief, by the key that makes it one."""
    named = [form for form in forms if got.value in choices(form.get("properties", {}).get("type", {}))]
    if named:
        return brief(named[0])
    shown = [brief(form) if len(forms) > 1 and form.get("required") else in_words(form) for form in forms]
    least = ", at least one" if got.value == () and any(form.get("minItems") == 1 for form in forms) else ""
    if got.value == "" and any(form.get("minLength") for form in forms):
        least = " that is not empty"
    needed = list(dict.fromkeys([*words, *shown]))
    if len(needed) > 1:
        needed = [word for text in needed for word in (("true", "false") if text == "true or false" else (text,))]
    return " or ".join([", ".join(needed[:-1]), needed[-1]] if len(needed) > 1 else needed) + least


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
