"""The recipe as an object: its sections, and the rules that hold between them.

A new task joins the union ``ftkit.tasks.section.Task``, a new PEFT method ``ftkit.models.adapters.Adapter``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from ftkit.data.section import Data
from ftkit.evals.section import Eval, Gate
from ftkit.export.formats import FORMATS, parse
from ftkit.models.adapters import Adapter
from ftkit.models.scratch import Scratch
from ftkit.recipe import rules
from ftkit.recipe.rules import Broken
from ftkit.reference import ModelRef
from ftkit.section import Section
from ftkit.tasks.section import Merge, Task, Train

BROKEN_RULES = "broken_rules"  # the type of the error whose context lists what is broken


def _model(text: str) -> str:
    ModelRef.parse(text)
    return text


def _format(text: str) -> str:
    parse(text)
    return text


def _formats() -> str:
    """The formats by the types that they have."""
    names: dict[tuple[str, ...], list[str]] = {}
    for each in FORMATS:
        names.setdefault(each.types, []).append(each.name)
    return "; ".join(f"{', '.join(own)}: {', '.join(types)}" for types, own in names.items())


class Base(Section):
    """The model that the adapter is put on."""

    model: Annotated[str, AfterValidator(_model)] = Field(
        description="Hub id (organisation/name or organisation/name@revision), or a folder.",
        examples=["sentence-transformers/all-MiniLM-L6-v2"],
    )
    trust_remote_code: bool = Field(default=False, description="Run the Python code that the model's repository holds.")


def _spelled_out(value: Any) -> Any:
    return value if isinstance(value, dict) else {"model": value}


def _is_scratch(value: Any) -> str:
    if isinstance(value, dict):
        # Its other keys tell what is meant where init was forgotten.
        made = "init" in value or ("model" not in value and not Scratch.model_fields.keys().isdisjoint(value))
    else:
        made = isinstance(value, Scratch)
    return "scratch" if made else "model"


BaseOrScratch = Annotated[
    Annotated[Base, Tag("model")] | Annotated[Scratch, Tag("scratch")], Discriminator(_is_scratch)
]


class Recipe(Section):
    """One fine-tuning run: what is trained on what, how it is measured, and what it must reach to be merged."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
        max_length=64,
        description="Names the folder of its runs: runs/NAME.",
        examples=["sentiment"],
        json_schema_extra={"patternErrorMessage": "up to 64 of a-z, 0-9, -, _ and ., the first a letter or a digit"},
    )
    base: Annotated[BaseOrScratch, BeforeValidator(_spelled_out, json_schema_input_type=str | Base | Scratch)] = Field(
        description="The base model: a hub id[@revision] or a folder, or {model, trust_remote_code}; or {init, layers, "
        "hidden, vocab, …}: a model from scratch.",
        examples=["sentence-transformers/all-MiniLM-L6-v2"],
    )
    task: Task = Field(description="What is learned.", examples=["{type: classify}"])
    data: Data = Field(description="The rows.", examples=["{train: train.csv}"])
    adapter: Adapter | None = Field(
        None,
        validate_default=True,
        description="What is trained: the name of a preset, {preset: NAME, …} to change its keys, or all keys in full. "
        "Left out for a model from scratch, which is trained whole.",
        examples=["lora"],
    )
    train: Train = Field(Train(), description="How it is trained.")
    eval: Eval = Field(Eval(), description="What is measured on the test rows, and how.")
    gate: Gate = Field(
        default_factory=dict, description="Conditions on metrics. No merge unless all hold. Left out: none."
    )
    merge: bool | Merge = Field(
        default=True,
        description="Merge the adapter into the base after the gate, and prove it; or how: {into, tolerance}.",
    )

    export: tuple[Annotated[str, AfterValidator(_format)], ...] | None = Field(
        None,
        min_length=1,
        description="Formats to write the merged model in as well, FORMAT or FORMAT:TYPE; each is compared with it and "
        f"measured on the test rows. {_formats()}.",
        examples=['[safetensors, "gguf:q8_0"]'],
    )

    # A validator sees the sections above its own, where these are valid: each rule stands at the lowest key it reads.

    @field_validator("task")
    @classmethod
    def _task_rules(cls, task: Task, info: ValidationInfo) -> Task:
        _raise(rules.of_task(task, info.data.get("base")))
        return task

    @field_validator("data")
    @classmethod
    def _data_rules(cls, data: Data, info: ValidationInfo) -> Data:
        _raise(rules.of_data(data, info.data.get("task"), info.data.get("base")))
        return data

    @field_validator("adapter")
    @classmethod
    def _adapter_rules(cls, adapter: Adapter | None, info: ValidationInfo) -> Adapter | None:
        if "base" in info.data:
            _raise(rules.of_adapter(adapter, info.data["base"]))
        return adapter

    @field_validator("train")
    @classmethod
    def _train_rules(cls, train: Train, info: ValidationInfo) -> Train:
        _raise(rules.of_train(train, info.data.get("task"), info.data.get("data")))
        return train

    @field_validator("eval")
    @classmethod
    def _eval_rules(cls, section: Eval, info: ValidationInfo) -> Eval:
        _raise(rules.of_eval(section, info.data.get("task")))
        return section

    @field_validator("gate")
    @classmethod
    def _gate_rules(cls, gate: Gate, info: ValidationInfo) -> Gate:
        _raise(rules.of_gate(gate, info.data.get("eval"), info.data.get("task"), info.data.get("base")))
        return gate

    @field_validator("merge")
    @classmethod
    def _merge_rules(cls, merge: bool | Merge, info: ValidationInfo) -> bool | Merge:
        if merge and isinstance(info.data.get("base"), Scratch):
            raise ValueError("a model from scratch has no adapter to merge. Remove the key.")
        if isinstance(merge, Merge):
            _raise(rules.of_merge(merge, info.data.get("adapter"), info.data.get("data")))
        return merge

    @field_validator("export")
    @classmethod
    def _export_rules(cls, export: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        _raise(rules.of_export(export or (), info.data.get("task"), info.data.get("base"), info.data.get("merge")))
        return export

    @property
    def merging(self) -> Merge:
        """How the adapter is merged, where it is."""
        return self.merge if isinstance(self.merge, Merge) else Merge()


def _raise(broken: Iterable[Broken]) -> None:
    found = list(broken)
    if found:
        raise PydanticCustomError(BROKEN_RULES, "rules are broken", {"broken": found})
