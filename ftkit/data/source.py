"""From what a recipe writes under ``data`` to raw rows: files, folders, hub ids, docstrings of packages.

Columns are not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftkit.data.columnar import read_parquet
from ftkit.data.delimited import read_delimited
from ftkit.data.docstrings import docstrings_sha256, read_docstrings
from ftkit.data.hub import HubId, read_hub
from ftkit.data.jsonfiles import read_json, read_jsonl
from ftkit.data.rows import RawRow, data_error
from ftkit.data.section import Docstrings, Source
from ftkit.data.texts import Split, read_text
from ftkit.errors import DataError, Problem, did_you_mean
from ftkit.files import sha256_file, sha256_text

Quoting = Literal["minimal", "none"]
Kind = Literal["csv", "tsv", "json", "jsonl", "parquet", "text"]

_KINDS: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
_COMPRESSED = (".gz", ".zst")
_TABLES: dict[Kind, Callable[[Path, str, Quoting | None], Iterator[RawRow]]] = {
    "csv": lambda path, shown, quoting: read_delimited(path, shown, delimiter=",", quoting=quoting or "minimal"),
    "tsv": lambda path, shown, quoting: read_delimited(path, shown, delimiter="\t", quoting=quoting or "none"),
    "json": lambda path, shown, quoting: read_json(path, shown),
    "jsonl": lambda path, shown, quoting: read_jsonl(path, shown),
    "parquet": lambda path, shown, quoting: read_parquet(path, shown),
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a source: where it is, how it is shown in messages, and how it is read.

    ``label``: the folder that a text file stands in, where that is not the source itself. ``by_class``: the file is
    FOLDER/label/*.txt, the form of a classifier's texts.
    """

    path: Path
    shown: str
    kind: Kind
    label: str | None = None
    by_class: bool = False


def read_rows(
    source: Source,
    folder: Path,
    *,
    quoting: Quoting | None = None,
    hub_split: str = "train",
    split: Split | None = None,
    stream: bool = False,
) -> Iterator[RawRow]:
    """The rows of a file, a folder, a hub id or docstrings, in a fixed order; paths are relative to ``folder``.

    ``hub_split`` is read of a hub id that names no split; ``stream`` reads a hub id without keeping it on disk.
    ``split`` says what a row of text files is, and that a folder is a corpus: each text in it counts. Left out, a row
    is a file, and where the folder holds texts by class (FOLDER/label/*.txt), it is these alone.
    CSV, TSV, JSON Lines, Parquet, lines and paragraphs are streamed. What is known without reading (a missing file, an
    unknown suffix) raises DataError at once, the rest while the rows are taken.
    Raises MachineError for a hub id that cannot be loaded.
    """
    if isinstance(source, Docstrings):
        return read_docstrings(source)
    files = data_files(source, folder)
    if files is None:
        hub_id = HubId.parse(source)
        assert hub_id is not None  # data_files would have raised
        return read_hub(hub_id, source, default_split=hub_split, stream=stream)
    if files[0].kind == "text":
        by_class = [] if split else [file for file in files if file.by_class]
        return _texts(by_class or files, source, split or "document")
    return (row for file in files for row in _TABLES[file.kind](file.path, file.shown, quoting))


def data_files(source: Source, folder: Path) -> tuple[DataFile, ...] | None:
    """The files of a source, sorted by name; None for a hub id, before which a local path of that name goes, and
    for docstrings.

    Raises DataError for a path that does not exist, an unknown suffix, and a folder that holds no data or two kinds.
    """
    if isinstance(source, Docstrings):
        return None
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return _files_in(path, source.rstrip("/"))
    if path.exists():
        return (DataFile(path, source, _kind_of(path, source)),)
    if _may_be_hub_id(source, folder):
        return None
    raise _missing(path, source, folder)


def source_sha256(source: Source, folder: Path) -> str | None:
    """One SHA-256 over the bytes of a source's files, or over its docstrings; None for a hub id, whose rows must be
    hashed instead.
    """
    if isinstance(source, Docstrings):
        return docstrings_sha256(source)
    files = data_files(source, folder)
    if files is None:
        return None
    if len(files) == 1 and files[0].shown == source:
        return sha256_file(files[0].path)
    return sha256_text("".join(f"{file.shown}\n{sha256_file(file.path)}\n" for file in files))


def _texts(files: Sequence[DataFile], shown: str, split: Split) -> Iterator[RawRow]:
    rows = 0
    for file in files:
        for row in read_text(file.path, file.shown, split, file.label):
            rows += 1
            yield row
    if not rows:
        raise data_error(shown, [Problem("", "", "there is no text in it. Add text.")])


def _kind_of(path: Path, shown: str) -> Kind:
    kind = _known_kind(path)
    if kind is None:
        accepted = ", ".join(_KINDS)
        compressed = " or ".join(_COMPRESSED)
        message = (
            f"the suffix {path.suffix or '(none)'} is not known. Accepted: {accepted}, text ones also with "
            f"{compressed}."
        )
        raise data_error(shown, [Problem("", "", message)])
    return kind


def _known_kind(path: Path) -> Kind | None:
    name = Path(path.name.lower())
    compressed = name.suffix in _COMPRESSED
    kind = _KINDS.get(Path(name.stem).suffix if compressed else name.suffix)
    return None if compressed and kind == "parquet" else kind


def _files_in(path: Path, shown: str) -> tuple[DataFile, ...]:
    """The tables of a folder, or the texts in and below it. Hidden files and other suffixes do not count.

    Nor do texts beside tables (a README.md), but for texts by class: those are data.
    """
    found = [(entry, kind) for entry in _visible(path) if entry.is_file() and (kind := _known_kind(entry))]
    tables = [DataFile(entry, f"{shown}/{entry.name}", kind) for entry, kind in found if kind != "text"]
    if tables:
        files = tables + [file for file in _texts_in(path, shown, depth=1) if file.by_class]
    else:
        files = _texts_in(path, shown)
    kinds = {file.kind: file.shown.removeprefix(f"{shown}/") for file in files}
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({name})" for kind, name in sorted(kinds.items()))
        message = f"the folder holds several kinds of data: {listed}. Name the files to read, or leave one kind in it."
        raise data_error(shown, [Problem("", "", message)])
    if not files:
        message = (
            f"the folder holds no data. Expected files of one kind ({', '.join(_KINDS)}), or a folder of .txt files "
            "for each label."
        )
        raise data_error(shown, [Problem("", "", message)])
    return tuple(files)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _texts_in(source: Path, shown: str, *, depth: int | None = None) -> list[DataFile]:
    """The text files of a folder and of those below it, ``depth`` levels down at most."""
    files: list[DataFile] = []

    def walk(folder: Path, names: tuple[str, ...], above: frozenset[Path]) -> None:
        here = folder.resolve()
        if here in above:  # a link that leads back
            return
        for entry in _visible(folder):
            if entry.is_dir():
                if depth is None or len(names) < depth:
                    walk(entry, (*names, entry.name), above | {here})
            elif _known_kind(entry) == "text":
                by_class = len(names) == 1 and entry.suffix == ".txt"
                label = names[-1] if names else None
                files.append(DataFile(entry, "/".join((shown, *names, entry.name)), "text", label, by_class))

    walk(source, (), frozenset())
    return files


def _may_be_hub_id(source: str, folder: Path) -> bool:
    # "data/trian" has the form of a hub id too; where its first part is a folder here, it is a path with a typo.
    hub_id = HubId.parse(source)
    if hub_id is None or _known_kind(Path(source)) is not None or Path(source).suffix in _COMPRESSED:
        return False
    return not (folder / source.split("/")[0]).is_dir()


def _missing(path: Path, source: str, folder: Path) -> DataError:
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    there = sorted(entry.name for entry in missing.parent.iterdir() if not entry.name.startswith("."))
    listing = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "nothing"
    hint = did_you_mean(missing.name, there)
    hub = "" if "/" in source or Path(source).suffix else " A data set of the hub is written org/name."
    message = f"there is no {missing.name} in {missing.parent}. {hint + ' ' if hint else ''}There: {listing}.{hub}"
    return data_error(source, [Problem("", "", message)])
