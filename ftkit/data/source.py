"""From what a recipe writes under ``data`` to raw rows: files, folders and hub ids. Columns are not looked at here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftkit.data.columnar import read_parquet
from ftkit.data.delimited import read_delimited
from ftkit.data.hub import HubId, read_hub
from ftkit.data.jsonfiles import read_json, read_jsonl
from ftkit.data.rows import Place, RawRow, data_error, whole_text
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
}
_READERS: dict[Kind, Callable[[Path, str, Quoting | None], Iterator[RawRow]]] = {
    "csv": lambda path, shown, quoting: read_delimited(path, shown, delimiter=",", quoting=quoting or "minimal"),
    "tsv": lambda path, shown, quoting: read_delimited(path, shown, delimiter="\t", quoting=quoting or "none"),
    "json": lambda path, shown, quoting: read_json(path, shown),
    "jsonl": lambda path, shown, quoting: read_jsonl(path, shown),
    "parquet": lambda path, shown, quoting: read_parquet(path, shown),
    "text": lambda path, shown, quoting: _read_text(path, shown),
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a source: where it is, how it is shown in messages, and how it is read."""

    path: Path
    shown: str
    kind: Kind


def read_rows(
    source: str, folder: Path, *, quoting: Quoting | None = None, hub_split: str = "train"
) -> Iterator[RawRow]:
    """The rows of a file, a folder or a hub id, in a fixed order; ``source`` is relative to ``folder``.

    ``hub_split`` is read of a hub id that names no split. CSV, TSV, JSON Lines and Parquet are streamed. What is known
    without reading (a missing file, an unknown suffix) raises DataError at once, the rest while the rows are taken.
    Raises MachineError for a hub id that cannot be loaded.
    """
    files = data_files(source, folder)
    if files is None:
        hub_id = HubId.parse(source)
        assert hub_id is not None  # data_files would have raised
        return read_hub(hub_id, source, default_split=hub_split)
    return (row for file in files for row in _READERS[file.kind](file.path, file.shown, quoting))


def data_files(source: str, folder: Path) -> tuple[DataFile, ...] | None:
    """The files of a source, sorted by name; None for a hub id. A local path goes before a hub id of that name.

    Raises DataError for a path that does not exist, an unknown suffix, and a folder that holds no data or two kinds.
    """
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return _files_in(path, source.rstrip("/"))
    if path.exists():
        return (DataFile(path, source, _kind_of(path, source)),)
    if _may_be_hub_id(source, folder):
        return None
    raise _missing(path, source, folder)


def source_sha256(source: str, folder: Path) -> str | None:
    """One SHA-256 over the bytes of a source's files; None for a hub id, whose rows must be hashed instead."""
    files = data_files(source, folder)
    if files is None:
        return None
    if len(files) == 1 and files[0].shown == source:
        return sha256_file(files[0].path)
    return sha256_text("".join(f"{file.shown}\n{sha256_file(file.path)}\n" for file in files))


def _read_text(path: Path, shown: str) -> Iterator[RawRow]:
    # An empty file is a row with an empty text: dropped and counted with the others, not an error of its own.
    text = whole_text(path, shown) if path.stat().st_size else ""
    yield RawRow(Place(shown, "line", 1), {"text": text.rstrip("\n"), "label": path.parent.name})


def _kind_of(path: Path, shown: str) -> Kind:
    kind = _known_kind(path)
    if kind is None:
        accepted = ", ".join(_KINDS)
        message = f"the suffix {path.suffix or '(none)'} is not known. Accepted: {accepted}, text ones also with .gz."
        raise data_error(shown, [Problem("", "", message)])
    return kind


def _known_kind(path: Path) -> Kind | None:
    name = path.name.lower()
    zipped = name.endswith(".gz")
    kind = _KINDS.get(Path(name.removesuffix(".gz")).suffix)
    return None if zipped and kind == "parquet" else kind


def _files_in(path: Path, shown: str) -> tuple[DataFile, ...]:
    """The data files of a folder, or its FOLDER/label/*.txt. Hidden files and other suffixes do not count."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    tables = [DataFile(entry, f"{shown}/{entry.name}", kind) for entry in entries if (kind := _table_kind(entry))]
    texts = [text for entry in entries if entry.is_dir() for text in _texts_in(entry, shown)]
    files = tables + texts
    kinds = {file.kind: file.shown.removeprefix(f"{shown}/") for file in files}
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({name})" for kind, name in sorted(kinds.items()))
        message = f"the folder holds several kinds of data: {found}. Name the files to read, or leave one kind in it."
        raise data_error(shown, [Problem("", "", message)])
    if not files:
        message = (
            f"the folder holds no data. Expected files of one kind ({', '.join(_KINDS)}), or a folder of .txt files "
            "for each label."
        )
        raise data_error(shown, [Problem("", "", message)])
    return tuple(files)


def _table_kind(entry: Path) -> Kind | None:
    return _known_kind(entry) if entry.is_file() else None


def _texts_in(folder: Path, shown: str) -> list[DataFile]:
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.suffix == ".txt" and not entry.name.startswith(".")
    )
    return [DataFile(folder / name, f"{shown}/{folder.name}/{name}", "text") for name in names]


def _may_be_hub_id(source: str, folder: Path) -> bool:
    # "data/trian" has the form of a hub id too; where its first part is a folder here, it is a path with a typo.
    hub_id = HubId.parse(source)
    if hub_id is None or _known_kind(Path(source)) is not None or Path(source).suffix == ".gz":
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
