"""The keys of a recipe as its JSON Schema has them: what may stand where, in words, and what a wrong word meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ftkit.recipe.synonyms import OTHERWISE, SYNONYMS
from ftkit.recipe.tree import Key, show_key

Schema = Mapping[str, Any]


class Keys:
    """The keys of one JSON Schema, as pydantic makes it."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._definitions: Mapping[str, Schema] = schema.get("$defs", {})
        self.paths = tuple(dict.fromkeys(self._walk(schema, ())))

    def forms(self, key: Key, data: Any) -> list[Schema]:
        """What may stand at ``key``: a schema for each form. A union's type is read from ``data``, the recipe."""
        return self._fitting(*self._all_forms(key, data))

    def here(self, key: Key, data: Any) -> list[str]:
        """The keys that the mapping at ``key`` may have, sorted."""
        forms = self.forms(key, data)
        fixed = {name for form in forms for name in form.get("properties", {})}
        listed = {name for form in forms for name in form.get("propertyNames", {}).get("enum", ())}
        return sorted(fixed | listed)

    def required(self, key: Key, data: Any) -> bool:
        return any(key[-1] in form.get("required", ()) for form in self.forms(key[:-1], data))

    def example(self, key: Key, data: Any) -> str:
        """A value that may stand at ``key``, as one would write it."""
        properties = [form.get("properties", {}).get(key[-1], {}) for form in self.forms(key[:-1], data)]
        told = [str(example) for schema in properties for example in schema.get("examples", ())]
        allowed = [choice for form in self.forms(key, data) for choice in choices(form)]
        return (told or allowed or ["…"])[0]

    def meant(self, word: str, parent: Key, here: list[str]) -> str:
        """The key that ``word`` in the mapping ``parent`` was probably meant to be; empty where none is near."""
        plain, target = _meanings(word)
        for name in (plain, target, OTHERWISE.get(target)):
            if name in here and name != word:
                return name
        elsewhere = [path for path in self.paths if path[-1] == target and path[:-1] != parent]
        below = [path for path in elsewhere if path[: len(parent)] == parent]
        if 1 <= len(below or elsewhere) <= 3:
            return " or ".join(_shown(path, parent) for path in below or elsewhere)
        near = get_close_matches(plain, here, n=1, cutoff=0.6)
        if near:
            return near[0]
        far = get_close_matches(plain, sorted({str(path[-1]) for path in self.paths}), n=1, cutoff=0.8)
        found = [path for path in self.paths if far and path[-1] == far[0] and path[:-1] != parent]
        return " or ".join(_shown(path, parent) for path in found) if 1 <= len(found) <= 3 else ""

    def elsewhere(self, word: str, parent: Key, data: Any) -> tuple[str, str]:
        """The key that ``word`` names in other forms of the mapping ``parent``, and these in brief; or empty."""
        forms, value = self._all_forms(parent, data)
        fitting = self._fitting(forms, value)
        others: dict[str, list[str]] = {}
        for form in forms:
            for name in form.get("properties", {}) if form not in fitting else ():
                others.setdefault(name, []).append(brief(form))
        plain, target = _meanings(word)
        here = self.here(parent, data)
        near = [] if target in here or get_close_matches(plain, here) else get_close_matches(plain, others, n=1)
        found = [name for name in (plain, target, *near) if name in others]
        return (found[0], " or ".join(others[found[0]])) if found else ("", "")

    def _all_forms(self, key: Key, data: Any) -> tuple[list[Schema], Any]:
        """What may stand at ``key`` whatever stands there, and what stands there."""
        current = list(self._forms(self._root))
        for step in key:
            current = [form for schema in self._fitting(current, data) for form in self._below(schema, step)]
            data = _step(data, step)
        return current, data

    def _forms(self, schema: Schema) -> Iterator[Schema]:
        """The alternatives of a schema, references followed; without null, which is written by leaving the key out."""
        if "$ref" in schema:
            yield from self._forms(self._definitions[schema["$ref"].rpartition("/")[2]])
        elif "anyOf" in schema or "oneOf" in schema:
            for form in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
                yield from self._forms(form)
        elif schema.get("type") != "null":
            yield schema

    def _fitting(self, forms: list[Schema], data: Any) -> list[Schema]:
        """Of several mappings the one that the data means; all where it means none.

        It names its ``type``; without one it is the mapping that knows the most of its keys. A model from scratch is
        told from a base by ``init``, a key that it alone requires.
        """
        mappings = [form for form in forms if "properties" in form]
        if not isinstance(data, dict) or len(mappings) < 2:
            return forms
        if all("type" in form["properties"] for form in mappings):
            if data.get("type") is not None:
                fits = [form for form in mappings if form["properties"]["type"].get("const") == data["type"]]
            else:
                shared = [len(data.keys() & form["properties"].keys()) for form in mappings]
                fits = [form for form, count in zip(mappings, shared, strict=True) if count == max(shared) > 0]
        else:
            fits = [form for form in mappings if ("init" in form.get("required", ())) is ("init" in data)]
        return fits or forms

    def _below(self, form: Schema, step: str | int) -> Iterator[Schema]:
        if isinstance(step, int):
            yield from self._forms(form["items"]) if "items" in form else ()
        elif step in form.get("properties", {}):
            yield from self._forms(form["properties"][step])
        elif isinstance(form.get("additionalProperties"), dict):
            yield from self._forms(form["additionalProperties"])

    def _walk(self, schema: Schema, key: Key) -> Iterator[Key]:
        for form in self._forms(schema):
            for name, below in form.get("properties", {}).items():
                yield (*key, name)
                yield from self._walk(below, (*key, name))


def choices(form: Schema) -> list[str]:
    """The words that a form allows, where it is a choice of words."""
    return [form["const"]] if "const" in form else list(form.get("enum", ()))


def brief(form: Schema) -> str:
    """A mapping by the key that tells it from the others, as {type: classify} or {init: …}."""
    properties = form.get("properties", {})
    first = next(iter(properties), "…")
    key = "type" if "const" in properties.get("type", {}) else next(iter(form.get("required", ())), first)
    return "{" + f"{key}: {properties.get(key, {}).get('const', '…')}" + "}"


def in_words(form: Schema) -> str:
    """What a form that is no choice of words asks for, to follow "Write "."""
    kind = form.get("type")
    if kind == "string":
        return str(form.get("patternErrorMessage", "text"))
    if kind == "boolean":
        return "true or false"
    if kind in ("integer", "number"):
        whole = f"a multiple of {form['multipleOf']}" if "multipleOf" in form else "a whole number"
        return (whole if kind == "integer" else "a number") + _range(form)
    if kind == "array":
        least = f"at least {form['minItems']} " if form.get("minItems", 0) > 1 else ""
        return f"a list of {least}{_items(form.get('items', {}))}"
    names = sorted(form.get("properties", {}))
    return f"keys and values (keys: {', '.join(names)})" if names else "keys and values"


def _items(items: Schema) -> str:
    if choices(items):
        return ", ".join(sorted(choices(items)))
    if items.get("type") == "number":
        return f"numbers{_range(items)}"
    return "these" if "anyOf" in items else "texts"  # several forms of an item can stand without a list too


def _range(form: Schema) -> str:
    if "minimum" in form and "maximum" in form:
        return f" from {form['minimum']:g} to {form['maximum']:g}"
    bounds = {"minimum": "of at least", "exclusiveMinimum": "greater than", "maximum": "of at most"}
    bounds["exclusiveMaximum"] = "below"
    found = [f"{words} {form[name]:.10g}" for name, words in bounds.items() if name in form]
    return f" {' and '.join(found)}" if found else ""


def _step(data: Any, step: str | int) -> Any:
    if isinstance(data, dict) and step in data:
        return data[step]
    return data[step] if isinstance(data, list) and isinstance(step, int) and step < len(data) else None


def _meanings(word: str) -> tuple[str, str]:
    """A word as a key is spelled, and the key that other tools call so."""
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    return plain, SYNONYMS.get(plain, plain)


def _shown(path: Key, parent: Key) -> str:
    return f"{path[0]} at the top level" if len(path) == 1 and parent else show_key(path)
