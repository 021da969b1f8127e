"""Files that are either whole or not there: written beside their final name, then renamed. And their hashes."""

from __future__ import annotations

import glob
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

_OLD = ".ftkit-old"
_NEW = ".ftkit-new."


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
    exchanged by two renames. Where a process is killed between them, ``put_back`` finds the old folder, as the next
    write does, which also removes what was half-written. A second writer of the same path waits for the first.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_writer(path):
        _put_back(path)
        _forget_killed(path)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}{_NEW}", dir=path.parent))
        try:
            os.chmod(fresh, 0o777 & ~_umask())
            yield fresh
            for file in fresh.rglob("*"):  # safetensors writes files that their owner alone can read
                os.chmod(file, (0o777 if file.is_dir() else 0o666) & ~_umask())
            if path.is_dir():
                os.replace(path, _old(path))
            os.replace(fresh, path)
        except BaseException:
            _put_back(path)
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        _remove(_old(path))


def put_back(path: Path) -> None:
    """Gives a folder its name again that lost it when ``writing_folder`` was killed; does nothing for all others."""
    path = path.resolve()
    if not path.exists() and _old(path).exists():
        with _one_writer(path):
            _put_back(path)


def put_back_below(folder: Path) -> None:
    """``put_back`` for every folder below one."""
    for old in folder.rglob(f".*{_OLD}"):
        put_back(old.with_name(old.name.removeprefix(".").removesuffix(_OLD)))


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """The system releases the lock of a process that is gone, so who holds it knows that there is no other writer."""
    from filelock import FileLock

    file = path.with_name(f".{path.name}.ftkit-lock")
    with FileLock(file):
        try:
            yield
        finally:
            if os.name == "posix":  # held until it is gone; Windows removes no open file, and filelock does it there
                file.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    """What a folder is called between the two renames."""
    return path.with_name(f".{path.name}{_OLD}")


def _put_back(path: Path) -> None:
    if _old(path).exists() and not path.exists():
        os.replace(_old(path), path)


def _forget_killed(path: Path) -> None:
    """Removes what writers of a path have left that did not end; its lock is held, so they are gone.

    A folder that is written may be written by ``writing_folder`` itself: what belongs to it starts with two dots.
    """
    name = glob.escape(path.name)
    for pattern in (f".{name}{_OLD}", f".{name}{_NEW}{'?' * 8}", f"..{name}{_NEW}{'?' * 8}.ftkit-*"):
        for left in path.parent.glob(pattern):
            _remove(left)


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left)
    else:
        left.unlink(missing_ok=True)


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
