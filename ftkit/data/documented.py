"""What is documented in Python code: found in source files with ``ast``, and in C modules by inspection.

Source files are parsed, never imported. Only modules of the standard library that have no source are imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

ObjectKind = Literal["module", "class", "function", "method", "property", "topic"]

_SHORTEST = 20  # characters of a docstring that says something
_SHORTEST_DUNDER = 40  # "Return self==value." and its like say nothing
_PROPERTIES = frozenset({"property", "cached_property", "functools.cached_property"})
_AT_HOME = {"posix": "os", "nt": "os"}  # where users find what these modules hold


@dataclass(frozen=True, slots=True)
class Documented:
    """A thing with a docstring: its dotted name, its signature as one line of source, and the cleaned docstring."""

    kind: ObjectKind
    name: str
    signature: str
    doc: str


def in_source(text: str, module: str) -> Iterator[Documented] | None:
    """The documented public things of a module's source, in source order; None where it is not Python.

    Public: no leading underscore, and no special methods (``__len__``) but those with a docstring of 40 characters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's files are theirs to mend
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # MemoryError: the parser's own limit of nesting
        return None
    return _of_module(tree, module)


def in_c_module(name: str) -> Iterator[Documented] | None:
    """The documented public things of a module of the standard library that has no source, sorted by name.

    None where it cannot be imported on this machine. It must not be called for modules of other packages.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are deprecated
            module = importlib.import_module(name)
    except ImportError:
        return None
    return _of_c_module(module)


def _of_module(tree: ast.Module, module: str) -> Iterator[Documented]:
    yield from _documented("module", module, f"module {module}", ast.get_docstring(tree, clean=False))
    yield from _of_body(tree.body, module, in_class=False)


def _of_body(body: Sequence[ast.stmt], prefix: str, *, in_class: bool) -> Iterator[Documented]:
    for node in _definitions(body):
        if not _is_public(node.name, special=in_class):
            continue
        name = f"{prefix}.{node.name}"
        doc = ast.get_docstring(node, clean=False)
        if isinstance(node, ast.ClassDef):
            yield from _documented("class", name, _class_line(node), doc)
            yield from _of_body(node.body, name, in_class=True)
        else:
            yield from _documented(_function_kind(node, in_class), name, _function_line(node), doc)


def _definitions(body: Sequence[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a body, also those in its if, try and with statements; the first of each place."""
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node
            case ast.If():
                yield from _definitions([*node.body, *node.orelse])
            case ast.Try():
                handled = [statement for handler in node.handlers for statement in handler.body]
                yield from _definitions([*node.body, *handled, *node.orelse, *node.finalbody])
            case ast.With():
                yield from _definitions(node.body)


def _is_public(name: str, *, special: bool) -> bool:
    return not name.startswith("_") or (special and _is_special(name))


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _documented(kind: ObjectKind, name: str, signature: str, doc: object) -> Iterator[Documented]:
    if not isinstance(doc, str):
        return
    # Half a surrogate pair, which an escape in a literal can write, is no text that UTF-8 can hold.
    cleaned = inspect.cleandoc(doc).strip().encode("utf-8", "replace").decode("utf-8")
    if len(cleaned) >= (_SHORTEST_DUNDER if _is_special(name.rsplit(".", 1)[-1]) else _SHORTEST):
        yield Documented(kind, name, " ".join(signature.splitlines()), cleaned)


def _class_line(node: ast.ClassDef) -> str:
    bases = [*map(ast.unparse, node.bases), *map(ast.unparse, node.keywords)]
    return f"class {node.name}({', '.join(bases)})" if bases else f"class {node.name}"


def _function_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}"


def _function_kind(node: ast.FunctionDef | ast.AsyncFunctionDef, in_class: bool) -> ObjectKind:
    if any(ast.unparse(decorator) in _PROPERTIES for decorator in node.decorator_list):
        return "property"
    return "method" if in_class else "function"


def _of_c_module(module: ModuleType) -> Iterator[Documented]:
    home = _AT_HOME.get(module.__name__, module.__name__)
    yield from _documented("module", module.__name__, f"module {module.__name__}", module.__doc__)
    members = vars(module)
    for attribute in sorted(members):
        # sys.excepthook and its like may have been replaced in this process; sys.__excepthook__ is the original.
        member = members.get(f"__{attribute}__", members[attribute])
        if attribute.startswith("_") or getattr(member, "__module__", None) not in (module.__name__, home):
            continue
        name = f"{home}.{attribute}" if module is not builtins else attribute
        if inspect.isclass(member):
            bases = ", ".join(base.__name__ for base in member.__bases__ if base is not object)
            line = f"class {attribute}({bases})" if bases else f"class {attribute}"
            yield from _documented("class", name, line, member.__doc__)
            yield from _of_c_class(member, name)
        elif inspect.isbuiltin(member):
            yield from _documented("function", name, _c_function_line(attribute, member), member.__doc__)


def _of_c_class(owner: type, prefix: str) -> Iterator[Documented]:
    for attribute in sorted(vars(owner)):
        if _is_public(attribute, special=True) and inspect.isroutine(vars(owner)[attribute]):
            member = getattr(owner, attribute)
            line = _c_function_line(attribute, member)
            yield from _documented("method", f"{prefix}.{attribute}", line, member.__doc__)


def _c_function_line(name: str, member: Any) -> str:
    try:
        signature = str(inspect.signature(member))
    except (ValueError, TypeError):  # written in C without a signature
        signature = "(...)"
    # A default without a literal shows its address, which differs from process to process.
    return f"def {name}{'(...)' if ' at 0x' in signature else signature}"
