"""Writes a model's folder as one GGUF file, tensor by tensor: no more than one tensor of the model is in memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem, RecipeError, did_you_mean
from ftkit.export.gguf.architectures import Architecture, Target, Value, read_architecture
from ftkit.export.gguf.quantise import QUANTISED, quantiser
from ftkit.export.gguf.vocabulary import read_vocabulary
from ftkit.export.tensors import BLOCK, check_space

if TYPE_CHECKING:
    import torch

NATIVE = ("F32", "F16", "BF16", "Q8_0")
_ALIGNMENT = 32  # bytes: where a tensor may begin, the format's default
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type


def write_gguf(model: Path, out: Path, kind: str) -> dict[str, Any]:
    """Writes the model in ``model`` (config.json, safetensors, tokenizer.json) to the file ``out``.

    ``kind``: F32, F16, BF16, Q8_0, or one that llama.cpp makes; norms and biases stay in F32. Returns
    {"kind", "tensors", "file_bytes", "notes"}. Raises RecipeError for an unknown kind, DataError for a model or a
    tokenizer that GGUF cannot hold, MachineError where there is no space or no llama.cpp.
    """
    if kind not in (*NATIVE, *QUANTISED):
        fix = did_you_mean(kind, (*NATIVE, *QUANTISED)) or f"Write one of {', '.join((*NATIVE, *QUANTISED))}."
        raise RecipeError(f"there is no GGUF type {kind}", [Problem("", "type", fix)])
    program = None if kind in NATIVE else quantiser(kind)
    architecture, metadata, notes = describe(model)
    first = kind if program is None else _own_type(architecture)
    types = [tensor_type(target, first) for target in architecture.targets]
    size = sum(_nbytes(target.shape, one) for target, one in zip(architecture.targets, types, strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    check_space(out.parent, (size if program is None else 2 * size) + BLOCK)
    if left := [t.name for t, one in zip(architecture.targets, types, strict=True) if one != first and not t.whole]:
        notes = (*notes, f"{len(left)} tensors are F16, since their rows are no multiple of 32 numbers.")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        fresh = Path(folder) / "model.gguf"
        _write(fresh, architecture, {**metadata, "general.file_type": _FILE_TYPES[first]}, types)
        if program is not None:
            fresh = program.run(fresh, kind)
            notes = (*notes, f"{kind} was made by {program.name}.")
        os.replace(fresh, out)
    return {
        "kind": kind,
        "tensors": len(architecture.targets) + bool(architecture.factors),
        "file_bytes": out.stat().st_size,
        "notes": list(notes),
    }


def describe(model: Path) -> tuple[Architecture, dict[str, Value], tuple[str, ...]]:
    """What a GGUF file of the model holds: its tensors, its metadata but for the type, and notes on differences."""
    architecture = read_architecture(model)
    vocabulary = read_vocabulary(model, architecture.vocab)
    # No general.name: llama.cpp reads white space otherwise where it holds a word such as phi3.
    metadata: dict[str, Value] = {"general.type": "model", "general.quantization_version": 2}
    metadata |= {**architecture.metadata, **vocabulary.metadata}
    return architecture, metadata, (*architecture.notes, *vocabulary.notes)


def tensor_type(target: Target, kind: str) -> str:
    """The type in which a tensor of a file of some kind is held."""
    if target.whole:
        return "F32"
    return "F16" if kind == "Q8_0" and target.shape[-1] % 32 else kind


def write_header(file: Path, arch: str, metadata: Mapping[str, Value], tensors: Sequence[tuple[str, Any, str]]) -> None:
    """Everything of a GGUF file but the tensors' bytes: ``tensors`` are names, shapes (rows first) and types."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(file, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, shape, kind in tensors:
        raw = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), _nbytes(shape, kind), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def encode(values: torch.Tensor, kind: str, name: str) -> bytes:
    """Rows of float32 as the bytes of a type. Raises DataError for numbers that the type cannot hold."""
    import gguf
    import torch

    low, high = torch.aminmax(values)  # either is not finite where any number is not
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise DataError(f"{name} has numbers that are not finite", [Problem("", "weights", "Train the model again.")])
    if kind == "F32":
        return values.numpy().tobytes()
    if kind == "BF16":
        return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    if kind == "F16":
        if not -65520 < low.item() <= high.item() < 65520:  # what is rounded to no more than 65,504
            fix = "F16 holds numbers up to 65,504. Write BF16."
            raise DataError(f"{name} has numbers too large for F16", [Problem("", "type", fix)])
        return values.to(torch.float16).numpy().tobytes()
    return bytes(gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[kind]))


def pad(file: IO[bytes]) -> None:
    """Zeros up to where the next tensor may begin."""
    file.write(bytes(-file.tell() % _ALIGNMENT))


def rows_at_once(target: Target) -> int:
    """Rows of a tensor that make about a block, in whole heads where their rows change places."""
    row = 4 * max(1, target.source.count // max(1, target.source.shape[0]))
    head = target.source.shape[0] // target.heads if target.heads else 1
    return head * max(1, BLOCK // (row * head))


def reordered(values: torch.Tensor, head: int) -> torch.Tensor:
    """Rows of whole heads: the two halves of each head of ``head`` rows, interleaved."""
    halves = values.reshape(-1, 2, head // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _write(file: Path, architecture: Architecture, metadata: Mapping[str, Value], types: Sequence[str]) -> None:
    import torch

    targets = architecture.targets
    planned = [(target.name, target.shape, kind) for target, kind in zip(targets, types, strict=True)]
    if architecture.factors:
        planned.insert(0, ("rope_freqs.weight", (len(architecture.factors),), "F32"))
    write_header(file, architecture.name, metadata, planned)
    with file.open("r+b") as stream:
        stream.seek(0, os.SEEK_END)
        pad(stream)
        if architecture.factors:
            stream.write(torch.tensor(architecture.factors, dtype=torch.float32).numpy().tobytes())
            pad(stream)
        for target, kind in zip(targets, types, strict=True):
            for values in _rows(target):
                stream.write(encode(values, kind, target.source.name))
            pad(stream)
        stream.flush()
        os.fsync(stream.fileno())


def _rows(target: Target) -> Iterator[torch.Tensor]:
    """The tensor's rows in float32, in the order of the file, a block at a time."""
    if target.transposed:
        yield target.source.tensor().float().t().contiguous()
        return
    count, step = target.source.shape[0], rows_at_once(target)
    for first in range(0, count, step):
        values = target.source.rows(first, min(first + step, count)).float()
        yield reordered(values, count // target.heads) if target.heads else values


def _add(writer: Any, key: str, value: Value) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _nbytes(shape: Sequence[int], kind: str) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(math.prod(shape) // block * size)


def _own_type(architecture: Architecture) -> str:
    """A type that holds the model's weights as they are."""
    types = {target.source.dtype for target in architecture.targets if not target.whole}
    return types.pop() if len(types) == 1 else "F32"
