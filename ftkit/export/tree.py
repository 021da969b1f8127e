"""The model that an adapter was trained on, without weights: which of its tensors are which of the base's files.

Most merges do without it, and so without importing transformers: names that end alike are enough. It is asked where
they are not: for embeddings, heads and what is tied, for stacked experts, and where transformers renames at loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem
from ftkit.export.adapter import AdapterFiles, NoStreamedForm
from ftkit.export.tensors import Stored
from ftkit.models.modules import embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# PEFT's names of tasks, and the classes of transformers that load a base for them.
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices in files that are one tensor of the model [experts, rows, columns].

    ``sources``: those that stand one below the other in each expert; in each, the experts' names in the base.
    """

    sources: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """``model`` has no weights. ``names``: of its tensors, the one in the base's files; ``stacks``: of several.

    ``parameters``: the shapes of all, those of tied ones under each of their names.
    """

    model: PreTrainedModel
    parameters: dict[str, tuple[int, ...]]
    names: dict[str, str]
    stacks: dict[str, Stack]
    other: frozenset[str]
    """Tensors that transformers makes of several in another way."""

    def __contains__(self, name: str) -> bool:
        return name in self.parameters

    @property
    def embeddings(self) -> tuple[str, str | None, bool]:
        """The tensors of the input and the output embedding (None where there is none), and whether they are tied."""
        given, output, tied = embeddings(self.model)
        return f"{given}.weight", output and f"{output}.weight", tied

    def is_transposed(self, module: str) -> bool:
        """Whether a module's weight is stored (in x out), as GPT-2's are, or those of some experts."""
        from transformers.pytorch_utils import Conv1D

        found = self.model.get_submodule(module)
        return isinstance(found, Conv1D) or bool(getattr(found, "is_transposed", False))

    def lacking(self) -> list[str]:
        """Parameters that the base has under none of their names."""
        have = {*self.names, *self.stacks, *self.other}
        aliases: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        return [name for names in aliases.values() if not have & {*names} for name in names]

    def written_as(self, name: str) -> str | None:
        """The name of a tensor of the base in a file of this model; None where it belongs to another head.

        A base that was saved without what is around it lacks the prefix that its tensors have in this model.
        """
        own = {child for child, _ in self.model.named_children()}
        first = name.partition(".")[0]
        if first in own or first in dict(self.model.named_parameters(recurse=False)):
            return name
        prefix = self.model.base_model_prefix
        if prefix in own and first in {child for child, _ in self.model.get_submodule(prefix).named_children()}:
            return f"{prefix}.{name}"
        return name if name in self.names.values() else None


def tree_of(adapter: AdapterFiles, folder: Path, base: Mapping[str, Stored], whole: Mapping[str, Stored]) -> Tree:
    """The tree of the base in ``folder`` as the adapter's configuration says it was loaded.

    ``whole``: the tensors that the adapter replaces; a classifier has as many labels as they have rows. Raises
    DataError where there is no such model.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    task = adapter.config.get("task_type")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(folder, str(error).strip().splitlines()[0]) from error
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        return like(_classifier(adapter, folder, config, whole), base)
    name = next(iter(config.architectures or []), None)
    if name is None or name.endswith("Model"):  # saved without a head
        mapping = adapter.config.get("auto_mapping") or {}
        name = _CLASSES.get(str(task)) or mapping.get("base_model_class") or name
    if name is None or not hasattr(transformers, name):
        raise _unusable(folder, f"neither its config.json nor the adapter says which class it is ({name})")
    return like(_bare(getattr(transformers, name), config, folder), base)


def like(model: PreTrainedModel, base: Mapping[str, Stored]) -> Tree:
    """The tree of a model, which need not have weights, over a base's files: names as transformers renames them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    state = model.state_dict()
    names: dict[str, str] = {}
    made: dict[str, dict[str, list[str]]] = {}
    by: dict[str, Any] = {}
    for name in base:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if pattern is None:
            names |= {target: name} if target in state else {}
            continue
        by[target] = next(rule for rule in converters if pattern in rule.source_patterns)
        made.setdefault(target, {}).setdefault(pattern, []).append(name)
    stacks = {target: stack for target, parts in made.items() if (stack := _stack(by[target], parts))}
    named = model.named_parameters(remove_duplicate=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in named}
    return Tree(model, shapes, names, stacks, frozenset(made) - frozenset(stacks))


def _stack(rule: Any, parts: Mapping[str, list[str]]) -> Stack | None:
    """What a rule of transformers makes of the tensors ``parts``, by its patterns; None where it is no stack."""
    from transformers.core_model_loading import dot_natural_key

    done = [(type(operation).__name__, operation.dim) for operation in rule.operations]
    if done not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        return None
    if set(parts) != set(rule.source_patterns):
        return None
    return Stack(tuple(tuple(sorted(parts[pattern], key=dot_natural_key)) for pattern in rule.source_patterns))


def _classifier(adapter: AdapterFiles, folder: Path, config: Any, whole: Mapping[str, Stored]) -> PreTrainedModel:
    """The only model of the adapter's task whose parameters have the shapes of ``whole``."""
    import transformers

    kind = getattr(transformers, _CLASSES[str(adapter.config["task_type"])])
    for labels in sorted({stored.shape[0] for stored in whole.values() if stored.shape}):
        config.num_labels = labels
        model = _bare(kind, config, folder)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if all(shapes.get(name, stored.shape) == stored.shape for name, stored in whole.items()):
            _name_labels(model, adapter.folder / "labels.json")
            return model
    names = ", ".join(list(whole)[:3]) or "no head at all"
    fix = f"It holds {names}, which fits no {kind.__name__} of {folder}. Name the base that it was trained on."
    raise DataError(f"{adapter.folder} does not fit the base", [Problem("", "--base", fix)])


def _name_labels(model: PreTrainedModel, path: Path) -> None:
    """Takes the labels' names from what ftkit wrote beside the adapter."""
    if not path.exists():
        return
    told = json.loads(path.read_text(encoding="utf-8"))
    if len(told["labels"]) == model.config.num_labels:
        model.config.id2label = dict(enumerate(told["labels"]))
        model.config.label2id = {label: place for place, label in enumerate(told["labels"])}
        several = "multi_label_classification"
        model.config.problem_type = several if told.get("multi_label") else "single_label_classification"


def _bare(kind: Any, config: Any, folder: Path) -> PreTrainedModel:
    import torch

    try:
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except (ValueError, ImportError) as error:
        raise _unusable(folder, str(error).strip().splitlines()[0]) from error
    return model


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration as ``model``, an adapter around it aside, without weights."""
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.device("meta"):
        bare: PreTrainedModel = type(inner)(inner.config)
    return bare


def check_other(tree: Tree, name: str) -> None:
    """Raises NoStreamedForm for a tensor that the files hold in parts that are put together in another way."""
    if name in tree.other:
        raise NoStreamedForm(f"{name}, which transformers makes of several tensors at loading")


def _unusable(folder: Path, why: str) -> DataError:
    fix = f"{why}. Name the folder of the model that the adapter was trained on."
    return DataError(f"{folder} cannot be read as a model", [Problem("", "--base", fix)])
