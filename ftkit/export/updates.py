"""Which tensors of a base an adapter changes, and how: PEFT's names and rules, without PEFT.

``changes_of`` answers for a whole model; ``updates_of`` gives the updates alone. What they are made of is in
``adapter`` (files), ``methods`` (formulas) and ``tree`` (names that need the model's classes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem
from ftkit.export.adapter import AdapterFiles, Modules, NoStreamedForm, check_start, modules, read_adapter
from ftkit.export.matching import Maker
from ftkit.export.methods import Additive, Replaced, Tokens, Update
from ftkit.export.tensors import Stored
from ftkit.export.tree import Tree, like, tree_of, without_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "AdapterFiles",
    "Additive",
    "Changes",
    "NoStreamedForm",
    "Replaced",
    "Update",
    "changes_of",
    "read_adapter",
    "updates_of",
]

_IN_A_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of a base.

    ``updates``: by the names in the base's files, those of new tensors by the names of the model; ``renamed``: what
    tensors are called that are called otherwise in the result; ``dropped``: those that belong to a head which the
    model has no more; ``config``: the result's config.json, None where the base's own holds.
    """

    updates: dict[str, Update]
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    untied: bool = False
    """Whether the output embedding was the input's, and is a tensor of its own now."""


def updates_of(adapter: AdapterFiles, base: Mapping[str, Stored]) -> dict[str, Update]:
    """What an adapter does to the tensors of its base; as ``changes_of``, without what becomes of all others."""
    return changes_of(adapter, base).updates


def changes_of(adapter: AdapterFiles, base: Mapping[str, Stored], model: PreTrainedModel | None = None) -> Changes:
    """What an adapter does to its base.

    ``model``: the one that it was trained on where that is at hand; else its class is found where it is needed. Raises
    DataError where tensors of the adapter belong to none of the base's, do not fit them, or change nothing, and
    NoStreamedForm for what only PEFT can merge.
    """
    if model is None:
        check_start(adapter)
    found = modules(adapter)
    names = None if model is not None or adapter.config.get("target_parameters") else _alike(_wanted(found), base)
    maker = Maker(adapter, base, found, names, None)
    if names is None or maker.needs_tree():
        folder = next(iter(base.values())).file.parent
        whole = {name: stored for name, stored in found.whole.items() if not _IN_A_LAYER.search(name)}
        tree = tree_of(adapter, folder, base, whole) if model is None else like(without_weights(model), base)
        maker = Maker(adapter, base, found, None, tree)
    updates = maker.updates()
    if not updates:
        fix = "It holds no weights. Train it, or name another."
        raise DataError(f"{adapter.folder} changes nothing", [Problem("", "adapter", fix)])
    return _settled(maker, updates)


def _wanted(found: Modules) -> list[str]:
    return [*(f"{module}.weight" for module in found.adapted), *found.whole]


def _alike(wanted: Iterable[str], base: Mapping[str, Stored]) -> dict[str, str] | None:
    """The base's tensors by the model's names, where the two differ by one and the same start in all of them.

    None where that cannot be told from the names alone: outside of the layers there are heads and tied embeddings.
    """
    names = list(wanted)
    if not names or not all(map(_IN_A_LAYER.search, names)):
        return None
    parts = names[0].split(".")
    starts = [(".".join([*parts[:count], ""]), "") for count in range(len(parts) - 1)]
    starts[0] = ("", "")
    starts += [("", name.removesuffix(names[0])) for name in base if name.endswith(f".{names[0]}")]
    for drop, add in starts:
        if all(name.startswith(drop) and add + name.removeprefix(drop) in base for name in names):
            others = [start for start in starts if start != (drop, add) and _names(names[0], *start) in base]
            sure = not others or not drop + add
            # A base that lacks a prefix was saved without its head: its config.json names another class.
            return {name: _names(name, drop, add) for name in names} if sure and not drop else None
    return None


def _names(name: str, drop: str, add: str) -> str:
    return add + name.removeprefix(drop)


def _settled(maker: Maker, updates: dict[str, Update]) -> Changes:
    """The changes with what the model's tree says of all tensors: ties, names, heads, and config.json."""
    tree = maker.tree
    if tree is None:
        return Changes(updates)
    untied = _untie(maker, tree, updates)
    lacking = [name for name in tree.lacking() if name not in updates]
    if lacking:
        fix = f"Neither has {lacking[0]}. Name the base that the adapter was trained on."
        raise DataError(f"{maker.adapter.folder} and the base are no whole model", [Problem("", "--base", fix)])
    config = _base_config(maker)
    other = type(tree.model).__name__ not in (config.get("architectures") or [])
    written = {name: tree.written_as(name) for name in maker.base} if other else {}
    return Changes(
        updates,
        {name: new for name, new in written.items() if new is not None and new != name},
        tuple(name for name, new in written.items() if new is None and name not in updates),
        _config(maker, tree, updates, untied=untied),
        untied,
    )


def _untie(maker: Maker, tree: Tree, updates: dict[str, Update]) -> bool:
    """Gives the output a tensor of its own where it is no longer the embedding; whether that is so.

    In PEFT the update of one of two tied modules does not reach the other, unless tokens are trained or the adapter
    was made with ensure_weight_tying.
    """
    given, output, tied = tree.embeddings
    if not tied or output is None:
        return False
    shared = tree.names.get(given) or tree.names[output]
    own_given = updates.pop(given, None) or updates.pop(tree.names.get(given, given), None)
    own_output = updates.pop(tree.names.get(output, output), None) or updates.pop(output, None)
    if own_given is None and own_output is None:
        return False
    tying = bool(maker.adapter.config.get("ensure_weight_tying"))
    if tying or isinstance(own_given, Tokens) or _equal(own_given, own_output):
        kept = own_given or own_output
        assert kept is not None
        for name in (tree.names.get(given), tree.names.get(output)):
            if name is not None:
                updates[name] = kept
        return False
    stored = maker.base[shared]
    given_name, output_name = tree.names.get(given, given), tree.names.get(output, output)
    if own_given is not None:
        updates[given_name] = own_given
    if isinstance(own_output, Replaced):
        updates[output_name] = own_output
    elif own_output is not None or output_name not in maker.base:
        updates[output_name] = Replaced(stored, own_output)
    return True


def _equal(one: Update | None, other: Update | None) -> bool:
    """Whether two updates put the same values in the place of the base's."""
    if not isinstance(one, Replaced) or not isinstance(other, Replaced) or one.then or other.then:
        return False
    pairs = zip(one.values.blocks(), other.values.blocks(), strict=False)
    return one.values.nbytes == other.values.nbytes and all(bytes(mine) == bytes(theirs) for mine, theirs in pairs)


def _base_config(maker: Maker) -> dict[str, Any]:
    path = next(iter(maker.base.values())).file.parent / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _config(maker: Maker, tree: Tree, updates: Mapping[str, Update], *, untied: bool) -> dict[str, Any] | None:
    """config.json of the result, where it says something else than the base's."""
    before, config, own = _base_config(maker), _base_config(maker), tree.model.config
    config["architectures"] = [type(tree.model).__name__]
    if maker.adapter.config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        config.pop("num_labels", None)
        config["id2label"] = {str(number): label for number, label in own.id2label.items()}
        config["label2id"] = own.label2id
        config |= {"problem_type": own.problem_type} if own.problem_type else {}
    if untied:
        config["tie_word_embeddings"] = False
    given = tree.embeddings[0]
    embedding = updates.get(tree.names.get(given, given))
    rows = embedding.grown if isinstance(embedding, Tokens) else None
    rows = embedding.shape[0] if isinstance(embedding, Replaced) else rows
    if rows is not None and rows != tree.parameters[given][0]:
        section = config if "vocab_size" in config else config["text_config"]
        section["vocab_size"] = rows
    return None if config == before else config
