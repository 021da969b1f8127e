"""Modules of a model by their full names: the real tree decides what is head, what is tied, what a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftkit.errors import Problem, RecipeError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def head_modules(model: PreTrainedModel, lacking: Sequence[str]) -> tuple[str, ...]:
    """The largest modules all of whose parameters the checkpoint lacks, and the classifier itself in any case."""
    known = {"classifier", "score"} & {name for name, _ in model.named_children()}
    own = [name for name, _ in model.named_parameters() if name.split(".")[0] in known]
    return missing_modules(model, [*lacking, *own])


def missing_modules(model: PreTrainedModel, lacking: Sequence[str]) -> tuple[str, ...]:
    """The largest modules all of whose parameters stand in ``lacking``."""
    missing = set(lacking)
    whole = [
        name
        for name, module in model.named_modules()
        if name and (own := [f"{name}.{inner}" for inner, _ in module.named_parameters()]) and missing.issuperset(own)
    ]
    return tuple(name for name in whole if not is_within(name, [other for other in whole if other != name]))


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether ``name`` is one of ``modules`` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def outer_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """What a language model has beside its base model: all of its head, under whatever names."""
    return tuple(name for name, _ in model.named_children() if name != model.base_model_prefix)


def named(model: PreTrainedModel, endings: Sequence[str]) -> tuple[str, ...]:
    """The modules with weights whose full names end with one of ``endings``, the key adapter.modules_to_save.

    Raises RecipeError where an ending names none.
    """
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    problems = []
    for ending in endings:
        if not any(f".{name}".endswith(f".{ending}") for name in names):
            leaves = sorted({leaf for name in names if not (leaf := name.rpartition(".")[2]).isdigit()})
            fix = did_you_mean(ending, leaves) or f"Write one of: {', '.join(leaves)}."
            problems.append(Problem("", "adapter.modules_to_save", f"the base has no module {ending}. {fix}"))
    if problems:
        raise RecipeError("the adapter does not fit the base", problems)
    return tuple(name for name in names if any(f".{name}".endswith(f".{ending}") for ending in endings))


def embeddings(model: PreTrainedModel) -> tuple[str, str | None, bool]:
    """The full names of the input and the output embedding (None where there is none), and whether they are tied."""
    given, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is given.weight
    return _name_of(model, given), None if output is None else _name_of(model, output), tied


def _name_of(model: PreTrainedModel, wanted: torch.nn.Module) -> str:
    names: dict[torch.nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[wanted]


def bare(kind: Any, folder: Any, *, trust_remote_code: bool) -> PreTrainedModel:
    """The tree of the model in ``folder`` without any weight, made from its configuration alone."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config, trust_remote_code=trust_remote_code)
    return model
