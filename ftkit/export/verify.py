"""The proof of a merge by its tensors: what was written is read back and compared, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ftkit.errors import NotProved, Problem
from ftkit.export.beside import Beside
from ftkit.export.blocks import computed, planned
from ftkit.export.tensors import Stored, read_index
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
    with Beside() as beside:
        for tensor in layout:
            header, written = tensor.header, found[tensor.header.name]
            if (written.dtype, written.shape) != (header.dtype, header.shape):
                expected = f"{header.dtype} {header.shape}"
                raise _differs(header.name, f"is {written.dtype} {written.shape}, and {expected} was to be written")
            if tensor.update is not None:
                _compare(written, (new for _, new in computed(tensor)), beside)
            elif tensor.source is not None:
                _compare(written, tensor.source.blocks(), beside)


def _compare(written: Stored, blocks: Iterator[memoryview], beside: Beside) -> None:
    """A block is read back and compared while the next one is computed."""
    buffer = bytearray()

    def same(block: memoryview) -> None:
        nonlocal buffer
        if len(buffer) != len(block):
            buffer = bytearray(len(block))
        count = file.readinto(buffer)
        # A bytearray compares all bytes at once, a view one by one.
        if count != len(block) or buffer != block:
            at = file.tell() - (count or 0) - written.begin
            raise _differs(written.name, f"differs in the bytes from {at:,} on")

    with written.file.open("rb", buffering=0) as file:
        file.seek(written.begin)
        for block in blocks:
            beside.run(partial(same, block))
        beside.wait()


def _differs(name: str, what: str) -> NotProved:
    fix = f"{name} {what}. Check the disk, and merge again."
    return NotProved("the merged model is not what was to be written", [Problem("", "merge", fix)])
