"""The documents of a language-modelling recipe: read one after the other, cleaned, split, and kept on disk.

Nothing of the corpus stays in memory but 32 bytes a document. A corpus of local files that was read before is found in
the cache by its key: the bytes of its files, the keys of ``data`` that shape it, and the code that reads it. Any other
is read anew, and its folder is named by what came out.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.data.clean import EMPTY, Cleaner, Step
from ftkit.data.columns import find_column
from ftkit.data.documents import Documents, FileName, Writer
from ftkit.data.drawing import draw
from ftkit.data.partition import Side
from ftkit.data.rows import LISTED, Place, RawRow, data_error
from ftkit.data.section import Clean, Data, Source, parse_share
from ftkit.data.source import data_files, read_rows, source_sha256
from ftkit.data.splits import HUB_SPLITS, SourceFile
from ftkit.errors import Problem
from ftkit.files import (
    cache_folder,
    code_sha256,
    read_json,
    settle,
    sha256_files,
    sha256_of,
    sha256_text,
    write_json,
)
from ftkit.records import Decision

if TYPE_CHECKING:
    from ftkit.data.documents import Table

CountTokens = Callable[[Sequence[str]], list[int]]

_SIDES: tuple[Side, ...] = ("train", "valid", "test")
_META = "corpus.json"  # written last: its existence means that the corpus is whole
_COUNTED_AT_ONCE = 64  # documents whose tokens are counted together


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of each side, what they were read from, what cleaning did, and what was decided."""

    train: Documents
    valid: Documents
    test: Documents
    sources: tuple[SourceFile, ...]
    steps: tuple[Step, ...]
    decisions: tuple[Decision, ...]

    def named(self) -> dict[Side, Documents]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


def read_corpus(
    data: Data, folder: Path, *, seed: int, count_tokens: CountTokens | None = None, counted_by: str | None = None
) -> Corpus:
    """Reads the sources of a recipe in ``folder``, or finds what an earlier call read.

    ``count_tokens``: tokens of each of some texts, needed for ``data.max_tokens``; ``counted_by``: a name of what
    counts them, without which such a corpus is read anew each time. Raises DataError for whatever is wrong in a source,
    a side without a document, and a share that gives none; MachineError for a hub id that cannot be loaded.
    """
    sources = _sources(data)
    key = _key(data, sources, folder, seed, counted_by)
    cached = cache_folder() / f"corpus-{key}" if key else None
    if cached and (cached / _META).exists():
        return _load(cached)
    cache_folder().mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".corpus-", dir=cache_folder()))
    try:
        with closing(Writer(fresh)) as writer:
            _Reader(data, folder, writer, seed, count_tokens).read(sources)
        final = cached or cache_folder() / f"corpus-{sha256_files(sorted(fresh.iterdir()))[:32]}"
        if not (final / _META).exists():
            shutil.rmtree(final, ignore_errors=True)  # left by a process that was killed
            settle(fresh, final)
        return _load(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_held_out(source: Source, data: Data, folder: Path) -> Documents:
    """The documents of one more source, cleaned as ``data`` cleans valid and test. Raises as ``read_corpus`` does."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".texts-", dir=cache_folder()))
    atexit.register(shutil.rmtree, fresh, ignore_errors=True)
    with closing(Writer(fresh)) as writer:
        reader = _Reader(data, folder, writer, 0, None)
        reader.read_source("test", 0, source, 1)
        table = writer.take()
    if not len(table):
        raise data_error(str(source), [Problem("", "", _nothing_left(reader.cleaner))])
    return Documents(fresh, table, writer.files)


def _sources(data: Data) -> dict[Side, tuple[Source, ...]]:
    """The sources of each side that has its own; a side that is a share of train has none."""
    given: dict[Side, Any] = {"train": data.train}
    given |= {side: value for side, value in _held_out(data).items() if _share(value) is None}
    return {side: value if isinstance(value, tuple) else (value,) for side, value in given.items()}


def _held_out(data: Data) -> dict[Side, Any]:
    return {"valid": data.valid, "test": data.test}


def _share(value: Any) -> float | None:
    return parse_share(value) if isinstance(value, str) else None


def _has_columns(source: Source, folder: Path) -> bool:
    """Whether the user named what a row holds: not so in docstrings and in text files."""
    files = data_files(source, folder)
    return isinstance(source, str) and (files is None or files[0].kind != "text")


def _key(
    data: Data, sources: dict[Side, tuple[Source, ...]], folder: Path, seed: int, counted_by: str | None
) -> str | None:
    """None where the sources alone do not tell what is read: one is on the hub, or its tokens are counted."""
    if data.max_tokens is None:
        counted_by = None  # nothing is counted
    elif counted_by is None:
        return None
    digests = [
        [side, str(source), source_sha256(source, folder)] for side, listed in sources.items() for source in listed
    ]
    if any(digest is None for _, _, digest in digests):
        return None
    shaping = data.model_dump(mode="json", exclude={"licence"})
    return sha256_text(json.dumps([digests, shaping, seed, counted_by, code_sha256("data")]))[:32]


class _Reader:
    """One reading of all sources into a fresh folder: test and valid first, so that train is held against them."""

    def __init__(self, data: Data, folder: Path, writer: Writer, seed: int, count_tokens: CountTokens | None) -> None:
        self.data, self.folder, self.writer, self.seed, self.count_tokens = data, folder, writer, seed, count_tokens
        self.fresh = writer.folder
        self.cleaner = Cleaner(data.clean)
        self.files: list[SourceFile] = []
        self.decisions: list[Decision] = []

    def read(self, sources: dict[Side, tuple[Source, ...]]) -> None:
        """Leaves documents.bin, a table for each side and corpus.json."""
        tables: dict[Side, Table] = {}
        for side in ("test", "valid", "train"):
            if side in sources:
                for number, source in enumerate(sources[side]):
                    self.read_source(side, number, source, len(sources[side]))
                tables[side] = self.writer.take()
                if not len(tables[side]):
                    raise data_error(_listed(sources[side]), [Problem("", f"data.{side}", _nothing_left(self.cleaner))])
        shares = {side: _share(value) or 0.0 for side, value in _held_out(self.data).items() if side not in sources}
        documents = Documents(self.fresh, tables["train"], self.writer.files)
        drawn, why = draw(documents, shares, seed=self.seed, shown=_listed(sources["train"]))
        self.decisions += [
            Decision(f"data.{side}", str(getattr(self.data, side)), f"{self._left_out(side)}{text}")
            for side, text in why.items()
        ]
        tables |= drawn
        steps = self._without_overlap(tables, drawn) if shares else self.cleaner.steps()
        if not len(tables["train"]):
            message = "each document also stands in valid or test. Name other files, or write clean.test_overlap: keep."
            raise data_error(_listed(sources["train"]), [Problem("", "data.train", message)])
        self._write(tables, steps)

    def _left_out(self, side: Side) -> str:
        return "" if side in self.data.model_fields_set else "left out; "

    def read_source(self, side: Side, number: int, source: Source, of: int) -> None:
        rows = read_rows(
            source, self.folder, quoting=self.data.quoting, hub_split=HUB_SPLITS[side], split=self.data.split,
            stream=True,
        )  # fmt: skip
        if side == "train" and self.data.max_rows is not None:
            rows = islice(rows, self.data.max_rows)
        texts = self._texts(rows, str(source), named=_has_columns(source, self.folder))
        if side == "train" and self.data.max_tokens is not None:
            share = self.data.weights[number] / sum(self.data.weights) if self.data.weights else 1 / of
            texts = self._budgeted(texts, round(self.data.max_tokens * share))
        before = len(self.writer)
        local = source_sha256(source, self.folder)
        digest = sha256_of(self._append(side, number, texts)) if local is None else _drain(
            self._append(side, number, texts), local
        )  # fmt: skip
        self.files.append(SourceFile(side, str(source), len(self.writer) - before, digest, hub=local is None))

    def _append(self, side: Side, number: int, texts: Iterator[tuple[str, RawRow]]) -> Iterator[bytes]:
        """Cleans and stores the texts; yields their bytes for a digest."""
        for text, row in texts:
            cleaned = self.cleaner.text(text, str(row.where), held_out=side != "train")
            if cleaned is not None:
                if side != "train":
                    self.cleaner.hold_out(cleaned)
                self._store(cleaned, number, row.where)
            yield text.encode("utf-8", "surrogatepass")

    def _store(self, text: str, number: int, where: Place) -> None:
        try:
            self.writer.append(text, number, where)
        except UnicodeEncodeError as error:  # only where control characters are kept, which these count among
            message = "it holds an unpaired surrogate, which UTF-8 cannot write. Write data.clean: {control: true}."
            raise data_error(where.file, [Problem(where.position, "", message)]) from error

    def _texts(self, rows: Iterator[RawRow], shown: str, *, named: bool) -> Iterator[tuple[str, RawRow]]:
        """The text of each row; ``named``: its columns are the user's. Raises DataError for rows without a text."""
        peeked = list(islice(rows, LISTED))
        available = list(dict.fromkeys(name for row in peeked for name in row.values))
        given = self.data.columns.text if named else None
        column = find_column("text", available, given, shown=shown)
        if given is None and len(available) > 1 and named:
            why = f"the only column of {shown} with a known name for the text"
            self.decisions.append(Decision("data.columns.text", column, why))
        problems: list[Problem] = []
        for row in chain(peeked, rows):
            text = row.values.get(column)
            if text is None and column in row.values:
                text = ""
            if not isinstance(text, str):
                got = f"got {text!r:.40}, which is no text. Write it in quotes, or name another column."
                got = "is missing. Write it, or name another column." if text is None else got
                where = row.where.position if row.where.file == shown else str(row.where)
                problems.append(Problem(where, column, got))
            elif not problems:
                yield text, row
        if problems:
            raise data_error(shown, problems)

    def _budgeted(self, texts: Iterator[tuple[str, RawRow]], budget: int) -> Iterator[tuple[str, RawRow]]:
        """Texts until they have ``budget`` tokens together; the one that passes it is the last."""
        assert self.count_tokens is not None  # the recipe's rules see to it
        while some := list(islice(texts, _COUNTED_AT_ONCE)):
            for item, tokens in zip(some, self.count_tokens([text for text, _ in some]), strict=True):
                yield item
                budget -= tokens
                if budget <= 0:
                    return

    def _without_overlap(self, tables: dict[Side, Table], drawn: dict[Side, Table]) -> tuple[Step, ...]:
        """Takes from train what nearly or exactly stands in the rows drawn from it, where duplicates could be left."""
        wanted, done = self.data.clean.test_overlap, self.data.clean.duplicates
        steps = self.cleaner.steps()
        if wanted == "keep" or done == "near" or wanted == done:
            return steps  # what is equal, or near, was dropped before anything was drawn
        second = Cleaner(Clean(control=False, duplicates="keep", test_overlap=wanted))
        for side in drawn:
            if side != "train":
                for text in Documents(self.fresh, tables[side], self.writer.files):
                    second.hold_out(text)
        train = Documents(self.fresh, tables["train"], self.writer.files)
        kept = [second.text(text, train.where(number)) is not None for number, text in enumerate(train)]
        tables["train"] = tables["train"][kept]
        overlap = {step.step: step for step in second.steps() if "overlap" in step.step}
        return tuple(_added(step, overlap[step.step]) if step.step in overlap else step for step in steps)

    def _write(self, tables: dict[Side, Table], steps: Sequence[Step]) -> None:
        import numpy as np

        for side in _SIDES:
            np.save(self.fresh / f"{side}.npy", tables.get(side, tables["train"][:0]))
        meta = {
            "files": [[file.shown, file.unit] for file in self.writer.files],
            "sources": [asdict(source) for source in self.files],
            "steps": [asdict(step) for step in steps],
            "decisions": [asdict(decision) for decision in dict.fromkeys(self.decisions)],
        }
        write_json(self.fresh / _META, meta)


def _added(one: Step, other: Step) -> Step:
    rows = (*one.rows, *other.rows)[:LISTED]
    return Step(one.step, one.changed + other.changed, one.dropped + other.dropped, rows)


def _load(folder: Path) -> Corpus:
    import numpy as np

    meta = read_json(folder / _META)
    files = [FileName(*pair) for pair in meta["files"]]
    sides = {side: Documents(folder, np.load(folder / f"{side}.npy", mmap_mode="r"), files) for side in _SIDES}
    return Corpus(
        **sides,
        sources=tuple(SourceFile(**source) for source in meta["sources"]),
        steps=tuple(Step(**(step | {"rows": tuple(step["rows"])})) for step in meta["steps"]),
        decisions=tuple(Decision(**decision) for decision in meta["decisions"]),
    )


def _drain(items: Iterator[Any], value: str) -> str:
    for _ in items:
        pass
    return value


def _listed(sources: Sequence[Source]) -> str:
    return " and ".join(map(str, sources))


def _nothing_left(cleaner: Cleaner) -> str:
    found = [step for step in cleaner.steps() if step.dropped]
    if all(step.step == EMPTY for step in found):
        return "no document is left; there is no text in it. Name other files."
    dropped = ", ".join(f"{step.step} {step.dropped:,}" for step in found)
    why = f"cleaning dropped all: {dropped}. Loosen data.clean"
    return f"no document is left; {why}."
