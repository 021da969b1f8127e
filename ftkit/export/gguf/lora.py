"""Writes a LoRA adapter alone as a GGUF file, for llama.cpp's --lora beside the base's own file, and reads it back.

llama.cpp adds alpha / r * B A to a weight, with one alpha for all modules; r is the width of B. What an adapter scales
otherwise (rsLoRA, patterns of alpha and rank) is multiplied into B.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem, RecipeError
from ftkit.export.adapter import AdapterFiles, NoStreamedForm, check_start, modules, read_adapter, scale
from ftkit.export.gguf.architectures import Target, Value, read_config, target_of
from ftkit.export.gguf.check import not_proved, read_file, read_rows
from ftkit.export.gguf.write import encode, pad, reordered, write_header
from ftkit.export.tensors import BLOCK, Stored, check_space, read_index

if TYPE_CHECKING:
    import torch

_KINDS = ("F32", "F16", "BF16")
_FIX = "Merge it into the base (ftkit merge) and export the merged model."


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two factors of a module's update, where they go, and what B is multiplied by."""

    target: Target
    a: Stored
    b: Stored
    factor: float

    def matrices(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A [r, in] and B [out, r] in float32 as the file has them, with their names."""
        yield f"{self.target.name}.lora_a", self.a.tensor().float()
        b = self.b.tensor().float() * self.factor
        yield f"{self.target.name}.lora_b", reordered(b, len(b) // self.target.heads) if self.target.heads else b


def write_lora_gguf(adapter: Path, base: Path, out: Path, kind: str) -> dict[str, Any]:
    """Writes the adapter in the folder ``adapter``, trained on the model in ``base``, to the file ``out``.

    ``kind``: F32, F16 or BF16. Returns {"kind", "tensors", "alpha", "file_bytes"}. Raises DataError for an adapter that
    is more than plain LoRA or belongs to another base, NotProved where the file read back is not the adapter.
    """
    if kind not in _KINDS:
        fix = f"Write one of {', '.join(_KINDS)}."
        raise RecipeError(f"there is no LoRA in GGUF type {kind}", [Problem("", "type", fix)])
    files = read_adapter(adapter)
    alpha = float(files.config.get("lora_alpha") or 1)
    name, pairs = _pairs(files, base, alpha)
    metadata: dict[str, Value] = {
        "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    check_space(out.parent, 4 * sum(pair.a.count + pair.b.count for pair in pairs) + BLOCK)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        fresh = Path(folder) / "adapter.gguf"
        _write(fresh, name, metadata, pairs, kind)
        _check(fresh, metadata | {"general.architecture": name}, pairs, kind)
        os.replace(fresh, out)
    return {"kind": kind, "tensors": 2 * len(pairs), "alpha": alpha, "file_bytes": out.stat().st_size}


def _pairs(files: AdapterFiles, base: Path, alpha: float) -> tuple[str, list[_Pair]]:
    """llama.cpp's name of the base's architecture, and the updates by module."""
    check_start(files)
    config, name = read_config(base)
    try:
        found = modules(files)
    except NoStreamedForm as error:
        raise _refused(files, f"It is one of {error}.") from None
    if found.whole:
        raise _refused(files, f"It replaces {next(iter(found.whole))} as a whole.")
    stored, pairs = read_index(base), []
    for module, tensors in found.adapted.items():
        if tensors.keys() != {"lora_A.weight", "lora_B.weight"}:
            more = min(tensors.keys() - {"lora_A.weight", "lora_B.weight"}, default="one factor only")
            raise _refused(files, f"{module} has {more.removesuffix('.weight')}.")
        a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
        weight = stored.get(f"{module}.weight") or stored.get(f"{module.removeprefix('transformer.')}.weight")
        if module == "lm_head" and config.tie_word_embeddings:
            raise _refused(files, "It changes lm_head, which is the base's embedding.")
        target = target_of(weight, config, name) if weight else None
        if target is None:
            raise _other_base(files, f"{module} is in the adapter, and not in the base.")
        if target.shape != (b.shape[0], a.shape[1]):
            raise _other_base(files, f"{module} is {target.shape} in the base, and {(b.shape[0], a.shape[1])} here.")
        pairs.append(_Pair(target, a, b, scale(files.config, module) * b.shape[1] / alpha))
    if not pairs:
        raise _other_base(files, "It changes nothing.")
    return name, pairs


def _refused(files: AdapterFiles, why: str) -> DataError:
    problem = Problem("", "adapter", f"{why} {_FIX}")
    return DataError(f"{files.folder} cannot be written as a LoRA in GGUF", [problem])


def _other_base(files: AdapterFiles, why: str) -> DataError:
    problem = Problem("", "base", f"{why} Name the base that it was trained on.")
    return DataError(f"{files.folder} does not fit the base", [problem])


def _write(file: Path, name: str, metadata: Mapping[str, Value], pairs: list[_Pair], kind: str) -> None:
    planned = []
    for pair in pairs:
        planned += [
            (f"{pair.target.name}.lora_a", pair.a.shape, kind),
            (f"{pair.target.name}.lora_b", pair.b.shape, kind),
        ]
    write_header(file, name, metadata, planned)
    with file.open("r+b") as stream:
        stream.seek(0, os.SEEK_END)
        pad(stream)
        for pair in pairs:
            for matrix, values in pair.matrices():
                stream.write(encode(values.contiguous(), kind, matrix))
                pad(stream)
        stream.flush()
        os.fsync(stream.fileno())


def _check(file: Path, metadata: Mapping[str, Value], pairs: list[_Pair], kind: str) -> None:
    """Reads the file back: the keys, and each matrix as it is in the adapter."""
    import torch

    found, tensors = read_file(file)
    for key, value in metadata.items():
        if found.get(key) != value:
            raise not_proved(file, key, f"the file says {found.get(key)!r}, the adapter {value!r}.")
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    with file.open("rb") as stream:
        for pair in pairs:
            a, b = (tensors[f"{pair.target.name}.lora_{letter}"] for letter in "ab")
            values = read_rows(stream, b, 0, b.shape[0])
            if heads := pair.target.heads:
                values = values.reshape(heads, -1, 2, b.shape[1]).transpose(1, 2).reshape(b.shape)
            same = torch.equal(values, (pair.b.tensor().float() * pair.factor).to(dtype).float())
            if not same or not torch.equal(read_rows(stream, a, 0, a.shape[0]), pair.a.tensor().to(dtype).float()):
                raise not_proved(file, pair.target.name, "its update is not the adapter's.")
