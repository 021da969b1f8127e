"""Tensors in safetensors files, read and written one at a time, so that no model is ever in memory.

The format (huggingface.co/docs/safetensors): 8 bytes with the length of a JSON header, the header with type, shape and
place of each tensor, and the tensors' bytes. Files are read with pread into one buffer: pages of a memory map would
count as memory of the process for as long as they stay.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from ftkit.errors import DataError, MachineError, Problem
from ftkit.export.disk import OnDisk
from ftkit.files import write_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
BLOCK = 8 * 2**20  # bytes that are read, compared or written at once
_LONGEST_HEADER = 100 * 2**20  # bytes, as the format's own reader allows
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TORCH |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor without its values: ``dtype`` in the format's words (F32, BF16, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * _SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Stored(Header):
    """A tensor in a file, from the byte ``begin`` on."""

    file: Path
    begin: int

    def blocks(self, size: int = BLOCK) -> Iterator[memoryview]:
        """Its bytes, ``size`` at a time, in two buffers by turns: a block is there until the one after the next."""
        buffers: list[memoryview] = []
        with self.file.open("rb", buffering=0) as file:
            for number, done in enumerate(range(0, self.nbytes, size or 1)):
                if len(buffers) <= number % 2:
                    buffers.append(memoryview(bytearray(min(size, self.nbytes))))
                block = buffers[number % 2][: min(size, self.nbytes - done)]
                _fill(file, block, self.begin + done)
                yield block

    def tensor(self) -> torch.Tensor:
        """The whole tensor, in memory of its own."""
        return self.rows(0, self.shape[0]) if self.shape else self._values(0, 1).reshape(())

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Some of its rows [last - first, ...], counted along the first dimension."""
        width = math.prod(self.shape[1:])
        return self._values(first * width, last * width).reshape(last - first, *self.shape[1:])

    def _values(self, first: int, last: int) -> torch.Tensor:
        import torch

        dtype, size = getattr(torch, _TORCH[self.dtype]), _SIZES[self.dtype]
        values = torch.empty(last - first, dtype=dtype)
        if last > first:
            with self.file.open("rb", buffering=0) as file:
                _fill(file, memoryview(values.view(torch.uint8).numpy().data), self.begin + first * size)
        return values


def _fill(file: IO[bytes], block: memoryview, at: int) -> None:
    done = 0
    while done < len(block):
        got = os.preadv(file.fileno(), [block[done:]], at + done)
        if got == 0:
            raise _damaged(Path(file.name), "it was cut off while it was read")
        done += got


def read_index(folder: Path) -> dict[str, Stored]:
    """All tensors of a model's folder, by name, in the order of their files.

    Raises DataError where there are no safetensors weights, a shard is missing, or a file is damaged.
    """
    found: dict[str, Stored] = {}
    for file in _files(folder):
        for stored in read_headers(file):
            if stored.name in found:
                raise _damaged(file, f"{stored.name} stands in {found[stored.name].file.name} as well")
            found[stored.name] = stored
    return found


def read_headers(file: Path) -> list[Stored]:
    """The tensors of one file, in the order of their bytes. Raises DataError where it is damaged or cut off."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise _damaged(file, "it is cut off, or no safetensors file")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            found = [
                (Stored(name, str(entry["dtype"]), tuple(map(int, entry["shape"])), file, 8 + length + begin), end)
                for name, entry in header.items()
                for begin, end in [entry["data_offsets"]]
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(file, "its header cannot be read") from None
    found.sort(key=lambda pair: (pair[0].begin, pair[1]))
    at = 0
    for stored, end in found:
        if stored.dtype not in _SIZES:
            raise _damaged(file, f"{stored.name} has numbers of an unknown type, {stored.dtype}")
        if stored.begin != 8 + length + at or end - at != stored.nbytes:
            raise _damaged(file, f"the bytes of {stored.name} are not where its header says")
        at = end
    if at != size - 8 - length:
        raise _damaged(file, f"it has {size:,} bytes, and its header speaks of {8 + length + at:,}")
    return [stored for stored, _ in found]


def _files(folder: Path) -> list[Path]:
    """The weights' files of a model. Where an index names them, those and no others."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(index, "it is no index of weights") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            fix = f"{INDEX} names {missing[0]}, which is not there. Fetch the model again."
            raise DataError(f"{folder} has not all of its weights", [Problem("", "base", fix)])
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    fix = "Name a folder with *.safetensors."
    if any(folder.glob("*.bin")):
        fix = "It has pickled weights (.bin) only, which can run code. Save it anew with transformers' save_pretrained."
    raise DataError(f"{folder} has no safetensors weights", [Problem("", "base", fix)])


def _damaged(file: Path, what: str) -> DataError:
    return DataError(f"{file} is damaged", [Problem("", "weights", f"{what}. Fetch or make the file again.")])


def check_space(folder: Path, nbytes: int) -> None:
    """Raises MachineError where the disk that ``folder`` will stand on has no room for so many bytes."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if nbytes > free:
        fix = f"{nbytes / 2**30:.2f} GiB are needed and {free / 2**30:.2f} are free there. Make room, or use --out."
        raise MachineError(f"no space left for {folder}", [Problem("", "disk", fix)])


class Shards:
    """Writes tensors into safetensors files of a folder, in the order in which they were planned, and their index.

    ``most``: bytes of a file, but for a tensor that is larger. A context manager: leaving it after the last tensor
    writes the index, leaving it earlier is a bug and raises.
    """

    def __init__(self, folder: Path, planned: Sequence[Header], most: int) -> None:
        self._folder, self._groups = folder, _groups(planned, most)
        self._waiting = [(number, tensor) for number, group in enumerate(self._groups) for tensor in group]
        self._waiting.reverse()
        self._open: tuple[int, OnDisk] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def write(self, name: str, blocks: Iterable[memoryview | bytes]) -> None:
        """The bytes of the next planned tensor."""
        number, tensor = self._waiting.pop()
        if tensor.name != name:
            raise ValueError(f"{name} is written where {tensor.name} was planned")
        file = self._file(number)
        written = sum(file.write(block) for block in blocks)
        if written != tensor.nbytes:
            raise ValueError(f"{written} bytes of {name} are written where {tensor.nbytes} were planned")

    def copy(self, stored: Stored) -> None:
        """The next planned tensor, byte for byte as it is stored."""
        self.write(stored.name, stored.blocks())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()
        if error is None and self._waiting:
            raise ValueError(f"{len(self._waiting)} planned tensors are not written")
        if error is None and len(self._groups) > 1:
            total = sum(tensor.nbytes for group in self._groups for tensor in group)
            names = {tensor.name: self._name(n) for n, group in enumerate(self._groups) for tensor in group}
            write_json(self._folder / INDEX, {"metadata": {"total_size": total}, "weight_map": names})

    def _file(self, number: int) -> OnDisk:
        if self._open is None or self._open[0] != number:
            self._close()
            file = self._stack.enter_context(OnDisk(self._folder / self._name(number)))
            file.write(_header(self._groups[number]))
            self._open = number, file
        return self._open[1]

    def _close(self) -> None:
        self._open = None
        self._stack.close()

    def _name(self, number: int) -> str:
        if len(self._groups) == 1:
            return "model.safetensors"
        return f"model-{number + 1:05d}-of-{len(self._groups):05d}.safetensors"


def _groups(planned: Sequence[Header], most: int) -> list[list[Header]]:
    """The tensors by file, in order."""
    groups: list[list[Header]] = [[]]
    room = most
    for tensor in planned:
        if groups[-1] and tensor.nbytes > room:
            groups.append([])
            room = most
        groups[-1].append(tensor)
        room -= tensor.nbytes
    return groups


def _header(tensors: Sequence[Header]) -> bytes:
    """The start of a file; padded with spaces so that the tensors begin at a multiple of 8 bytes."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        described[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes],
        }  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(described, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
