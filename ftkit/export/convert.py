"""safetensors in another number format, tensor by tensor: no model is ever in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, NotProved, Problem
from ftkit.export.source import Needs, Source
from ftkit.export.tensors import BLOCK, Header, Shards, Stored, check_space, read_index
from ftkit.files import read_json, write_json

if TYPE_CHECKING:
    import torch

_SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CONVERTED = frozenset({"F64", "F32", "F16", "BF16"})
_SHARD = 5 * 10**9  # bytes of a file, as transformers writes them


@dataclass(frozen=True, slots=True)
class Safetensors:
    """A whole model's folder, as transformers and vLLM load it; weights rounded to the nearest number of the type."""

    name: str = "safetensors"
    types: tuple[str, ...] = ("float32", "float16", "bfloat16")
    needs: Needs = "model"
    reader: str = "transformers"

    def left_out(self, source: Source) -> str:
        return source.stored

    def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
        """Raises DataError where a number is too large for ``kind``, NotProved as every format does."""
        tensors = read_index(source.model)
        planned = [_planned(stored, kind) for stored in tensors.values()]
        check_space(folder, sum(tensor.nbytes for tensor in planned))
        source.copy_beside(folder)
        _name_type(folder / "config.json", kind)
        with Shards(folder, planned, _SHARD) as shards:
            for stored in tensors.values():
                if stored.dtype == _planned(stored, kind).dtype:
                    shards.copy(stored)
                else:
                    shards.write(stored.name, (_bytes(values) for values in _rounded(stored, kind)))
        return check_converted(tensors, folder, kind)

    def read(self, folder: Path, source: Source) -> None:
        return None


def check_converted(tensors: Mapping[str, Stored], folder: Path, kind: str) -> dict[str, Any]:
    """Reads a converted model back and compares every number with the source's, rounded once more.

    Raises NotProved for a tensor that is missing, left over, or not the rounding of its source.
    """
    found = read_index(folder)
    strangers = sorted(found.keys() ^ tensors.keys())
    if strangers:
        raise _not_proved(strangers[0], "stands in one of the two models alone")
    rounded = 0
    for name, stored in tensors.items():
        planned, written = _planned(stored, kind), found[name]
        if (written.dtype, written.shape) != (planned.dtype, planned.shape):
            raise _not_proved(name, f"is {written.dtype} {list(written.shape)} on disk")
        if planned.dtype == stored.dtype:
            pairs = zip(stored.blocks(), written.blocks(), strict=True)
            same = all(one == other for one, other in pairs)
        else:
            rounded += 1
            want, have = _rounded(stored, kind), _pieces(written, _rows_at_once(stored))
            same = all(_bytes(one) == _bytes(other) for one, other in zip(want, have, strict=True))
        if not same:
            raise _not_proved(name, "has other numbers on disk than the source's, rounded")
    return {"tensors": len(found), "rounded": rounded}


def _planned(stored: Stored, kind: str) -> Header:
    """Whole numbers stay, and so do numbers of 8 bits, which a quantisation of its own has written."""
    dtype = _SHORT[kind] if stored.dtype in _CONVERTED else stored.dtype
    return Header(stored.name, dtype, stored.shape)


def _rounded(stored: Stored, kind: str) -> Iterator[torch.Tensor]:
    """The tensor's values in ``kind``, some rows at a time. Raises DataError for one that is too large."""
    import torch

    dtype = getattr(torch, kind)
    for values in _pieces(stored, _rows_at_once(stored)):
        rounded = values.to(dtype)
        if bool((torch.isinf(rounded) & torch.isfinite(values)).any()):
            largest = float(values[torch.isfinite(values)].abs().max())
            message = f"holds {largest:.6g}, and {kind} ends at {torch.finfo(dtype).max:.6g}. Write float32."
            raise DataError(f"the weights do not fit into {kind}", [Problem("", stored.name, message)])
        yield rounded


def _pieces(stored: Stored, rows: int) -> Iterator[torch.Tensor]:
    if not stored.shape:
        yield stored.tensor().reshape(1)
        return
    for first in range(0, stored.shape[0], rows):
        yield stored.rows(first, min(first + rows, stored.shape[0]))


def _rows_at_once(stored: Stored) -> int:
    """Rows that a block holds, at least one; counted in the source so that both sides are cut alike."""
    width = max(1, math.prod(stored.shape[1:]) * 8)
    return max(1, BLOCK // width)


def _bytes(values: torch.Tensor) -> memoryview:
    import torch

    return memoryview(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _name_type(path: Path, kind: str) -> None:
    """config.json says what the weights are held in when they are loaded; older ones call it torch_dtype."""
    config = read_json(path)
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    write_json(path, config | dict.fromkeys(names, kind))


def _not_proved(name: str, what: str) -> NotProved:
    return NotProved("the export is not shown to be the model", [Problem("", name, f"{what}. Report this.")])
