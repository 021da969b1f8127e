"""Rows of one split that stand in another, word for word or nearly, and whether that is too many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ftkit.data.duplicates import Match, exact_matches, near_matches, normalised, same_texts
from ftkit.data.findings import Finding, counted, first_rows
from ftkit.data.rows import LISTED
from ftkit.data.turns import said
from ftkit.errors import DataError, Problem
from ftkit.records import Conversation, Example

# The split that is measured or chosen on, and the split its rows must not stand in.
_PAIRS = (("test", "train"), ("valid", "train"), ("test", "valid"))
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Leakage:
    """How many rows of ``split`` stand ``within`` another split: word for word, and nearly (others)."""

    split: str
    within: str
    rows: int
    exact: int
    near: int
    pairs: tuple[tuple[str, str, float], ...]  # the first ones: where, where, similarity

    @property
    def exact_share(self) -> float:
        return self.exact / self.rows

    @property
    def share(self) -> float:
        """Exact and near ones together."""
        return (self.exact + self.near) / self.rows


def find_leakage(
    splits: Mapping[str, Sequence[Example]], *, max_exact: float, max_near: float | None
) -> tuple[tuple[Leakage, ...], list[Finding]]:
    """Leakage of each pair of splits, and a warning where there is any.

    Raises DataError that names the first pairs where the exact share of a pair exceeds ``max_exact``, or the share of
    exact and near ones ``max_near`` (None: near ones are reported only).
    """
    found, findings, problems = [], [], []
    for split, within in _PAIRS:
        if not splits[split] or not splits[within]:
            continue
        exact = exact_matches(splits[split], splits[within])
        leaked = {match.row.id for match in exact}
        others = [row for row in splits[split] if row.id not in leaked]
        near = near_matches([*map(_with_answer, others)], map(_with_answer, splits[within]))
        matches = exact + near
        leakage = Leakage(split, within, len(splits[split]), len(exact), len(near), tuple(map(_pair, matches[:LISTED])))
        found.append(leakage)
        if leakage.exact_share > max_exact:
            problems += _problems(leakage, exact, leakage.exact_share, max_exact, "max_leakage")
        elif max_near is not None and leakage.share > max_near:
            problems += _problems(leakage, matches, leakage.share, max_near, "max_near_leakage")
        findings += _findings(leakage, exact, near)
    if problems:
        # Not data_error: what is wrong are the shares; the pairs below them are examples, and few.
        raise DataError("rows stand in more than one split", problems)
    return tuple(found), findings


def _with_answer(row: Example) -> Example:
    """The row as it is compared for nearness: prompts of one wording are alike, and only with their answer the same."""
    return replace(row, text=f"{row.text}\n{row.references[0]}") if isinstance(row, Conversation) else row


def duplicate_findings(train: Sequence[Example]) -> list[Finding]:
    """Warnings on train rows with the same text: repeated with the same labels, and contradicting each other.

    Conversations have no labels, and one prompt may have many good answers: those with the same answer are repeated.
    """
    what = "text and labels"
    repeated: list[tuple[Example, ...]] = []
    conflicting: list[tuple[Example, ...]] = []
    for group in same_texts(train):
        if isinstance(group[0], Conversation):
            what = "prompt and answer"
            repeated += _same_answers(group)
            continue
        differ = len({frozenset(row.labels) for row in group}) > 1
        (conflicting if differ else repeated).append(group)
    findings = []
    if repeated:
        extra = sum(len(group) - 1 for group in repeated)
        message = f"train repeats rows with the same {what} {counted(extra, 'time')}: they count more than once."
        findings.append(Finding("warning", "duplicates", message, first_rows(map(_places, repeated))))
    if conflicting:
        rows = sum(map(len, conflicting))
        message = (
            f"{counted(len(conflicting), 'text')} in train with different labels ({counted(rows, 'row')}). "
            "Decide on one label, or remove the rows."
        )
        findings.append(Finding("warning", "conflicting_labels", message, first_rows(map(_labelled, conflicting))))
    return findings


def _same_answers(group: Sequence[Example]) -> list[tuple[Example, ...]]:
    """The sets of two or more conversations of a group whose last turns say the same."""
    sets: defaultdict[str, list[Example]] = defaultdict(list)
    for row in group:
        if isinstance(row, Conversation):
            sets[normalised(said(row.turns[-1]))].append(row)
    return [tuple(own) for own in sets.values() if len(own) > 1]


def _pair(match: Match) -> tuple[str, str, float]:
    return match.row.where, match.other.where, round(match.similarity, 4)


def _problems(leakage: Leakage, matches: Sequence[Match], share: float, limit: float, key: str) -> list[Problem]:
    kind = "word for word" if key == "max_leakage" else "word for word or nearly"
    message = (
        f"{counted(len(matches), 'row')} of {leakage.rows:,} in {leakage.split} ({100 * share:.3g}%) "
        f"{_stand(matches)} {kind} in {leakage.within}; at most {100 * limit:.3g}% may. "
        f"Remove them from {leakage.within}, or raise data.{key}."
    )
    return [Problem("", f"data.{leakage.split}", message)] + [
        Problem("", "", f"{match.row.where} {_sign(match)} {match.other.where}: {_short(match.row.text)}")
        for match in matches[:_SHOWN]
    ]


def _findings(leakage: Leakage, exact: Sequence[Match], near: Sequence[Match]) -> list[Finding]:
    kinds = (("leakage", "word for word", exact), ("near_leakage", "nearly", near))
    findings = []
    for code, how, matches in kinds:
        if matches:
            share = 100 * len(matches) / leakage.rows
            message = (
                f"{counted(len(matches), f'{leakage.split} row')} of {leakage.rows:,} ({share:.3g}%) "
                f"{_stand(matches)} {how} in {leakage.within}, which flatters the score. "
                f"Remove them from {leakage.within}."
            )
            places = (f"{match.row.where} {_sign(match)} {match.other.where}" for match in matches)
            findings.append(Finding("warning", code, message, first_rows(places)))
    return findings


def _stand(matches: Sequence[Match]) -> str:
    return "stands" if len(matches) == 1 else "stand"


def _sign(match: Match) -> str:
    return "=" if match.exact else f"~ ({match.similarity:.2f})"


def _places(group: Sequence[Example]) -> str:
    return " = ".join(row.where for row in group[:4]) + (" …" if len(group) > 4 else "")


def _labelled(group: Sequence[Example]) -> str:
    rows = (f"{row.where} ({', '.join(row.labels) or 'none'})" for row in group[:4])
    return " / ".join(rows) + (" …" if len(group) > 4 else "")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
