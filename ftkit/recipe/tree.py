"""What a YAML file holds, before it is checked: a frozen tree in which each value knows its file and line.

It knows nothing of recipes. ``yaml12`` reads it, presets and ``--set`` change it, the schema checks its plain values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Key = tuple[str | int, ...]
Scalar = str | int | float | bool | None

_STEP = re.compile(r"([^.\[\]\s]+)|\[(\d{1,6})\]")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its origin. ``line`` is where a person would look: the line of its key, or of its "-".

    ``written`` is a scalar as it stands in the file (``0x10``, ``true``); empty for lists and mappings. ``size`` counts
    the values below, aliases expanded; ``depth`` the levels below. Both bound what a small file can blow up to.
    """

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    file: str
    line: int
    written: str = ""
    size: int = 1
    depth: int = 0

    def plain(self) -> Any:
        """The value as plain dictionaries, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, tuple) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None

    def nearest(self, key: Key) -> Node:
        """The value at ``key``, or the innermost one on the way to it that exists."""
        node = self
        for step in key:
            below = node.child(step)
            if below is None:
                break
            node = below
        return node

    def origins(self, key: Key = ()) -> dict[Key, tuple[str, int]]:
        """File and line of every value, by key path."""
        found = {key: (self.file, self.line)}
        if isinstance(self.value, dict):
            for name, child in self.value.items():
                found.update(child.origins((*key, name)))
        elif isinstance(self.value, tuple):
            for index, child in enumerate(self.value):
                found.update(child.origins((*key, index)))
        return found


@dataclass(frozen=True, slots=True, order=True)
class Flaw:
    """Something wrong at a line of a file; ``subject`` is the key path as shown. Sorts by file, then by line."""

    file: str
    line: int
    subject: str
    message: str


def container(value: tuple[Node, ...] | dict[str, Node], file: str, line: int) -> Node:
    """A list or a mapping, with its size and depth counted."""
    below = value.values() if isinstance(value, dict) else value
    size = 1 + sum(child.size for child in below)
    return Node(value, file, line, size=size, depth=1 + max((child.depth for child in below), default=0))


def show_key(key: Key) -> str:
    """("task", "labels", 0) as "task.labels[0]"."""
    text = ""
    for step in key:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse_key(text: str) -> Key | None:
    """ "task.labels[0]" as ("task", "labels", 0); None where the text is no key path."""
    steps: list[str | int] = []
    for part in text.split("."):
        names = list(_STEP.finditer(part))
        if not names or "".join(match.group() for match in names) != part or names[0].group(1) is None:
            return None
        if any(match.group(1) for match in names[1:]):
            return None
        steps += [match.group(1) or int(match.group(2)) for match in names]
    return tuple(steps)


def put(node: Node | None, key: Key, value: Node) -> Node:
    """The tree with ``value`` at ``key``. Mappings that are missing on the way are made.

    Raises ValueError, with what to do, where something on the way is neither a mapping nor a list long enough.
    """
    if not key:
        return value
    step, rest = key[0], key[1:]
    if isinstance(step, int):
        items = node.value if node else None
        if not isinstance(items, tuple):
            raise ValueError("is no list in the recipe. Give the whole list, as in [a, b].")
        if step >= len(items):
            raise ValueError(f"has {len(items)} values, [0] to [{len(items) - 1}]. Give the whole list, as in [a, b].")
        changed = (*items[:step], put(items[step], rest, value), *items[step + 1 :])
        return container(changed, value.file, node.line if node else value.line)
    if node is None or node.value is None:
        return container({step: put(None, rest, value)}, value.file, value.line)
    if not isinstance(node.value, dict):
        raise ValueError(f"has no keys in the recipe, so {step} cannot be set. Set the whole value.")
    entries = {**node.value, step: put(node.value.get(step), rest, value)}
    return container(entries, node.file, node.line)
