"""Reads a GGUF file back and compares all of it with the model's folder: every tensor, every key, the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ftkit.errors import NotProved, Problem
from ftkit.export.gguf.architectures import Architecture, Target
from ftkit.export.gguf.splitting import reader
from ftkit.export.gguf.vocabulary import read_tokenizer
from ftkit.export.gguf.write import describe, rows_at_once

if TYPE_CHECKING:
    import torch

_OF_THE_TYPE = ("general.file_type", "general.quantization_version")  # llama-quantize sets its own
# The relative root mean square difference up to which a tensor of a type counts as the model's: about twice what
# normally distributed weights show. A wrong order of rows gives 1.4.
_SPREAD = {"Q6_K": 0.04, "Q5_K": 0.08, "Q5_1": 0.08, "Q5_0": 0.1, "Q4_K": 0.16, "Q4_1": 0.16, "Q4_0": 0.2}
_SPREAD |= {"Q3_K": 0.35, "Q2_K": 0.6, "IQ4_NL": 0.18, "IQ4_XS": 0.18}


@dataclass(frozen=True, slots=True)
class _Read:
    """A tensor of the file: its type, its shape with rows first, and the byte at which it begins."""

    kind: str
    shape: tuple[int, ...]
    begin: int


def check_gguf(model: Path, file: Path) -> dict[str, Any]:
    """Proves that ``file`` holds the model of ``model``, with its own reader.

    F32, F16 and BF16 equal the weights rounded to that type; Q8_0 is within a step of its block; other types within
    what they lose. Returns {"tensors", "largest_difference", "texts", "file_bytes"}. Raises NotProved with the first
    thing that differs.
    """
    metadata, tensors = read_file(file)
    architecture, expected, _ = describe(model)
    for key, value in {**expected, "general.architecture": architecture.name}.items():
        if key not in _OF_THE_TYPE and not _same(metadata.get(key), value):
            raise not_proved(file, key, f"the file says {_short(metadata.get(key))}, the model {_short(value)}.")
    texts = _check_tokenizer(model, file, metadata)
    wanted = {target.name for target in architecture.targets} | (
        {"rope_freqs.weight"} if architecture.factors else set()
    )
    if other := sorted(wanted ^ tensors.keys()):
        place = "the model" if other[0] in tensors else "the file"
        raise not_proved(file, other[0], f"{place} has no such tensor.")
    largest = 0.0
    with file.open("rb", buffering=0) as stream:
        _check_factors(file, stream, architecture, tensors)
        for target in architecture.targets:
            largest = max(largest, _check_tensor(file, stream, target, tensors[target.name]))
    return {
        "tensors": len(tensors), "largest_difference": largest, "texts": texts, "file_bytes": file.stat().st_size,
    }  # fmt: skip


def read_file(file: Path) -> tuple[dict[str, Any], dict[str, _Read]]:
    """The metadata and the tensors of a file, as gguf's own reader finds them. Raises NotProved where it cannot."""
    import gguf

    try:
        found = gguf.GGUFReader(file)
        metadata = {key: field.contents() for key, field in found.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise not_proved(file, "", f"it cannot be read: {error}.") from error
    tensors = {
        tensor.name: _Read(tensor.tensor_type.name, tuple(int(n) for n in tensor.shape[::-1]), tensor.data_offset)
        for tensor in found.tensors
    }
    return metadata, tensors


def read_rows(stream: IO[bytes], tensor: _Read, first: int, last: int) -> torch.Tensor:
    """Some rows of a tensor of the file, in float32."""
    import gguf
    import numpy
    import torch

    kind = gguf.GGMLQuantizationType[tensor.kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    stream.seek(tensor.begin + first * width // block * size)
    data = numpy.frombuffer(stream.read((last - first) * width // block * size), dtype=numpy.uint8)
    if tensor.kind in ("F32", "F16"):
        values = data.view(numpy.float32 if tensor.kind == "F32" else numpy.float16).astype(numpy.float32)
    else:
        values = gguf.quants.dequantize(data.reshape(-1, width // block * size), kind)
    return torch.from_numpy(values.reshape(last - first, *tensor.shape[1:]))


def not_proved(file: Path, subject: str, why: str) -> NotProved:
    return NotProved(f"{file} is not proved to be the model", [Problem("", subject, f"{why} Export it again.")])


def _same(found: Any, value: Any) -> bool:
    """Whether the file has a value; numbers with a fraction are held in float32 there."""
    import numpy

    if isinstance(value, float):
        return isinstance(found, float) and numpy.float32(value) == numpy.float32(found)
    if isinstance(value, str | bool | int):
        return type(found) is type(value) and bool(found == value)
    return isinstance(found, list) and len(found) == len(value) and all(map(_same, found, value))


def _short(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _check_tokenizer(model: Path, file: Path, metadata: Mapping[str, Any]) -> int:
    """Splits texts with the file's tokens, merges and scores alone; gives the number of texts."""
    import json

    from ftkit.export.gguf.probes import probes
    from ftkit.export.gguf.vocabulary import compare, tolerated

    tokenizer = read_tokenizer(model)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    read, count = reader(metadata), 0
    spared = tolerated(tokenizer, described)
    for group, texts in probes(described, every_token=False).items():
        if group in spared:
            continue
        count += len(texts)
        if difference := compare(read, tokenizer, texts):
            text, own, other = difference
            raise not_proved(file, "tokenizer", f"{text[:40]!r} is {own[:8]} for the model and {other[:8]} here.")
    return count


def _check_factors(file: Path, stream: IO[bytes], architecture: Architecture, tensors: Mapping[str, _Read]) -> None:
    if not architecture.factors:
        return
    found = read_rows(stream, tensors["rope_freqs.weight"], 0, len(architecture.factors)).tolist()
    if not _same(found, list(architecture.factors)):
        raise not_proved(file, "rope_freqs.weight", f"the file has {_short(found)}.")


def _check_tensor(file: Path, stream: IO[bytes], target: Target, found: _Read) -> float:
    """Compares one tensor; gives the largest difference to the model's weights."""
    import torch

    if found.shape != target.shape:
        raise not_proved(file, target.name, f"its shape is {found.shape}, the model's {target.shape}.")
    largest = squares = total = 0.0
    for weights, values in _pairs(stream, target, found):
        difference = values - weights
        low, high = torch.aminmax(difference)
        largest = max(largest, -low.item(), high.item())
        if found.kind not in ("F32", "F16", "BF16", "Q8_0"):
            squares, total = squares + difference.square().sum().item(), total + weights.square().sum().item()
        elif not _within(weights, values, difference, found.kind, target):
            why = f"it differs from {target.source.name} by up to {difference.abs().max().item():.3g}."
            raise not_proved(file, target.name, why)
    if not squares <= total * _SPREAD.get(found.kind, 0.0) ** 2:  # not a number, neither
        why = f"it differs from {target.source.name} by {(squares / total) ** 0.5:.1%} of its size."
        raise not_proved(file, target.name, why)
    return largest


def _pairs(stream: IO[bytes], target: Target, found: _Read) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of the model's tensor and the same rows of the file's, put back in the model's order."""
    count = target.source.shape[0]
    if target.transposed:
        yield target.source.tensor().float(), read_rows(stream, found, 0, found.shape[0]).t()
        return
    step = rows_at_once(target)
    for first in range(0, count, step):
        last = min(first + step, count)
        values = read_rows(stream, found, first, last)
        if target.heads:
            pairs = values.reshape(-1, count // target.heads // 2, 2, *values.shape[1:])
            values = pairs.transpose(1, 2).reshape(values.shape)
        yield target.source.rows(first, last).float(), values


def _within(weights: torch.Tensor, values: torch.Tensor, difference: torch.Tensor, kind: str, target: Target) -> bool:
    import torch

    if kind != "Q8_0":
        rounded = weights.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]).float()
        return torch.equal(rounded, values)
    # Half a step, and what the float16 of the step itself is off, 127 times.
    if target.transposed:
        weights, difference = weights.t(), difference.t()
    step = weights.reshape(-1, 32).abs().amax(dim=1, keepdim=True) / 127
    return bool((difference.reshape(-1, 32).abs() <= step * (0.5 + 127 * 2**-11 + 1e-4) + 127 * 2**-25).all())
