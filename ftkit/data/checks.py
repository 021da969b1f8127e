"""Everything that can be said of the rows before a weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftkit.data.findings import Finding, counted, first_rows
from ftkit.data.labels import count_labels, label_findings, label_set
from ftkit.data.leakage import Leakage, duplicate_findings, find_leakage
from ftkit.data.lengths import Lengths, choose_max_length, max_positions, summary, token_lengths
from ftkit.data.section import Data, parse_share
from ftkit.data.splits import Splits
from ftkit.records import Decision, Example


@dataclass(frozen=True, slots=True)
class Preflight:
    """What is known of the data. Plain values only: ``records.as_json`` writes it.

    ``labels`` in the head's order; ``rows`` and ``counts`` by split; ``lengths`` and ``truncated`` (rows longer than
    ``max_length``) by split, empty without a tokenizer.json; ``positions``: what the base takes, None for no limit.
    """

    labels: tuple[str, ...]
    rows: dict[str, int]
    counts: dict[str, dict[str, int]]
    leakage: tuple[Leakage, ...]
    lengths: dict[str, Lengths]
    truncated: dict[str, int]
    positions: int | None
    max_length: int | None
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The token counts of each split and what follows from them; empty where the base has no tokenizer.json."""

    lengths: dict[str, Lengths]
    truncated: dict[str, int]
    positions: int | None
    max_length: int | None
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]


def preflight(
    splits: Splits,
    data: Data,
    *,
    labels: Sequence[str] | None,
    multi_label: bool,
    weighted: bool = False,
    base: Path | None = None,
    max_length: int | None = None,
) -> Preflight:
    """Checks labels, duplicates, leakage and lengths of the splits.

    ``labels`` is task.labels; ``weighted``: task.class_weights is set; ``base``: the base's folder, without which no
    lengths are counted; ``max_length`` is train.max_length (``lengths.too_long`` judges it). Raises DataError for
    labels outside the set or without a train row and for leakage above its limits, MachineError for a damaged base.
    """
    named: dict[str, tuple[Example, ...]] = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    chosen, decision = label_set(named, labels)
    counts = count_labels(named, chosen)
    max_exact, max_near = parse_share(data.max_leakage) or 0.0, parse_share(data.max_near_leakage or "")
    leakage, leaks = find_leakage(named, max_exact=max_exact, max_near=max_near)
    tokens = _count_tokens(named, base, max_length)
    return Preflight(
        labels=chosen,
        rows={name: len(rows) for name, rows in named.items()},
        counts=counts,
        leakage=leakage,
        lengths=tokens.lengths,
        truncated=tokens.truncated,
        positions=tokens.positions,
        max_length=tokens.max_length,
        findings=(
            *_dropped(splits.dropped),
            *label_findings(named, counts, weighted=weighted, multi_label=multi_label),
            *duplicate_findings(splits.train),
            *leaks,
            *tokens.findings,
        ),
        decisions=(*((decision,) if decision else ()), *tokens.decisions),
    )


def _dropped(places: Sequence[str]) -> list[Finding]:
    if not places:
        return []
    message = f"{counted(len(places), 'row')} with an empty text left out."
    return [Finding("warning", "empty_text", message, first_rows(places))]


def _count_tokens(named: dict[str, tuple[Example, ...]], base: Path | None, max_length: int | None) -> _Tokens:
    positions = max_positions(base) if base is not None else None
    counted_by_split: dict[str, list[int]] = {}
    for name, rows in named.items():
        lengths = token_lengths(base, (row.text for row in rows)) if base is not None else None
        if lengths is None:
            return _Tokens({}, {}, positions, max_length, (), ())
        if lengths:
            counted_by_split[name] = lengths
    decisions: tuple[Decision, ...] = ()
    if max_length is None:
        decisions = (choose_max_length(counted_by_split["train"], positions),)
    limit = max_length if max_length is not None else int(decisions[0].value)
    truncated = {name: sum(length > limit for length in own) for name, own in counted_by_split.items()}
    findings = _truncations(named, counted_by_split, truncated, limit)
    summaries = {name: summary(own) for name, own in counted_by_split.items()}
    return _Tokens(summaries, truncated, positions, limit, tuple(findings), decisions)


def _truncations(
    named: dict[str, tuple[Example, ...]], lengths: dict[str, list[int]], truncated: dict[str, int], limit: int
) -> list[Finding]:
    findings = []
    for name, cut in truncated.items():
        if cut:
            share = 100 * cut / len(lengths[name])
            # Up to 1% is what a max_length at the 99.5th percentile is expected to cut.
            level: Literal["warning", "note"] = "warning" if share > 1 else "note"
            advice = " Raise train.max_length, or shorten them." if share > 1 else ""
            message = (
                f"{counted(cut, f'{name} row')} ({share:.2g}%) longer than {limit} tokens, the longest has "
                f"{max(lengths[name]):,}: what exceeds is cut.{advice}"
            )
            places = (row.where for row, own in zip(named[name], lengths[name], strict=True) if own > limit)
            findings.append(Finding(level, "truncated", message, first_rows(places)))
    return findings
