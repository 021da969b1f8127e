"""The updates of an adapter by the names of the base's tensors: which formula with which factors, for each module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ftkit.errors import DataError, Problem
from ftkit.export.adapter import AdapterFiles, Modules, NoStreamedForm, scale
from ftkit.export.methods import (
    Dora,
    LowRank,
    Offset,
    Replaced,
    Scaled,
    Stacked,
    Tokens,
    Update,
    expert,
    low_rank,
    vector,
)
from ftkit.export.tensors import Stored
from ftkit.export.tree import Stack, Tree, check_other

_Tensors = Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the updates of one adapter. Either ``names`` or the ``tree`` says what the base calls a tensor."""

    adapter: AdapterFiles
    base: Mapping[str, Stored]
    found: Modules
    names: dict[str, str] | None
    tree: Tree | None

    def needs_tree(self) -> bool:
        """Whether it stays open how a square weight is stored: PEFT's own flag is not true of all of the model."""
        told = {
            turned
            for module, kinds in self.found.adapted.items()
            if {"lora_A.weight", "lora_B.weight"} <= {*kinds} and (turned := self._by_shape(module, kinds)) is not None
        }
        return bool(told - {bool(self.adapter.config.get("fan_in_fan_out"))})

    def updates(self) -> dict[str, Update]:
        made: dict[str, Update] = {}
        unknown: list[str] = []
        for module, kinds in self.found.adapted.items():
            for name, update in self._of_module(module, kinds, unknown):
                made[name] = update
        for name, stored in self.found.whole.items():
            target = self._name(name) or (name if self.tree is not None and name in self.tree else None)
            if target is None:
                unknown.append(name)
                continue
            self._check_whole(name, target, stored)
            made[target] = Replaced(stored, made.get(target))
        if unknown:
            shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            fix = f"{shown}: the base has nothing of these names. Name the base that it was trained on."
            raise DataError(f"{self.adapter.folder} does not fit the base", [Problem("", "--base", fix)])
        return made

    def _name(self, name: str) -> str | None:
        if self.tree is None:
            return (self.names or {}).get(name)
        check_other(self.tree, name)
        found = self.tree.names.get(name)
        if found is None and name in self.tree:
            given, output, tied = self.tree.embeddings
            if tied and name in (given, output):  # the file holds it under one of its names
                return name
        return found

    def _stored(self, name: str) -> Stored | None:
        """The tensor of the base; for an output that is tied, the embedding that it shares."""
        if name in self.base or self.tree is None:
            return self.base.get(name)
        given, output, tied = self.tree.embeddings
        shared = self.tree.names.get(given) or self.tree.names.get(str(output))
        return self.base[shared] if tied and name in (given, output) and shared else None

    def _of_module(self, module: str, kinds: _Tensors, unknown: list[str]) -> Iterable[tuple[str, Update]]:
        parameters = self._parameters(module)
        if parameters is not None:
            return self._of_parameter(module, kinds, parameters)
        name = self._name(f"{module}.weight")
        if name is None:
            if self.tree is not None and module in dict(self.tree.model.named_modules()):
                raise NoStreamedForm(f"an update of {module}, which has no weight of that name")
            unknown.append(module)
            return []
        return self._of_weight(module, name, kinds)

    def _of_weight(self, module: str, name: str, kinds: _Tensors) -> Iterable[tuple[str, Update]]:
        if "token_adapter.trainable_tokens_delta" in kinds:
            yield name, self._tokens(module, name, kinds["token_adapter.trainable_tokens_delta"])
        elif "ia3_l" in kinds:
            yield from self._ia3(module, name, kinds["ia3_l"])
        elif "lora_embedding_A" in kinds:
            a, b = self._pair(module, kinds, "lora_embedding_A", "lora_embedding_B")
            self._check_shape(name, (a.shape[1], b.shape[0]))
            update = low_rank(a, b, scale(self.adapter.config, module), transposed=True)
            yield name, self._with_magnitude(module, name, update, kinds, columns=True)
        else:
            a, b = self._pair(module, kinds, "lora_A.weight", "lora_B.weight")
            if len(a.shape) != 2:
                raise NoStreamedForm(f"LoRA of the convolution {module}")
            factor = scale(self.adapter.config, module)
            turned = self._transposed(module, kinds)
            self._check_shape(name, (a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1]))
            update = low_rank(a, b, factor, transposed=turned)
            yield name, self._with_magnitude(module, name, update, kinds, columns=turned)
            if "lora_B.bias" in kinds:
                yield self._bias(module), Offset(vector(kinds["lora_B.bias"], factor))

    def _pair(self, module: str, kinds: _Tensors, first: str, second: str) -> tuple[Stored, Stored]:
        if first not in kinds or second not in kinds:
            fix = f"{module} has one of {first} and {second} only. Fetch or save the adapter again."
            raise DataError(f"{self.adapter.folder} is not whole", [Problem("", "adapter", fix)])
        return kinds[first], kinds[second]

    def _with_magnitude(self, module: str, name: str, update: LowRank, kinds: _Tensors, *, columns: bool) -> Update:
        magnitude = kinds.get("lora_magnitude_vector")
        if magnitude is None:
            return update
        stored = self.found.whole.get(f"{module}.weight") or self._stored(name)
        return Dora(update, vector(magnitude), stored if columns else None)

    def _bias(self, module: str) -> str:
        name = self._bias_of(module)
        if name is None:
            fix = f"It adds a bias to {module}, which has none. Train it without lora_bias."
            raise DataError(f"{self.adapter.folder} cannot be merged", [Problem("", "lora_bias", fix)])
        return name

    def _bias_of(self, module: str) -> str | None:
        weight = self._name(f"{module}.weight") or ""
        name = f"{weight.removesuffix('weight')}bias"
        return name if name in self.base else None

    def _ia3(self, module: str, name: str, learned: Stored) -> Iterable[tuple[str, Update]]:
        stored = self._stored(name)
        assert stored is not None
        if len(learned.shape) != 2 or len(stored.shape) != 2:
            raise NoStreamedForm(f"IA3 of the convolution {module}")
        before = learned.shape[0] == 1  # it scales what goes into the module
        turned = bool(self.adapter.config.get("fan_in_fan_out"))
        count = max(learned.shape)
        if stored.shape[0] != stored.shape[1] and self.tree is None:
            turned = stored.shape[0 if before else 1] == count
        elif self.tree is not None:
            turned = self.tree.is_transposed(module)
        by_rows = before == turned
        if stored.shape[0 if by_rows else 1] != count:
            self._misfit(name, f"({count})", stored.shape)
        yield name, Scaled(vector(learned), by_rows=by_rows)
        if not before and (bias := self._bias_of(module)) is not None:
            yield bias, Scaled(vector(learned), by_rows=True)

    def _tokens(self, module: str, name: str, values: Stored) -> Update:
        told = self.adapter.config.get("trainable_token_indices") or {}
        lists = [told] if isinstance(told, list) else [told[key] for key in told if f".{module}".endswith(f".{key}")]
        tokens = [int(token) for token in lists[0]] if lists else []
        stored = self._stored(name)
        assert stored is not None
        rows = max([stored.shape[0], *(token + 1 for token in tokens)])
        if len(tokens) != values.shape[0] or stored.shape[1:] != values.shape[1:]:
            self._misfit(name, values.shape, stored.shape)
        if not {*range(stored.shape[0], rows)} <= {*tokens}:
            fix = f"It trains token {rows - 1} of {name}, which has {stored.shape[0]} rows, and not all before it."
            raise DataError(
                f"{self.adapter.folder} does not fit the base", [Problem("", "--base", f"{fix} Name its base.")]
            )
        return Tokens(values, tokens, rows)

    def _parameters(self, module: str) -> list[str] | None:
        """The parameters of a module that PEFT targets as such, the one that was wrapped first in front."""
        targets = self.adapter.config.get("target_parameters")
        if not targets or self.tree is None:
            return None
        plain = module.replace(".base_layer", "")
        try:
            named = [name for name, _ in self.tree.model.get_submodule(plain).named_parameters(recurse=False)]
        except AttributeError:
            return None
        return [
            name for name in named if any(f".{plain}.{name}".endswith(f".{target}") for target in targets)
        ] or None  # fmt: skip

    def _of_parameter(self, module: str, kinds: _Tensors, targeted: list[str]) -> Iterable[tuple[str, Update]]:
        assert self.tree is not None
        plain, depth = module.replace(".base_layer", ""), module.count(".base_layer")
        name = f"{plain}.{targeted[-1 - depth]}"
        a, b = self._pair(module, kinds, "lora_A.weight", "lora_B.weight")
        factor = scale(self.adapter.config, name)
        check_other(self.tree, name)
        shape = self.tree.parameters[name]
        turned = len(shape) == 3 and self.tree.is_transposed(plain)
        expected = (a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1])
        if shape[-2:] != expected:
            self._misfit(name, expected, shape)
        stack = self.tree.stacks.get(name)
        stored = self.tree.names.get(name)
        if len(shape) == 2 and stored:
            yield stored, low_rank(a, b, factor)
        elif stored:
            own = [expert(a, b, factor, of=shape[0], place=place, transposed=turned) for place in range(shape[0])]
            yield stored, Stacked(own, shape)
        elif stack is not None and len(shape) == 3 and not turned:
            yield from self._of_stack(stack, a, b, factor, shape[0])
        else:
            raise NoStreamedForm(f"an update of {name}")

    def _of_stack(self, stack: Stack, a: Stored, b: Stored, factor: float, of: int) -> Iterable[tuple[str, Update]]:
        begin = 0
        for source in stack.sources:
            outputs = range(begin, begin + self.base[source[0]].shape[0])
            begin = outputs.stop
            for place, name in enumerate(source):
                yield name, expert(a, b, factor, of=of, place=place, outputs=outputs)

    def _by_shape(self, module: str, kinds: _Tensors) -> bool | None:
        """Whether the weight is stored (in x out), where its shape tells."""
        name = self._name(f"{module}.weight")
        stored = None if name is None else self._stored(name)
        a, b = kinds["lora_A.weight"], kinds["lora_B.weight"]
        if stored is None or len(a.shape) != 2 or b.shape[0] == a.shape[1]:
            return None
        return stored.shape == (a.shape[1], b.shape[0])

    def _transposed(self, module: str, kinds: _Tensors) -> bool:
        if self.tree is not None:
            return self.tree.is_transposed(module)
        told = self._by_shape(module, kinds)
        return bool(self.adapter.config.get("fan_in_fan_out")) if told is None else told

    def _check_whole(self, name: str, target: str, stored: Stored) -> None:
        """A tensor may be as the model has it, and an embedding may have other rows, for a tokenizer with others."""
        old = self._stored(target)
        expected = old.shape if old is not None and self.tree is None else None
        if self.tree is not None:
            embedded = name in self.tree.embeddings[:2]
            expected = self.tree.parameters.get(name)
            expected = (stored.shape[0], *expected[1:]) if expected and embedded else expected
        if expected is not None and expected != stored.shape:
            self._misfit(name, stored.shape, expected)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        stored = self._stored(name)
        if stored is not None and stored.shape != shape:
            # With resized embeddings, an adapter holds what it was trained on beside its update.
            replaced = next((other for key, other in self.found.whole.items() if self._name(key) == name), None)
            if replaced is None or replaced.shape != shape:
                self._misfit(name, shape, stored.shape)

    def _misfit(self, name: str, expected: object, found: object) -> None:
        fix = f"{name} is {found} there, and {expected} for the adapter. Name the base that it was trained on."
        raise DataError(f"{self.adapter.folder} does not fit the base", [Problem("", "--base", fix)])
