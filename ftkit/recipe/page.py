"""The reference of all recipe keys as Markdown, from the sections themselves: ``ftkit schema --markdown``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftkit.recipe.editor import json_schema
from ftkit.recipe.keys import brief, choices, in_words

Schema = Mapping[str, Any]

_HEAD = """\
# Recipe keys

Made by `ftkit schema --markdown`, from the sections that do the work. A key that is not listed is an error, and a
section that is left out has the defaults. A preset's own keys go before these defaults: `ftkit adapters` lists the
presets. `--set train.epochs=5` changes a key for one run. A key marked (classify), (pretrain) or (sft), or with two of
these, is read by that task, or by those two: a recipe of another task refuses it.
"""
# Where a section stands in a recipe; the rest of the order is that of the recipe.
_TITLES = {
    "Base": "`base: {model: …}`",
    "Scratch": "`base: {init: …}` (pretrain)",
    "Classify": "`task: {type: classify}`",
    "Words": "`task.words` (classify)",
    "Pretrain": "`task: {type: pretrain}`",
    "Sft": "`task: {type: sft}`",
    "Data": "`data`",
    "Docstrings": "`{docstrings: …}` as a source (pretrain, sft)",
    "Columns": "`data.columns`",
    "Clean": "`data.clean` (pretrain)",
    "Lora": "`adapter: {type: lora}`",
    "Ia3": "`adapter: {type: ia3}`",
    "Train": "`train`",
    "Eval": "`eval`",
    "Bound": "`gate.METRIC`",
    "Merge": "`merge`",
}


def markdown() -> str:
    """One table for the recipe, and one for each section."""
    schema = json_schema()
    definitions = schema["$defs"]
    parts = [_HEAD, *_section("The recipe", schema, definitions)]
    for name in (*_TITLES, *(name for name in definitions if name not in {*_TITLES, "Preset"})):
        parts += _section(_TITLES.get(name, f"`{name}`"), definitions[name], definitions)
    return "\n".join(parts)


def _section(title: str, section: Schema, definitions: Mapping[str, Schema]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{section['description']}\n"
    yield "| key | value | default | |"
    yield "| --- | --- | --- | --- |"
    required = section.get("required", ())
    for key, field in section["properties"].items():
        default = "required" if key in required else _default(field)
        values = " or ".join(dict.fromkeys(_values(field, definitions, alone=True)))
        yield f"| `{key}` | {_cell(values)} | {default} | {_cell(field.get('description', ''))} |"
    yield ""


def _values(field: Schema, definitions: Mapping[str, Schema], *, alone: bool) -> Iterator[str]:
    """What may stand there, in words; ``alone``: there is no other form. A section of its own is listed below."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        yield f"see {_TITLES[name].partition(' (')[0]}" if alone else f"`{brief(definitions[name])}`"
    elif "anyOf" in field or "oneOf" in field:
        forms = [form for form in (*field.get("anyOf", ()), *field.get("oneOf", ())) if form.get("type") != "null"]
        for form in forms:
            yield from _values(form, definitions, alone=len(forms) == 1)
    elif words := choices(field):
        yield ", ".join(words)
    elif isinstance(field.get("additionalProperties"), dict) and field.get("type") == "object":
        yield f"name: {' or '.join(_values(field['additionalProperties'], definitions, alone=True))}"
    else:
        yield in_words(field)


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None or isinstance(value, dict | list):
        return ""
    return f"`{_cell(str(value).lower() if isinstance(value, bool) else str(value))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
