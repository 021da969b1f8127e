"""The export formats, and how each export comes to stand under its name: whole, read back, and compared.

A new format is one class in one file, and its name in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, RecipeError, did_you_mean
from ftkit.export.convert import Safetensors
from ftkit.export.gguf_formats import Gguf, LoraGguf, Ollama
from ftkit.export.onnx import Onnx
from ftkit.export.source import FACTS, Format, Needs, Source, is_exact
from ftkit.files import read_json, write_json, writing_folder

FORMATS: tuple[Format, ...] = (Safetensors(), Gguf(), Ollama(), Onnx(), LoraGguf())
NEEDED: dict[Needs, str] = {
    "head": "a classifier with a head",
    "decoder": "a decoder, which predicts the next token",
    "adapter": "an adapter on a decoder",
    "model": "a model",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for. ``kind``: the type of the weights; None for the format's own choice."""

    format: Format
    kind: str | None

    def settled(self, source: Source) -> Target:
        """With the type that is meant where none is named."""
        return self if self.kind is not None else Target(self.format, self.format.left_out(source))

    @property
    def name(self) -> str:
        """As eval.json calls it: "gguf:q8_0"."""
        return self.format.name if self.kind is None else f"{self.format.name}:{self.kind}"

    @property
    def folder(self) -> str:
        return self.name.replace(":", "-")

    def loses(self, source: Source) -> bool:
        """Whether the type cannot hold the source's numbers."""
        return not is_exact(source.stored, str(self.kind))


@dataclass(frozen=True, slots=True)
class Written:
    """An export that does not have its name yet. ``found``: what comparing it with its source gave."""

    folder: Path
    bytes: int
    found: dict[str, Any]


def parse(text: str) -> Target:
    """FORMAT[:TYPE]. Raises ValueError, whose text ends with the fix, for one that is unknown."""
    name, colon, kind = text.strip().partition(":")
    formats = {each.name: each for each in FORMATS}
    if name not in formats:
        raise ValueError(_unknown(f"got {text!r}, and there is no format {name!r}.", name, formats))
    types = formats[name].types
    if colon and kind.lower() not in types:
        raise ValueError(_unknown(f"got {text!r}, and {name} has no type {kind!r}.", kind, types))
    return Target(formats[name], kind.lower() if colon else None)


def _unknown(what: str, word: str, known: Any) -> str:
    return " ".join(filter(None, (what, did_you_mean(word.lower(), known), f"Write one of: {', '.join(known)}.")))


def check_fit(target: Target, source: Source) -> None:
    """Raises RecipeError where the source is no model of the kind that the format is for."""
    if target.format.needs not in source.has:
        others = [each.name for each in FORMATS if each.needs in source.has]
        what = " or ".join(map(str, source.config.get("architectures") or ["a model of no known architecture"]))
        fix = f"It is for {NEEDED[target.format.needs]}, and {source.model} is {what}. Write {' or '.join(others)}."
        raise RecipeError(f"no {target.format.name} of this model", [Problem("", "--to", fix)])


@contextmanager
def exporting(target: Target, source: Source, out: Path) -> Iterator[Written]:
    """Writes an export beside ``out``, proves it, and gives it its name when the block ends well.

    What stood at ``out`` is replaced then, and only where it is an export. Raises RecipeError for another ``out`` and a
    model that does not fit, NotProved where what was written is not the source's.
    """
    check_fit(target, source)
    _check_out(out, source)
    target = target.settled(source)
    with writing_folder(out) as folder:
        found = target.format.write(source, folder, str(target.kind))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        write_json(folder / FACTS, {"format": target.format.name, "type": target.kind, "bytes": size, **found})
        yield Written(folder, size, found)


def _check_out(out: Path, source: Source) -> None:
    """Nothing but an earlier export may be replaced, and never the source itself."""
    here, model = out.resolve(), source.model.resolve()
    fix = "Name a folder that is not there yet."
    if here == model or here in model.parents:
        raise RecipeError(f"{out} holds the model itself", [Problem("", "--out", fix)])
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file", [Problem("", "--out", f"An export is a folder. {fix}")])
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise RecipeError(f"{out} is not empty", [Problem("", "--out", f"It holds no earlier export. {fix}")])


def _is_export(folder: Path) -> bool:
    return (folder / FACTS).is_file() and "format" in read_json(folder / FACTS)
