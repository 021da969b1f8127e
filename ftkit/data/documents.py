"""Documents on disk: one file of UTF-8 bytes and a table of where each document stands in it.

Memory holds neither the texts nor, for a table that was read back, the table: a corpus may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any

from ftkit.data.rows import Place
from ftkit.files import sha256_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Table = npt.NDArray[np.void]

_TEXTS = "documents.bin"
_BUFFERED = 65_536  # documents whose places wait in memory while a store is written
# Bytes [start, end) in documents.bin; the source and the file in it, by number; the line or row in that file.
FIELDS = [("start", "<i8"), ("end", "<i8"), ("source", "<i4"), ("file", "<i4"), ("number", "<i8")]


@dataclass(frozen=True, slots=True)
class FileName:
    """A file as messages show it, and what is counted in it."""

    shown: str
    unit: str


class Documents:
    """Some of the documents of a store, in a fixed order. ``table`` [n] has the fields ``FIELDS``."""

    def __init__(self, folder: Path, table: Table, files: Sequence[FileName]) -> None:
        self.folder = folder
        self.table = table
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> str:
        """The text of a document."""
        with (self.folder / _TEXTS).open("rb") as file:
            return _text(file, self.table[number])

    def __iter__(self) -> Iterator[str]:
        with (self.folder / _TEXTS).open("rb") as file:
            for row in self.table:
                yield _text(file, row)

    def where(self, number: int) -> str:
        """The place of a document, to stand in messages: "wiki.jsonl line 17"."""
        file, row = self._file(number)
        return f"{file.shown} {file.unit} {row}"

    def id(self, number: int) -> str:
        """A name of a document for programs: "wiki.jsonl:17", with its folder where two files are named alike."""
        file, row = self._file(number)
        return f"{PurePath(file.shown).name if self._differ else file.shown}:{row}"

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return int((self.table["end"] - self.table["start"]).sum())

    def sha256(self) -> str:
        """One SHA-256 over the texts, in order; lengths go first, so that no text can look like a border."""
        return sha256_of(part for text in self for part in (f"{len(text)}:".encode(), text.encode("utf-8")))

    def only(self, chosen: Any) -> Documents:
        """Those that ``chosen``, an index or a mask over the table, picks."""
        return Documents(self.folder, self.table[chosen], self.files)

    def _file(self, number: int) -> tuple[FileName, int]:
        row = self.table[number]
        return self.files[int(row["file"])], int(row["number"])

    @cached_property
    def _differ(self) -> bool:
        """Whether the names of the files differ without their folders too."""
        return len({PurePath(file.shown).name for file in self.files}) == len(self.files)


def _text(file: IO[bytes], row: Any) -> str:
    file.seek(int(row["start"]))
    return file.read(int(row["end"] - row["start"])).decode("utf-8")


class Writer:
    """Appends documents to a store that is being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[FileName] = []
        self._texts = (folder / _TEXTS).open("wb")
        self._end = self._count = 0
        self._numbers: dict[FileName, int] = {}
        self._waiting: list[tuple[int, int, int, int, int]] = []
        self._tables: list[Table] = []

    def __len__(self) -> int:
        return self._count

    def append(self, text: str, source: int, place: Place) -> None:
        """Adds a document of the ``source``-th source."""
        start, self._end = self._end, self._end + self._texts.write(text.encode("utf-8"))
        file = FileName(place.file, place.unit)
        number = self._numbers.setdefault(file, len(self.files))
        if number == len(self.files):
            self.files.append(file)
        self._count += 1
        self._waiting.append((start, self._end, source, number, place.number))
        if len(self._waiting) >= _BUFFERED:
            self._settle()

    def take(self) -> Table:
        """The table of all documents since the last call."""
        import numpy as np

        self._settle()
        found = np.concatenate(self._tables) if self._tables else np.empty(0, dtype=FIELDS)
        self._tables = []
        self._texts.flush()
        return found

    def close(self) -> None:
        self._texts.close()

    def _settle(self) -> None:
        import numpy as np

        if self._waiting:
            self._tables.append(np.array(self._waiting, dtype=FIELDS))
            self._waiting = []
