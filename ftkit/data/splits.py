"""The rows to train on, to choose the checkpoint on, and to measure on: read, mapped and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftkit.data.columns import Mapped, to_examples
from ftkit.data.partition import Side, grouped_sides, stratified_sides
from ftkit.data.rows import data_error
from ftkit.data.section import Data, parse_share
from ftkit.data.source import data_files, read_rows, source_sha256
from ftkit.errors import Problem
from ftkit.files import sha256_text
from ftkit.records import Decision, Example

_SIDES: tuple[Side, ...] = ("train", "valid", "test")
HUB_SPLITS: Mapping[Side, str] = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source as the recipe names it, with its rows (dropped ones not counted) and the SHA-256 of its bytes.

    Of a hub id it is the SHA-256 of the rows (``examples_sha256``).
    """

    split: Side
    source: str
    rows: int
    sha256: str


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


def make_splits(data: Data, folder: Path, *, seed: int, multi_label: bool) -> Splits:
    """Reads the sources of a recipe in ``folder`` and draws the shares among them from train, seeded.

    Raises DataError for whatever is wrong in a source, a file that is named twice, a share that gives no row, and a
    group on two sides; MachineError for a hub id that cannot be loaded.
    """
    named: dict[Side, tuple[str, ...]] = {"train": _sources(data.train)}
    shares: dict[Side, float] = {}
    given: tuple[tuple[Side, Any], ...] = (("valid", data.valid), ("test", data.test))
    for side, value in given:
        share = parse_share(value) if isinstance(value, str) else None
        if share is None:
            named[side] = _sources(value)
        else:
            shares[side] = share
    _refuse_twice(named, folder)
    read = {side: _read(side, sources, folder, data, multi_label) for side, sources in named.items()}
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
    """One SHA-256 over texts and labels, in order: what was measured on, wherever it was read from."""
    # Lengths go first, so that no text can look like the border between two rows.
    parts = (part for example in examples for part in (example.text, str(len(example.labels)), *example.labels))
    return sha256_text("".join(f"{len(part)}:{part}" for part in parts))


def _sources(value: Any) -> tuple[str, ...]:
    # Labelled rows never come from docstrings: the recipe's rules refuse those.
    return (value,) if isinstance(value, str) else value


def _read(side: Side, sources: Sequence[str], folder: Path, data: Data, multi_label: bool) -> _Read:
    mapped, files = [], []
    for source in sources:
        rows = read_rows(source, folder, quoting=data.quoting, hub_split=HUB_SPLITS[side])
        part = to_examples(rows, source, data, multi_label=multi_label)
        digest = source_sha256(source, folder) or examples_sha256(part.examples)
        mapped.append(part)
        files.append(SourceFile(side, source, len(part.examples), digest))
    return _Read(_with_own_ids([row for part in mapped for row in part.examples]), tuple(mapped), tuple(files))


def _with_own_ids(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Ids by file name where those differ; else by the whole place, as for a/1.txt and b/1.txt."""
    if len({example.id for example in examples}) == len(examples):
        return tuple(examples)
    return tuple(replace(example, id=":".join(example.where.rsplit(" ", 2)[::2])) for example in examples)


def _refuse_twice(named: Mapping[Side, Sequence[str]], folder: Path) -> None:
    seen: dict[Path | str, tuple[Side, str]] = {}
    for side, sources in named.items():
        for source in sources:
            files = data_files(source, folder)
            hub_id = source if ":" in source else f"{source}:{HUB_SPLITS[side]}"
            for key in [file.path.resolve() for file in files] if files is not None else [hub_id]:
                if key in seen:
                    before, other = seen[key]
                    message = f"is read already for {before} ({other}). Name each file once."
                    raise data_error(source, [Problem("", f"data.{side}", message)])
                seen[key] = (side, source)


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
    if problems:
        raise data_error(" and ".join(_sources(data.train)), problems)
    return drawn


def _empty_share(side: Side, share: str, examples: Sequence[Example], group: str | None) -> str:
    what = f"{len(examples):,} rows"
    if group is not None:
        groups = len({example.group for example in examples})
        what += f" in {groups:,} group{'' if groups == 1 else 's'} of {group}"
    off = ", or 0% to do without" if side == "valid" else ""
    return f"{share} of {what} gives no row, as each label keeps a row in train. Write a larger share, or a file{off}."


def _share_decisions(
    drawn: Mapping[Side, Sequence[Example]], shares: Mapping[Side, float], data: Data, seed: int
) -> list[Decision]:
    how = f"by whole groups of {data.group}" if data.group is not None else "stratified by label"
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
