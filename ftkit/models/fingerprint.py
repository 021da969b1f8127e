"""Which base an adapter was trained on: ``ftkit.json`` beside its weights, which PEFT does not read.

An adapter is a difference. On weights of the same shapes it loads without a word, whatever model these are of.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ftkit import __version__
from ftkit.errors import DataError, Problem
from ftkit.files import read_json, write_json
from ftkit.models.adapters import Adapter
from ftkit.models.locate import BaseFiles

FILE = "ftkit.json"
_SHOWN = 12  # digits of a hash that a message shows


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """``base``: hub id, or the name of the folder; ``base_sha256``: of its weights, as ``BaseFiles.sha256``.

    ``init``: what the update was started from, as the recipe names it. Files from before it was noted have none.
    """

    ftkit: str
    base: str
    revision: str | None
    base_sha256: str
    init: str = "default"


def write_fingerprint(folder: Path, base: BaseFiles, adapter: Adapter) -> None:
    """Notes in an adapter's folder what it was trained on, and what it was started from."""
    name = base.folder.name if base.source == "folder" else base.address
    noted = Fingerprint(__version__, name, base.revision, base.sha256(), adapter.init)
    write_json(folder / FILE, asdict(noted))


def read_fingerprint(adapter: Path) -> Fingerprint | None:
    """None of an adapter that ftkit did not train. Raises DataError for a file that is not whole."""
    path = adapter / FILE
    if not path.exists():
        return None
    try:
        return TypeAdapter(Fingerprint).validate_python(read_json(path))
    except (ValueError, ValidationError) as error:
        fix = f"Fetch the adapter again. {str(error).splitlines()[0]}."
        raise DataError(f"{path} cannot be read", [Problem("", FILE, fix)]) from error


def check_base(adapter: Path, base: BaseFiles) -> None:
    """Raises DataError where the adapter was trained on other weights than the base's.

    Reads all of the base's weights, once in a process: about a second for each 2 GB.
    """
    noted = read_fingerprint(adapter)
    if noted is None or noted.base_sha256 == (found := base.sha256()):
        return
    message = (
        f"{base.folder} has weights with SHA-256 {found[:_SHOWN]}…, the adapter was trained on {noted.base} with "
        f"{noted.base_sha256[:_SHOWN]}…. Give it that base, or train again on this one."
    )
    raise DataError(f"{adapter} belongs to another base", [Problem("", "base", message)])
