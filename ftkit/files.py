"""Files that are either whole or not there: written beside their final name, then renamed. And their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any


@contextmanager
def writing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file beside ``path`` and renames it to ``path`` when the block ends well; else nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    text = "b" not in mode
    try:
        with os.fdopen(handle, mode, encoding="utf-8" if text else None, newline="\n" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON with a final newline. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, values: Iterable[object]) -> None:
    with writing(path) as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that takes the name ``path`` when the block ends well.

    A folder that already has the name is replaced then, not before; on an error the new one is removed. Names are
    exchanged by two renames: a process that is killed between them leaves both folders under hidden names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        os.chmod(fresh, 0o777 & ~_umask())
        yield fresh
        for file in fresh.rglob("*"):  # safetensors writes files that their owner alone can read
            os.chmod(file, (0o777 if file.is_dir() else 0o666) & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old)
            os.replace(fresh, path)
            shutil.rmtree(old)
        else:
            os.replace(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def settle(fresh: Path, final: Path) -> None:
    """Gives a finished folder its final name; where another process made the same one meanwhile, that stays."""
    try:
        fresh.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read in pieces, so a file may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_of(parts: Iterable[bytes]) -> str:
    """The SHA-256 of the parts put together, which need not be in memory at once."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """One SHA-256 over several files, in the order given: the hash of their names and hashes."""
    return sha256_text("".join(f"{path.name}\n{sha256_file(path)}\n" for path in paths))


def cache_folder() -> Path:
    """Where read and tokenised corpora are kept: FTKIT_CACHE, else the user's cache folder. Safe to delete."""
    own = os.environ.get("FTKIT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "ftkit"


@cache
def code_sha256(package: str) -> str:
    """One SHA-256 over the source files of a folder of ftkit: what a cache was made by."""
    folder = Path(__file__).parent / package
    return sha256_files(sorted(folder.rglob("*.py")))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
