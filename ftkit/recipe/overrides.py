"""``--set key=value``: values from the command line, put into the tree before anything is checked."""

from __future__ import annotations

from collections.abc import Sequence

from ftkit.recipe.source import read_value
from ftkit.recipe.tree import Flaw, Key, Node, container, parse_key, put, show_key

SET = "--set"

# Keys with a short form: what the short form stands for once a key below it is set.
_SHORT = {"adapter": "preset", "base": "model"}


def apply(root: Node, overrides: Sequence[str]) -> tuple[Node, list[Flaw]]:
    """The tree with each override put in its place, and what is wrong with the others."""
    flaws: list[Flaw] = []
    given: set[Key] = set()
    for number, text in enumerate(overrides, start=1):
        name, equals, written = text.partition("=")
        key = parse_key(name.strip())
        subject = show_key(key) if key else ""
        try:
            if not equals or key is None:
                raise ValueError(f"got {text!r}. Write a key, = and a value, such as train.epochs=5.")
            if key in given:
                raise ValueError("given twice. Give it once.")
            given.add(key)
            value = _numbered(read_value(written, SET), number)
            root = put(_spelled_out(root, key), key, value)
        except ValueError as error:
            flaws.append(Flaw(SET, number, subject, str(error)))
    return root, flaws


def _spelled_out(root: Node, key: Key) -> Node:
    """``adapter: lora`` as ``adapter: {preset: lora}`` where a key of the adapter is set; the base likewise."""
    top = key[0]
    node = root.child(top)
    if len(key) == 1 or not isinstance(top, str) or top not in _SHORT:
        return root
    if node is None or not isinstance(node.value, str):
        return root
    return put(root, (top,), container({_SHORT[top]: node}, node.file, node.line))


def _numbered(node: Node, number: int) -> Node:
    """The value with its position among the overrides as its line, which sorts what is said of them."""
    if isinstance(node.value, dict):
        return container({key: _numbered(child, number) for key, child in node.value.items()}, SET, number)
    if isinstance(node.value, tuple):
        return container(tuple(_numbered(child, number) for child in node.value), SET, number)
    return Node(node.value, SET, number, written=node.written)
