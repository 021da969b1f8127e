"""Reads YAML as YAML 1.2 (core schema), keeping the line of every value.

PyYAML parses; what a plain scalar means is decided here, because PyYAML reads YAML 1.1 (``yes`` is true, ``2e-4``
is text, ``010`` is 8, ``12:30`` is 750). No tags, no merge keys, no timestamps. Aliases are bounded.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from ftkit.recipe.tree import Flaw, Node, Scalar, container

LARGEST_TREE = 100_000  # values with aliases expanded: ten lines of aliases can hold billions
DEEPEST = 64

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

# What the parser says, and what to do about it.
_SYNTAX = {
    "mapping values are not allowed": 'a ":" too many, or the indentation is off. Put text that holds ": " in quotes.',
    "could not find expected ':'": 'a key without a value. Write "key: value".',
    "did not find expected ',' or ']'": 'a list that starts here is not closed. Write "]" at its end.',
    "did not find expected ',' or '}'": 'a mapping that starts here is not closed. Write "}" at its end.',
    "found unexpected end of stream": "a quote that starts here is not closed. Write the closing quote.",
    "found character that cannot start any token": "a value cannot start with @, %, ` or a tab. Put it in quotes.",
    "found invalid Unicode character escape code": "holds half of a surrogate pair. Write the character itself.",
    "found unknown escape character": "a backslash in double quotes starts an escape. Use single quotes.",
    "did not find expected key": "the indentation is off. Line up the keys of a mapping and the dashes of a list.",
    "did not find expected '-' indicator": "a list and keys are mixed. Line up the dashes of a list.",
    "did not find expected node content": "a value is missing, or a bracket is not closed.",
}


class Unreadable(Exception):
    """Something after which the rest of the text cannot be read: the line, and what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def read_text(text: str, source: str) -> tuple[Node, list[Flaw]]:
    """The tree of a text, and the flaws that leave it readable (a key given twice, a tag).

    Raises Unreadable where the text is not one YAML document, or too deep, or too large once its aliases are expanded.
    """
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text) from None
    except yaml.YAMLError as error:
        raise Unreadable(1, f"is not YAML: {error}.") from None
    return builder.root or Node(None, source, 1), builder.flaws


def resolve(text: str) -> Scalar:
    """A plain scalar by the YAML 1.2 core schema. Raises ValueError for an integer of absurd length."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if re.fullmatch("0o[0-7]+", text):
        return int(text[2:], 8)
    if re.fullmatch("0x[0-9a-fA-F]+", text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinite = _INFINITE.fullmatch(text)
    if infinite:
        return -math.inf if infinite[1] == "-" else math.inf
    return math.nan if text in (".nan", ".NaN", ".NAN") else text


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Unreadable:
    problem = error.problem or "unknown"
    mark = error.problem_mark
    opened = "did not find expected ',' or" in problem or "end of stream" in problem
    if opened and error.context_mark is not None:
        mark = error.context_mark
    line = mark.line + 1 if mark is not None else 1
    lines = text.splitlines()
    if line <= len(lines) and re.match(r" *\t", lines[line - 1]):
        return Unreadable(line, "a tab cannot indent in YAML. Write spaces.")
    for said, message in _SYNTAX.items():
        if said in problem:
            return Unreadable(min(line, max(len(lines), 1)), message)
    return Unreadable(min(line, max(len(lines), 1)), f"is not YAML: {problem}. Check quotes, brackets and indentation.")


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read; ``key`` is the key whose value comes next."""

    line: int
    anchor: str | None
    items: list[Node] | None = None
    entries: dict[str, Node] = field(default_factory=dict)
    key: str | None = None
    key_line: int = 0
    spoiled: bool = False  # the key was refused: its value is read and dropped


class _Builder:
    """Makes the tree from PyYAML's events: a stack instead of recursion, so that depth is ours to bound."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.root: Node | None = None
        self.flaws: list[Flaw] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.AliasEvent):
            self._refuse_tag(event, line)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise Unreadable(line, "a second document starts here. A recipe is one document: remove the ---.")
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line)
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._alias(event.anchor, line), line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._open(_Open(line, event.anchor, items=[]))
        elif isinstance(event, yaml.MappingStartEvent):
            self._open(_Open(line, event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            self._close()

    def _flaw(self, line: int, subject: str, message: str) -> None:
        self.flaws.append(Flaw(self.source, line, subject, message))

    def _refuse_tag(self, event: Any, line: int) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._flaw(line, tag, "tags are not read. Remove it; quotes make text.")

    def _open(self, opened: _Open) -> None:
        parent = self._stack[-1] if self._stack else None
        if parent is not None and parent.items is None and parent.key is None:
            raise Unreadable(opened.line, "a list or mapping cannot be a key. Write a name before the colon.")
        if len(self._stack) >= DEEPEST:
            raise Unreadable(opened.line, f"more than {DEEPEST} levels deep. No key of a recipe lies that deep.")
        self._stack.append(opened)

    def _close(self) -> None:
        done = self._stack.pop()
        node = container(done.entries if done.items is None else tuple(done.items), self.source, done.line)
        self._remember(done.anchor, node)
        self._add(node, done.line)

    def _scalar(self, event: Any, line: int) -> None:
        plain = event.style in (None, "")
        parent = self._stack[-1] if self._stack else None
        is_key = parent is not None and parent.items is None and parent.key is None
        try:
            value = resolve(event.value) if plain else event.value
            str(value).encode("utf-8")
        except UnicodeEncodeError:
            raise Unreadable(line, "holds half of a surrogate pair. Write the character itself.") from None
        except ValueError:
            raise Unreadable(line, "a number of more than 4,300 digits. Put it in quotes if it is text.") from None
        if isinstance(value, str) and "\0" in value:
            raise Unreadable(line, "holds the character U+0000. Remove it.")
        node = Node(value, self.source, line, written=event.value)
        self._remember(event.anchor, node)
        if is_key and parent is not None:
            self._key(parent, node)
        else:
            self._add(node, line)

    def _key(self, parent: _Open, node: Node) -> None:
        """Starts an entry. A key that is not text is refused; one that stands there twice keeps its first value."""
        parent.key, parent.key_line, parent.spoiled = node.written, node.line, False
        if not isinstance(node.value, str):
            what = f'the key {node.written} is not text. Write "{node.written}" in quotes.'
            self._flaw(node.line, "", what if node.written else "a key is missing before the colon.")
            parent.spoiled = True
        elif node.value in parent.entries:
            first = parent.entries[node.value].line
            self._flaw(node.line, self._path(node.value), f"given twice (first in line {first}). Keep one.")
            parent.spoiled = True

    def _path(self, key: str) -> str:
        steps = [open_.key if open_.items is None else f"[{len(open_.items)}]" for open_ in self._stack[:-1]]
        return ".".join([*(step for step in steps if step), key]).replace(".[", "[")

    def _alias(self, name: str | None, line: int) -> Node:
        if any(opened.anchor == name for opened in self._stack):
            raise Unreadable(line, f"*{name} stands inside its own anchor &{name}, without end. Write the value out.")
        if name is None or name not in self._anchors:
            raise Unreadable(line, f"*{name} has no anchor &{name} above it. Put text that starts with * in quotes.")
        return self._anchors[name]

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _add(self, node: Node, line: int) -> None:
        if node.size > LARGEST_TREE:
            raise Unreadable(line, f"holds more than {LARGEST_TREE:,} values, aliases expanded. Write less.")
        if len(self._stack) + node.depth > DEEPEST:
            raise Unreadable(line, f"more than {DEEPEST} levels deep. No key of a recipe lies that deep.")
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        if parent.items is not None:
            parent.items.append(replace(node, line=line))
        elif parent.key is None:
            raise Unreadable(line, "an alias cannot be a key. Write the name out.")
        else:
            if not parent.spoiled:
                parent.entries[parent.key] = replace(node, line=parent.key_line)
            parent.key = None
