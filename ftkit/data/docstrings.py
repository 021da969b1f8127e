"""Rows from the documentation of installed Python packages, which is read from their source files.

A package is found on the module search path and parsed; nothing of it is imported, so nothing of it runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path

from ftkit.data.documented import Documented, ObjectKind, in_c_module, in_source
from ftkit.data.rows import Place, RawRow, data_error
from ftkit.data.section import Docstrings
from ftkit.errors import MachineError, Problem, did_you_mean

_STDLIB = "stdlib"
_TESTS = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages"})
_UNWANTED = frozenset({"readline"})  # importing it changes how input() of this process reads the terminal
_ANSWER = (15, 600)  # characters
_SUMMARY = (15, 300)
_REST = (120, 1500)  # characters of a docstring without its first sentence
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[^a-z])")
_QUESTIONS: dict[ObjectKind, tuple[str, ...]] = {
    "module": ("What is the module {} for?", "What does the module {} offer?", "What is in the Python module {}?"),
    "class": ("What is the class {} for?", "What is {} in Python?", "What does the class {} stand for?"),
    "function": ("What does {} do?", "What does the function {} do?", "What is the Python function {} for?"),
    "method": ("What does {} do?", "What does the method {} do?", "What is the method {} for?"),
    "property": ("What is {}?", "What does the property {} hold?", "What does the property {} tell?"),
}


def read_docstrings(source: Docstrings) -> Iterator[RawRow]:
    """The documentation of packages, package by package, by module and in source order; the same Python, the same rows.

    form text: {"text", "name"}, the text being the signature line and the docstring, or a help topic as it is.
    form questions: {"text", "name", "question", "answer"}, the answer being the first paragraph in one line; answers
    below 15 or above 600 characters, and help topics, are left out.
    form summaries: {"text", "name", "document", "summary"}, the summary being the first sentence (15 to 300 characters)
    and the document the signature line and the rest of the docstring (120 to 1,500), in which that does not stand.
    A docstring that stands in several places is given once, the first time.
    Raises DataError at once for names that are no package here, and while the rows are taken for a package without any
    documentation.
    """
    problems = [Problem("", "", wrong) for name in source.docstrings if (wrong := _wrong_name(name))]
    if problems:
        raise data_error(str(source), problems)
    return _rows(source)


def docstrings_sha256(source: Docstrings) -> str:
    """One SHA-256 over the names and texts of all rows, in order. Raises as ``read_docstrings`` does."""
    digest = hashlib.sha256()
    for row in read_docstrings(source):
        for value in (row.values["name"], row.values["text"]):
            # Lengths go first, so that no text can look like the border between two rows.
            digest.update(f"{len(value)}:{value}".encode())
    return digest.hexdigest()


def _rows(source: Docstrings) -> Iterator[RawRow]:
    seen: set[str] = set()
    as_row = {"text": _as_text, "questions": _as_question, "summaries": _as_summary}[source.form]
    for package in source.docstrings:
        shown = f"docstrings of {package}"
        used = number = 0
        for thing in _documented(package):
            values = as_row(thing)
            if values is None:
                continue
            used += 1
            if thing.doc in seen:
                continue
            seen.add(thing.doc)
            number += 1
            yield RawRow(Place(shown, "row", number), values)
        if not used:
            message = "no docstring in its source files can be used. Name another package."
            raise data_error(shown, [Problem("", "", message)])


def _as_text(thing: Documented) -> dict[str, str]:
    if thing.kind == "topic":
        return {"text": thing.doc, "name": thing.name}
    return {"text": f"{thing.signature}\n\n{thing.doc}", "name": thing.name}


def _as_question(thing: Documented) -> dict[str, str] | None:
    answer = "" if thing.kind == "topic" else _opening(thing)[0]
    if not _ANSWER[0] <= len(answer) <= _ANSWER[1]:
        return None
    wordings = _QUESTIONS[thing.kind]
    question = wordings[zlib.crc32(thing.name.encode()) % len(wordings)].format(thing.name)
    text = f"Question: {question}\nAnswer: {answer}"
    return {"text": text, "name": thing.name, "question": question, "answer": answer}


def _as_summary(thing: Documented) -> dict[str, str] | None:
    opening, rest = ("", "") if thing.kind == "topic" else _opening(thing)
    summary, *more = _SENTENCE_END.split(opening, maxsplit=1)
    rest = "\n\n".join(part for part in (*more, rest) if part)
    if not _SUMMARY[0] <= len(summary) <= _SUMMARY[1] or not _REST[0] <= len(rest) <= _REST[1]:
        return None
    document = f"{thing.signature}\n\n{rest}"
    if " ".join(summary.split()).rstrip(".") in " ".join(document.split()):
        return None
    return {
        "text": f"{document}\n\nSummary: {summary}",
        "name": thing.name,
        "document": document,
        "summary": summary,
    }


def _opening(thing: Documented) -> tuple[str, str]:
    """The first paragraph in one line, and what follows it.

    Left out is what is no sentence: call forms ("pow(x, y) -> int"), underlines. Empty where an example is first.
    """
    paragraphs = thing.doc.split("\n\n")
    for number, paragraph in enumerate(paragraphs, 1):
        words = [word for line in _sentences(paragraph, thing.name.rsplit(".", 1)[-1]) for word in line.split()]
        if words:
            return "" if words[0] == ">>>" else " ".join(words), "\n\n".join(paragraphs[number:]).strip()
    return "", ""


def _sentences(paragraph: str, name: str) -> Iterator[str]:
    in_call = False
    for line in paragraph.splitlines():
        in_call = line.startswith(f"{name}(") or (in_call and line.startswith(" "))
        if not in_call and line.strip(" =-~*#^+"):
            yield line


def _documented(package: str) -> Iterator[Documented]:
    if package != _STDLIB:
        yield from _of_package(package)
        return
    for name in sorted(sys.stdlib_module_names - _TESTS - _UNWANTED):
        if not name.startswith(("_", "xx")):  # xx: examples of how to write a module in C
            yield from _of_package(name)
    yield from _topics()


def _of_package(package: str) -> Iterator[Documented]:
    top = package.split(".")[0]
    if top in sys.stdlib_module_names and _has_no_source(top):
        yield from in_c_module(top) or ()
    for module, path in _modules(package):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:  # as with what does not parse: no Python for this interpreter, so no module of it
            continue
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{path} cannot be read: {reason}. Make it readable, or name another package."
            raise data_error(f"docstrings of {package}", [Problem("", "", message)]) from error
        yield from in_source(text, module) or ()


def _topics() -> Iterator[Documented]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        message = "the help topics of Python (pydoc_data) are not installed. Install the whole standard library."
        raise MachineError(message) from error
    for name in sorted(topics):
        yield Documented("topic", f"topic {name}", "", topics[name])


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """The name and file of each public module of a package, sorted by name."""
    for root in _roots(package):
        if root.is_file():
            yield package, root
            continue
        found: list[tuple[tuple[str, ...], Path]] = []
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            names = parts[:-1] if parts[-1] == "__init__" else parts
            # A folder whose name is no identifier (templates, vendored trees) holds no module of the package.
            if all(name.isidentifier() and not name.startswith("_") for name in names) and not _TESTS & set(names):
                found.append((names, path))
        for names, path in sorted(found):
            yield ".".join((package, *names)), path


def _roots(package: str) -> list[Path]:
    """The files or folders that hold a module's source; several for a namespace package, none where it has none."""
    top, *below = package.split(".")
    roots = _top_roots(top)
    for name in below:
        folders = [root / name for root in roots if root.is_dir()]
        roots = [path for folder in folders for path in _file_or_folder(folder)]
    return roots


def _top_roots(top: str) -> list[Path]:
    if top in sys.stdlib_module_names:
        # Not by its spec: modules that are frozen into the interpreter name no file there.
        return _file_or_folder(Path(sysconfig.get_path("stdlib")) / top)
    spec = _spec(top)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [path for path in map(Path, spec.submodule_search_locations) if path.is_dir()]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") and Path(spec.origin).is_file() else []


def _file_or_folder(path: Path) -> list[Path]:
    if path.is_dir():  # before the file, as Python does
        return [path]
    file = path.with_name(f"{path.name}.py")
    return [file] if file.is_file() else []


def _spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # __main__, and whatever else stands in sys.modules without a spec
        return None


def _has_no_source(top: str) -> bool:
    """Whether a module of the standard library is built in or an extension. What only has its name does not count."""
    if _top_roots(top):
        return False
    spec = _spec(top)
    if spec is None or spec.origin is None:
        return False
    if not isinstance(spec.loader, ExtensionFileLoader):
        return spec.origin == "built-in"
    origin = Path(spec.origin)
    return origin.is_relative_to(sys.base_exec_prefix) and not {"site-packages", "dist-packages"} & set(origin.parts)


def _wrong_name(package: str) -> str:
    """What is wrong with the name of a package, and the fix; empty where it is one that is here."""
    top, *below = package.split(".")
    if not all(name.isidentifier() for name in (top, *below)):
        return f"got {package!r}, which is no name of a package. Write the name that Python imports, such as xml.etree."
    if package == _STDLIB:
        return ""
    if not (_top_roots(top) or _has_no_source(top) or _spec(top)):
        names = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), _STDLIB}
        hint = did_you_mean(top, sorted(name for name in names if not name.startswith("_")))
        middle = f"{hint} " if hint else ""
        return f"no package named {top} is installed. {middle}Install it, or correct the name."
    for depth, name in enumerate(below, 1):
        parent = ".".join((top, *below[: depth - 1]))
        if not _roots(f"{parent}.{name}"):
            hint = did_you_mean(name, sorted(_children(_roots(parent))))
            return f"{parent} has no module {name} with source. {hint + ' ' if hint else ''}Correct the name."
    return ""


def _children(roots: Iterable[Path]) -> set[str]:
    entries = {entry for root in roots if root.is_dir() for entry in root.iterdir()}
    return {entry.stem for entry in entries if entry.suffix == ".py" or entry.is_dir()}
