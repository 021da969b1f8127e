"""The JSON Schema of a recipe, for editors that check and complete YAML."""

from __future__ import annotations

from typing import Any

from ftkit.recipe.schema import Recipe

ID = "urn:ftkit:recipe"


def json_schema() -> dict[str, Any]:
    """A recipe as people write it (JSON Schema 2020-12): with the short forms of ``base`` and ``adapter``.

    It knows each key by itself; rules that hold between keys are checked by ``ftkit check``.
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    adapter = schema["properties"]["adapter"]
    members = [form["$ref"].rpartition("/")[2] for form in adapter["oneOf"]]
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
    forms = adapter.pop("oneOf")
    adapter.pop("discriminator", None)
    name_only = {"type": "string", "description": "The name of a preset: a file in adapters/, without .yaml."}
    adapter["anyOf"] = [name_only, {"$ref": "#/$defs/Preset"}, *forms]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": ID, **schema, "title": "ftkit recipe"}
    return head


def _merged(members: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys of all members; one that several have may take any of their values. A preset has the defaults."""
    merged: dict[str, Any] = {}
    for properties in members:
        for name, schema in properties.items():
            merged.setdefault(name, []).append({key: value for key, value in schema.items() if key != "default"})
    return {name: forms[0] if len(forms) == 1 else {"anyOf": forms} for name, forms in merged.items()}
