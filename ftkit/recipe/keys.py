"""The keys of a recipe as its JSON Schema has them: what may stand where, in words, and what a wrong word meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ftkit.recipe.tree import Key, show_key

Schema = Mapping[str, Any]

# What other tools call it.
SYNONYMS = {
    "base_model": "base",
    "base_model_name_or_path": "base",
    "model": "base",
    "model_id": "base",
    "model_name": "base",
    "model_name_or_path": "base",
    "dataset": "data",
    "datasets": "data",
    "peft": "adapter",
    "lora": "adapter",
    "training": "train",
    "trainer": "train",
    "evaluation": "eval",
    "gates": "gate",
    "rank": "r",
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "lora_target": "targets",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "init_lora_weights": "init",
    "loraplus_lr_ratio": "lr_ratio",
    "load_in_4bit": "quantize",
    "quantization": "quantize",
    "quantise": "quantize",
    "feedforward_modules": "feedforward",
    "method": "type",
    "peft_type": "type",
    "task_type": "type",
    "lr": "learning_rate",
    "batch": "batch_size",
    "train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "epoch": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "n_epochs": "epochs",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "scheduler": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "bf16": "precision",
    "fp16": "precision",
    "dtype": "precision",
    "torch_dtype": "precision",
    "random_seed": "seed",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "eval_set": "valid",
    "validation_split": "valid",
    "train_file": "train",
    "test_file": "test",
    "text_column": "text",
    "label_column": "label",
    "classes": "labels",
    "label_names": "labels",
    "multilabel": "multi_label",
    "metric": "metrics",
    "minimum": "min",
    "maximum": "max",
}


class Keys:
    """The keys of one JSON Schema, as pydantic makes it."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._definitions: Mapping[str, Schema] = schema.get("$defs", {})
        self.paths = tuple(dict.fromkeys(self._walk(schema, ())))

    def forms(self, key: Key, data: Any) -> list[Schema]:
        """What may stand at ``key``: a schema for each form. A union's type is read from ``data``, the recipe."""
        current = list(self._forms(self._root))
        for step in key:
            current = [form for schema in self._fitting(current, data) for form in self._below(schema, step)]
            data = _step(data, step)
        return self._fitting(current, data)

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
        plain = word.strip().lower().replace("-", "_").replace(" ", "_")
        target = SYNONYMS.get(plain, plain)
        for name in (plain, target):
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
        """Of several mappings the one whose ``type`` the data names; all where it names none."""
        named = data.get("type") if isinstance(data, dict) else None
        fits = [form for form in forms if form.get("properties", {}).get("type", {}).get("const") == named]
        return fits if named is not None and fits else forms

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


def in_words(form: Schema) -> str:
    """What a form that is no choice of words asks for, to follow "Write "."""
    kind = form.get("type")
    if kind == "string":
        return str(form.get("patternErrorMessage", "text"))
    if kind == "boolean":
        return "true or false"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(form)
    if kind == "array":
        items = form.get("items", {})
        least = f"at least {form['minItems']} " if form.get("minItems", 0) > 1 else ""
        return f"a list of {least}{'texts' if not choices(items) else ', '.join(sorted(choices(items)))}"
    names = sorted(form.get("properties", {}))
    return f"keys and values (keys: {', '.join(names)})" if names else "keys and values"


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


def _shown(path: Key, parent: Key) -> str:
    return f"{path[0]} at the top level" if len(path) == 1 and parent else show_key(path)
