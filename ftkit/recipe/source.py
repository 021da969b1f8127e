"""Opens a recipe or a preset: bytes to a tree, with every way in which a file can be unfit said in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ftkit.errors import Problem, RecipeError, did_you_mean
from ftkit.recipe.tree import Flaw, Node
from ftkit.recipe.yaml12 import Unreadable, read_text

LARGEST_FILE = 1 << 20

# Control characters, and those that YAML 1.1 and 1.2 disagree on as line ends, which would falsify line numbers.
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it stands, its tree, and what is wrong with it short of being unreadable."""

    text: str
    root: Node
    flaws: tuple[Flaw, ...]


def read_file(path: Path, shown: str) -> Document:
    """Reads a YAML file whose top level is a mapping. ``shown`` names it in messages.

    Raises RecipeError where there is no such file, or where it is not readable, not UTF-8, not YAML, empty or a list.
    """
    text = _decode(_bytes(path, shown), shown)
    try:
        root, flaws = read_text(text, shown)
        if root.value is None:
            raise Unreadable(1, "the file is empty. Start with a line such as name: sentiment.")
        if not isinstance(root.value, dict):
            what = "a list" if isinstance(root.value, tuple) else "a single value"
            raise Unreadable(root.line, f"the file holds {what}. Write keys and values, such as name: sentiment.")
    except Unreadable as error:
        raise RecipeError.in_file(shown, [Problem(f"line {error.line}", "", error.message)]) from None
    return Document(text, root, tuple(flaws))


def read_value(text: str, source: str) -> Node:
    """Reads one value, as it follows the "=" of ``--set``. Raises ValueError, with what to do, where it is not YAML."""
    bad = _REFUSED.search(text)
    if bad:
        raise ValueError(f"holds the character U+{ord(bad.group()):04X}. Remove it.")
    try:
        root, flaws = read_text(text, source)
    except Unreadable as error:
        raise ValueError(error.message) from None
    if flaws:
        raise ValueError(flaws[0].message)
    return root


def _bytes(path: Path, shown: str) -> bytes:
    try:
        if path.is_dir():
            raise RecipeError(f"{shown} is a folder. Give the recipe file in it.{_holds(path, '')}")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise RecipeError(f"{shown} has {size:,} bytes, and a recipe at most {LARGEST_FILE:,}. Is it data?")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(f"{shown} does not exist.{_holds(path.parent, path.name)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(f"{shown} cannot be read: {reason}.") from None


def _decode(raw: bytes, shown: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        raise RecipeError.in_file(shown, [Problem(f"line {line}", "", message)]) from None
    bad = _REFUSED.search(text)
    if bad is None:
        return text
    line = text.count("\n", 0, bad.start()) + 1
    message = f"holds the character U+{ord(bad.group()):04X}. Remove it."
    if bad.group() == "\ufeff" and bad.start() == 0:
        message = "the file starts with a byte order mark. Save it as UTF-8 without one."
    raise RecipeError.in_file(shown, [Problem(f"line {line}", "", message)])


def _holds(folder: Path, wanted: str) -> str:
    """What to name instead: the file that was probably meant, or what the folder holds."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return ""
    hint = did_you_mean(wanted, names) if wanted else ""
    return f" {hint}" if hint else f" It holds {', '.join(names[:8])}." if names and not wanted else ""
