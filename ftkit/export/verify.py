"""The proof of a merge by its tensors: what was written is read back and compared, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftkit.errors import NotProved, Problem
from ftkit.export.blocks import computed, planned
from ftkit.export.disk import let_go
from ftkit.export.tensors import BLOCK, Stored, read_index
from ftkit.export.updates import Changes


def check_merged(base: Path, changes: Changes, folder: Path) -> None:
    """Reads the model in ``folder`` back: names, shapes, number formats, and every byte of every tensor.

    A tensor that the adapter does not change must have the base's bytes; others are computed again. Raises NotProved
    for the first that is otherwise.
    """
    found = read_index(folder)
    layout = planned(read_index(base), changes)
    names = {tensor.header.name for tensor in layout}
    for name in sorted(names ^ found.keys()):
        raise _differs(name, "is missing" if name in names else "does not belong there")
    for tensor in layout:
        header, written = tensor.header, found[tensor.header.name]
        if (written.dtype, written.shape) != (header.dtype, header.shape):
            expected = f"{header.dtype} {header.shape}"
            raise _differs(header.name, f"is {written.dtype} {written.shape}, and {expected} was to be written")
        if tensor.update is not None:
            _compare(written, (new for _, new in computed(tensor)))
        elif tensor.source is not None:
            _compare(written, tensor.source.blocks())


def _compare(written: Stored, blocks: Iterator[memoryview]) -> None:
    begin = kept = written.begin
    with written.file.open("rb", buffering=0) as file:
        file.seek(begin)
        buffer = bytearray()
        for block in blocks:
            if len(buffer) != len(block):
                buffer = bytearray(len(block))
            count = file.readinto(buffer)
            # A bytearray compares all bytes at once, a view one by one.
            if count != len(block) or buffer != block:
                raise _differs(written.name, f"differs in the bytes from {file.tell() - (count or 0) - begin:,} on")
            if file.tell() - kept >= BLOCK:
                let_go(file, kept, file.tell())
                kept = file.tell()


def _differs(name: str, what: str) -> NotProved:
    fix = f"{name} {what}. Check the disk, and merge again."
    return NotProved("the merged model is not what was to be written", [Problem("", "merge", fix)])
