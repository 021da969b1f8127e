"""What an export is made of, and what every export format must offer."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from ftkit.errors import DataError, Problem
from ftkit.export.tensors import INDEX, read_index

Needs = Literal["head", "decoder", "adapter", "model"]
FACTS = "export.json"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LONG = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# All that a model's folder may hold beside its weights and the card: configuration, tokenizer, template, labels, code.
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")


@dataclass(frozen=True)
class Source:
    """A model's folder; and the adapter and the base that it was merged from, where these are known.

    ``trusted``: code of the model's own may run.
    """

    model: Path
    adapter: Path | None = None
    base: Path | None = None
    trusted: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises DataError where there is none that can be read."""
        path = self.model / "config.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fix = f"{error}. Name the folder of a model."
            raise DataError(f"{path} cannot be read", [Problem("", "config.json", fix)]) from None
        if not isinstance(found, dict):
            raise DataError(f"{path} cannot be read", [Problem("", "config.json", "It is no JSON object. Mend it.")])
        return found

    @cached_property
    def has(self) -> frozenset[Needs]:
        """What the model is, of what formats need."""
        found: set[Needs] = {"model"}
        names = [str(name) for name in self.config.get("architectures") or ()]
        if any(name.endswith("ForSequenceClassification") for name in names):
            found.add("head")
        if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
            found.add("decoder")
        if "decoder" in found and self.adapter is not None and self.base is not None:
            found.add("adapter")
        return frozenset(found)

    @cached_property
    def stored(self) -> str:
        """The number format that most of the weights are stored in; float32 where it is none of the usual three."""
        sizes: Counter[str] = Counter()
        for tensor in read_index(self.model).values():
            if tensor.dtype in _FLOATS:
                sizes[_FLOATS[tensor.dtype]] += tensor.nbytes
        return sizes.most_common(1)[0][0] if sizes else "float32"

    def copy_beside(self, folder: Path) -> None:
        """Copies everything but the weights and the card."""
        for file in sorted({path for pattern in _BESIDE for path in self.model.glob(pattern)}):
            if file.name not in (INDEX, FACTS) and file.is_file():
                shutil.copyfile(file, folder / file.name)


class Format(Protocol):
    """A format that models are exported to. ``types`` of its weights; ``needs``: what a model must have for it.

    ``reader``: what an export is scored with; empty where nothing here can.
    """

    @property
    def name(self) -> str: ...

    @property
    def types(self) -> tuple[str, ...]: ...

    @property
    def needs(self) -> Needs: ...

    @property
    def reader(self) -> str: ...

    def left_out(self, source: Source) -> str:
        """The type that is meant where none is named: one that loses nothing."""

    def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
        """Writes the export into an empty folder, reads it back and compares. Returns what was found.

        Raises NotProved where what stands on disk is not the source's.
        """

    def read(self, folder: Path, source: Source) -> Any | None:
        """The export as a model that is called as one of transformers; None where that is how it is loaded anyway.

        ``source``: what it was made from.
        """


def is_exact(stored: str, kind: str) -> bool:
    """Whether a type holds every number of the stored one."""
    kind = _LONG.get(kind, kind)
    return kind in (stored, "float32")


def short(stored: str) -> str:
    """float32 as GGUF calls it: f32."""
    return next(name for name, long in _LONG.items() if long == stored)
