"""Files whose bytes are brought to the disk while they are written, and are then let go of by the machine's memory.

A system keeps what was written as pages in its memory. A merge writes a model, so that all other pages are driven out,
and taking so many anew can cost more than its arithmetic (docs/log.md). And what is read back would come from there:
after this it comes from the disk.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ftkit.export.beside import Beside

_AT_ONCE = 64 * 2**20  # bytes after which what was written is brought to the disk, beside what goes on


def let_go(file: IO[bytes], begin: int, end: int) -> None:
    """The bytes from ``begin`` to ``end``, which stand on the disk and are not needed soon, need not stay in memory.

    Only whole pages are let go of. It is advice: on systems and file systems that take none, such as macOS, they stay.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)


class OnDisk:
    """A new file, written from its beginning. A context manager: when it is left well, all bytes stand on the disk."""

    def __init__(self, path: Path) -> None:
        # Not buffered: blocks are large, and would be copied once more.
        self._file = path.open("wb", buffering=0)
        self._beside = Beside()
        self._written = self._settled = 0

    def write(self, block: memoryview | bytes) -> int:
        """Writes all of a block, and returns its length. Raises OSError for this block or for one before it."""
        rest = memoryview(block)
        while rest:  # on a full disk some bytes may still be written: the next call says that it is full
            rest = rest[self._file.write(rest) :]
        self._written += len(block)
        if self._written - self._settled >= _AT_ONCE:
            self._beside.run(partial(self._settle, self._settled, self._written))
            self._settled = self._written
        return len(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file, self._beside:
            if error is None:
                self._beside.wait()
                self._settle(0, self._written)

    def _settle(self, begin: int, end: int) -> None:
        os.fsync(self._file.fileno())
        let_go(self._file, begin, end)
