"""The JSON Schema of a recipe, for editors that check and complete YAML."""

from __future__ import annotations

from typing import Any

from ftkit.evals.section import METRICS_OF
from ftkit.recipe.rules import READ_BY
from ftkit.recipe.schema import Recipe

ID = "urn:ftkit:recipe"


def json_schema() -> dict[str, Any]:
    """A recipe as people write it (JSON Schema 2020-12): with the short forms of ``base`` and ``adapter``.

    It knows each key by itself; rules that hold between keys are checked by ``ftkit check``.
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    adapter = schema["properties"]["adapter"]
    adapter.pop("default")
    forms = [form for union in adapter.pop("anyOf") for form in union.get("oneOf", ())]  # null is written by no key
    members = [form["$ref"].rpartition("/")[2] for form in forms]
    for name in members:
        definitions[name]["required"] = sorted({"type", *definitions[name].get("required", ())})
    definitions["Preset"] = {
        "title": "Preset",
        "description": "A preset, and the keys that differ from it.",
        "type": "object",
        "properties": {
            "preset": {"type": "string", "description": "The name of a file in adapters/, without .yaml."},
            **_merged([definitions[name]["properties"] for name in members]),
        },
        "required": ["preset"],
        "additionalProperties": False,
    }
    name_only = {"type": "string", "description": "The name of a preset: a file in adapters/, without .yaml."}
    adapter["anyOf"] = [name_only, {"$ref": "#/$defs/Preset"}, *forms]
    _name_tasks(schema)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": ID, **schema, "title": "ftkit recipe"}
    return head


def _name_tasks(schema: dict[str, Any]) -> None:
    """Says of a key or metric that not all tasks read which tasks do."""
    for key, tasks in READ_BY.items():
        section = schema
        for step in key[:-1]:
            section = schema["$defs"][section["properties"][step]["$ref"].rpartition("/")[2]]
        field = section["properties"][key[-1]]
        field["description"] = f"({', '.join(tasks)}) {field['description']}"
    listed = "; ".join(f"{task}: {', '.join(metrics)}" for task, metrics in METRICS_OF.items())
    for field in (schema["$defs"]["Eval"]["properties"]["metrics"], schema["properties"]["gate"]):
        field["description"] += f" {listed}."


def _merged(members: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys of all members; one that several have may take any of their values. A preset has the defaults."""
    merged: dict[str, Any] = {}
    for properties in members:
        for name, schema in properties.items():
            merged.setdefault(name, []).append({key: value for key, value in schema.items() if key != "default"})
    return {name: forms[0] if len(forms) == 1 else {"anyOf": forms} for name, forms in merged.items()}
