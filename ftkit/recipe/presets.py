"""Adapter presets: ``adapters/NAME.yaml`` in the recipe's folder, in its parents, then those that ship with ftkit.

A preset is put in the place of its name before anything is checked, so that each of its values keeps its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftkit.errors import did_you_mean
from ftkit.recipe.source import read_file
from ftkit.recipe.tree import Flaw, Node, container

FOLDER = "adapters"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset file; ``about``, ``when`` and ``cost`` are the comments at its head."""

    name: str
    path: Path
    about: str
    when: str
    cost: str


def find_preset(name: str, start: Path) -> Path | None:
    """The file of the preset ``name``, nearest to the folder ``start`` first; None where there is none."""
    if not _NAME.fullmatch(name):
        return None
    return next((path for folder in _folders(start) if (path := folder / f"{name}.yaml").is_file()), None)


def list_presets(start: Path) -> tuple[Preset, ...]:
    """Every preset that a recipe in the folder ``start`` can name, sorted by name; a nearer one hides its namesakes."""
    return tuple(_describe(name, path) for name, path in sorted(_found(start).items()))


def expand(root: Node, start: Path) -> tuple[Node, list[Flaw]]:
    """The recipe with its adapter spelled out. Where that fails, the flaws, and the recipe as it was.

    Raises RecipeError where the preset's file cannot be read.
    """
    adapter = root.child("adapter")
    if adapter is None or not isinstance(root.value, dict):
        return root, []
    given = adapter.value if isinstance(adapter.value, dict) else {"preset": adapter}
    named = given.get("preset")
    if named is None:
        return root, [] if "type" in given else [_flaw(adapter, "adapter.type", _TYPE_MISSING)]
    subject = "adapter.preset" if given is adapter.value else "adapter"
    path = find_preset(named.value, start) if isinstance(named.value, str) else None
    if path is None:
        return root, [_flaw(named, subject, _not_a_preset(named, sorted(_found(start))))]
    shown = _shown(path)
    document = read_file(path, shown)
    preset = document.root.value
    flaws = list(document.flaws)
    if not isinstance(preset, dict) or "type" not in preset:
        return root, [*flaws, Flaw(shown, 1, "type", 'missing. Write a line such as "type: lora".')]
    if "preset" in preset:
        message = "a preset cannot name another. Write its keys in full."
        return root, [*flaws, _flaw(preset["preset"], "adapter.preset", message)]
    own = {key: value for key, value in given.items() if key != "preset"}
    if "type" in own and own["type"].value != preset["type"].value:
        message = f"the preset {named.value} has type {preset['type'].written}. Remove this line, or the preset."
        return root, [*flaws, _flaw(own["type"], "adapter.type", message)]
    full = container({**preset, **own}, adapter.file, adapter.line)
    return container({**root.value, "adapter": full}, root.file, root.line), flaws


_TYPE_MISSING = 'missing. Write "preset: lora" to change keys of a preset, or "type: lora" to give them all.'


def _not_a_preset(named: Node, names: list[str]) -> str:
    choices = f"Presets: {', '.join(names)}."
    if not isinstance(named.value, str):
        got = "nothing" if named.value is None else named.written or "a list"
        return f"got {got}. Write a preset's name. {choices}"
    hint = did_you_mean(named.value.lower(), names)
    return " ".join(part for part in (f"there is no preset {named.value!r}.", hint, choices) if part)


def _flaw(node: Node, subject: str, message: str) -> Flaw:
    return Flaw(node.file, node.line, subject, message)


def _found(start: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _folders(start):
        for path in sorted(folder.glob("*.yaml")):
            if _NAME.fullmatch(path.stem):
                found.setdefault(path.stem, path)
    return found


def _folders(start: Path) -> Iterator[Path]:
    folder = start.resolve()
    for parent in (folder, *folder.parents):
        if (parent / FOLDER).is_dir():
            yield parent / FOLDER
    yield shipped()


def shipped() -> Path:
    """The presets that come with ftkit: inside the package in a wheel, beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / FOLDER if (package / FOLDER).is_dir() else package.parent / FOLDER


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _describe(name: str, path: Path) -> Preset:
    """Reads the comments at the head: sentences about it, then "When:", "Cost:" and "Paper:"."""
    parts = {"about": "", "when": "", "cost": "", "paper": ""}
    part = "about"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        label, colon, rest = text.partition(":")
        if colon and label.lower() in parts:
            part, text = label.lower(), rest.strip()
        parts[part] = f"{parts[part]} {text}".strip()
    return Preset(name, path, parts["about"], parts["when"], parts["cost"])
