"""The rows to train on, to choose the checkpoint on, and to measure on: read, mapped and split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ftkit.data.columns import Mapped
from ftkit.data.findings import counted
from ftkit.data.partition import Side, grouped_sides, stratified_sides
from ftkit.data.rows import RawRow, data_error
from ftkit.data.section import Data, Docstrings, Source, parse_share
from ftkit.data.source import data_files, read_rows, source_sha256
from ftkit.errors import Problem
from ftkit.files import sha256_text
from ftkit.records import Conversation, Decision, Example, as_json

Mapper = Callable[[Iterable[RawRow], str], Mapped]
"""What makes examples of the rows of a source; the text is the source as messages show it."""

_SIDES: tuple[Side, ...] = ("train", "valid", "test")
HUB_SPLITS: Mapping[Side, str] = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source as the recipe names it, with its rows (dropped ones not counted) and the SHA-256 of its bytes.

    Of a hub id it is the SHA-256 of the rows (``examples_sha256``). ``hub``: whether the source is a hub id.
    """

    split: Side
    source: str
    rows: int
    sha256: str
    hub: bool = False


@dataclass(frozen=True, slots=True)
class Splits:
    """The three sides, what was decided on the way, and the places of the rows dropped for an empty text.

    ``valid`` is empty where the recipe says 0%; ``train`` and ``test`` never are.
    """

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    decisions: tuple[Decision, ...]
    dropped: tuple[str, ...]
    sources: tuple[SourceFile, ...]

    def named(self) -> dict[Side, tuple[Example, ...]]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


@dataclass(frozen=True, slots=True)
class _Read:
    examples: tuple[Example, ...]
    mapped: tuple[Mapped, ...]
    sources: tuple[SourceFile, ...]


def make_splits(data: Data, folder: Path, mapper: Mapper, *, seed: int, multi_label: bool) -> Splits:
    """Reads the sources of a recipe in ``folder`` and draws the shares among them from train, seeded.

    ``mapper`` makes the examples: labelled texts, whose shares are stratified, or conversations, drawn by rows.

    Raises DataError for whatever is wrong in a source, a file that is named twice, a share that gives no row, and a
    group on two sides; MachineError for a hub id that cannot be loaded.
    """
    named: dict[Side, tuple[Source, ...]] = {"train": _sources(data.train)}
    shares: dict[Side, float] = {}
    given: tuple[tuple[Side, Any], ...] = (("valid", data.valid), ("test", data.test))
    for side, value in given:
        share = parse_share(value) if isinstance(value, str) else None
        if share is None:
            named[side] = _sources(value)
        else:
            shares[side] = share
    _refuse_twice(named, folder)
    read = {side: _read(side, sources, folder, data, mapper) for side, sources in named.items()}
    rows = {side: part.examples for side, part in read.items()}
    decisions = [decision for part in read.values() for mapped in part.mapped for decision in mapped.decisions]
    if shares:
        drawn = _draw(rows["train"], shares, data, seed=seed, multi_label=multi_label)
        decisions += _share_decisions(drawn, shares, data, seed)
        rows |= drawn
    if data.group is not None:
        _refuse_shared_groups(rows, data.group)
    return Splits(
        train=rows["train"],
        valid=rows["valid"],
        test=rows["test"],
        decisions=tuple(dict.fromkeys(decisions)),
        dropped=tuple(place for part in read.values() for mapped in part.mapped for place in mapped.dropped),
        sources=tuple(source for part in read.values() for source in part.sources),
    )


def examples_sha256(examples: Sequence[Example]) -> str:
    """One SHA-256 over all that the rows say, in order: what was measured on, wherever it was read from."""
    # Lengths go first, so that no text can look like the border between two rows.
    parts = (part for example in examples for part in _content(example))
    return sha256_text("".join(f"{len(part)}:{part}" for part in parts))


def _content(example: Example) -> tuple[str, ...]:
    """The text and the labels, of a conversation also its turns, references and tools."""
    labelled = (example.text, str(len(example.labels)), *example.labels)
    if not isinstance(example, Conversation):
        return labelled
    record = as_json(example)
    return (*labelled, json.dumps([record["turns"], record["references"], record["tools"]], ensure_ascii=False))


def _sources(value: Any) -> tuple[Source, ...]:
    return value if isinstance(value, tuple) else (value,)


def _read(side: Side, sources: Sequence[Source], folder: Path, data: Data, mapper: Mapper) -> _Read:
    mapped, files = [], []
    for source in sources:
        rows = read_rows(source, folder, quoting=data.quoting, hub_split=HUB_SPLITS[side])
        part = mapper(islice(rows, data.max_rows) if side == "train" else rows, str(source))
        local = source_sha256(source, folder)
        digest = local or examples_sha256(part.examples)
        mapped.append(part)
        files.append(SourceFile(side, str(source), len(part.examples), digest, hub=local is None))
    return _Read(_with_own_ids([row for part in mapped for row in part.examples]), tuple(mapped), tuple(files))


def _with_own_ids(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Ids by file name where those differ; else by the whole place, as for a/1.txt and b/1.txt."""
    if len({example.id for example in examples}) == len(examples):
        return tuple(examples)
    return tuple(replace(example, id=":".join(example.where.rsplit(" ", 2)[::2])) for example in examples)


def _refuse_twice(named: Mapping[Side, Sequence[Source]], folder: Path) -> None:
    seen: dict[Path | str, tuple[Side, Source]] = {}
    for side, sources in named.items():
        for source in sources:
            for key in _read_from(source, side, folder):
                if key in seen:
                    before, other = seen[key]
                    message = f"is read already for {before} ({other}). Name each {_kind(source)} once."
                    raise data_error(str(source), [Problem("", f"data.{side}", message)])
                seen[key] = (side, source)


def _read_from(source: Source, side: Side, folder: Path) -> list[Path | str]:
    """The files that a source is read from; of others what names them."""
    if isinstance(source, Docstrings):
        return [f"docstrings of {package}" for package in source.docstrings]
    files = data_files(source, folder)
    if files is not None:
        return [file.path.resolve() for file in files]
    return [source if ":" in source else f"{source}:{HUB_SPLITS[side]}"]


def _kind(source: Source) -> str:
    return "package" if isinstance(source, Docstrings) else "file"


def _draw(
    examples: Sequence[Example], shares: Mapping[Side, float], data: Data, *, seed: int, multi_label: bool
) -> dict[Side, tuple[Example, ...]]:
    """The train rows split into train and each share. Raises DataError where a share above 0 gets no row."""
    if data.group is not None:
        sides = grouped_sides(examples, shares, seed=seed)
    else:
        sides = stratified_sides(examples, shares, seed=seed, multi_label=multi_label)
    drawn = {
        side: tuple(example for example, own in zip(examples, sides, strict=True) if own == side)
        for side in ("train", *shares)
    }
    values: dict[Side, Any] = {"valid": data.valid, "test": data.test}
    problems = [
        Problem("", f"data.{side}", _empty_share(side, str(values[side]), examples, data.group))
        for side, share in shares.items()
        if share > 0 and not drawn[side]
    ]
    if not drawn["train"]:
        message = f"valid and test take all of {_rows(examples, data.group)}. Write smaller shares."
        problems.append(Problem("", "data.train", message))
    if problems:
        raise data_error(" and ".join(map(str, _sources(data.train))), problems)
    return drawn


def _empty_share(side: Side, share: str, examples: Sequence[Example], group: str | None) -> str:
    off = ", or 0% to do without" if side == "valid" else ""
    why = "" if _are_conversations(examples) else ", as each label keeps a row in train"
    return f"{share} of {_rows(examples, group)} gives no row{why}. Write a larger share, or a file{off}."


def _rows(examples: Sequence[Example], group: str | None) -> str:
    rows = counted(len(examples), "row")
    return (
        rows
        if group is None
        else f"{rows} in {counted(len({example.group for example in examples}), 'group')} of {group}"
    )


def _are_conversations(examples: Sequence[Example]) -> bool:
    return all(isinstance(example, Conversation) for example in examples)


def _share_decisions(
    drawn: Mapping[Side, Sequence[Example]], shares: Mapping[Side, float], data: Data, seed: int
) -> list[Decision]:
    how = "by rows" if _are_conversations(drawn["train"]) else "stratified by label"
    if data.group is not None:
        how = f"by whole groups of {data.group}"
    total = sum(map(len, drawn.values()))
    values: dict[Side, Any] = {"valid": data.valid, "test": data.test}
    decisions = []
    for side, share in shares.items():
        left_out = "" if side in data.model_fields_set else "left out; "
        why = f"{left_out}{len(drawn[side]):,} of {total:,} rows of train, {how}, seed {seed}"
        decisions.append(Decision(f"data.{side}", values[side], why if share > 0 else f"{left_out}no validation"))
    return decisions


def _refuse_shared_groups(rows: Mapping[Side, Sequence[Example]], column: str) -> None:
    first = {side: {example.group: example for example in reversed(rows[side])} for side in _SIDES}
    problems = []
    pairs: tuple[tuple[Side, Side], ...] = (("train", "valid"), ("train", "test"), ("valid", "test"))
    for one, other in pairs:
        shared = [group for group in first[one] if group in first[other]]
        for group in sorted(map(str, shared)):
            places = f"{first[one][group].where} and {first[other][group].where}"
            message = f"group {group} stands in {one} and in {other} ({places}). Keep it in one of them."
            problems.append(Problem("", column, message))
    if problems:
        raise data_error("the split by data.group", problems)
