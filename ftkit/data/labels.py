"""The label set and its counts: what is missing, misspelt, rare or out of balance."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ftkit.data.findings import Finding, counted
from ftkit.data.rows import data_error
from ftkit.errors import Problem, did_you_mean
from ftkit.records import Decision, Example

_IMBALANCED, _STRONGLY_IMBALANCED = 3, 20
_FEW_ROWS = 8  # of a label in train
_FEW_TEST_ROWS = 50

Rows = Mapping[str, Sequence[Example]]  # by split: train, valid, test


def label_set(splits: Rows, given: Sequence[str] | None) -> tuple[tuple[str, ...], Decision | None]:
    """The labels in the head's order: those given, or those of train sorted as text with the decision that says so.

    Raises DataError for labels outside the set, with rows and the nearest label, for labels of the set without a row
    in train, and for a set of fewer than two.
    """
    train = {label for example in splits["train"] for label in example.labels}
    labels = tuple(given) if given is not None else tuple(sorted(train))
    problems = _outside(splits, labels, given is not None)
    for label in labels:
        if label not in train:
            message = f"no train row has {label!r}, so it cannot be learned. Add rows, or remove it from task.labels."
            problems.append(Problem("", "task.labels", message))
    if len(labels) < 2:
        found = f"the only label is {labels[0]!r}" if labels else "no row has a label"
        problems.append(Problem("", "task.labels", f"{found}; at least two are needed. Check data.columns.label."))
    if problems:
        raise data_error("the data", problems)
    decision = None
    if given is None:
        decision = Decision("task.labels", list(labels), "the labels of train, sorted as text")
    return labels, decision


def count_labels(splits: Rows, labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of each label in each split."""
    counts = {name: Counter(label for row in rows for label in row.labels) for name, rows in splits.items()}
    return {name: {label: count[label] for label in labels} for name, count in counts.items()}


def label_findings(
    splits: Rows, counts: Mapping[str, Mapping[str, int]], *, weighted: bool, multi_label: bool
) -> list[Finding]:
    """Warnings on labels that are missing from a split, spelt alike, rare or out of balance, and on few test rows.

    ``weighted``: the recipe sets task.class_weights, which is not advised again then.
    """
    findings = _missing_from(splits, counts) + _alike(list(counts["train"]))
    few = [f"{label!r} ({counted(n, 'row')})" for label, n in counts["train"].items() if n < _FEW_ROWS]
    if few:
        message = f"labels with fewer than {_FEW_ROWS} train rows are hardly learned: {', '.join(few)}. Add rows."
        findings.append(Finding("warning", "few_rows", message))
    if not multi_label:
        findings += _imbalance(counts["train"], weighted)
    tested = len(splits["test"])
    if tested < _FEW_TEST_ROWS:
        points = 100 * 1.96 * math.sqrt(0.25 / max(tested, 1))
        message = f"only {counted(tested, 'test row')}: a 95% interval can span ±{points:.0f} points. Add test rows."
        findings.append(Finding("warning", "few_test_rows", message))
    return findings


def _outside(splits: Rows, labels: Sequence[str], given: bool) -> list[Problem]:
    known = set(labels)
    places: defaultdict[str, list[str]] = defaultdict(list)
    for rows in splits.values():
        for row in rows:
            for label in row.labels:
                if label not in known:
                    places[label].append(row.where)
    fix = "Correct it, or add it to task.labels." if given else "Correct it, or add train rows with it."
    problems = []
    for label, found in places.items():
        outside = f"is not in task.labels ({', '.join(labels)})" if given else "stands in no train row"
        more = f" (and {counted(len(found) - 1, 'more row')})" if len(found) > 1 else ""
        hint = did_you_mean(label, labels)
        problems.append(Problem(found[0], "label", f"{label!r} {outside}{more}. {hint + ' ' if hint else ''}{fix}"))
    return problems


def _missing_from(splits: Rows, counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    effects = {"test": "they cannot be measured", "valid": "they do not count in choosing the checkpoint"}
    findings = []
    for name, effect in effects.items():
        missing = [repr(label) for label, count in counts[name].items() if not count]
        if splits[name] and missing:
            message = f"no {name} row has the labels {', '.join(missing)}: {effect}. Add rows to {name}."
            findings.append(Finding("warning", "label_missing", message))
    return findings


def _alike(labels: Sequence[str]) -> list[Finding]:
    """Labels that differ by case or white space only are nearly always one label."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[" ".join(label.casefold().split())].append(repr(label))
    return [
        Finding("warning", "labels_alike", f"the labels {' and '.join(same)} differ by case or spaces only. One label?")
        for same in alike.values()
        if len(same) > 1
    ]


def _imbalance(counts: Mapping[str, int], weighted: bool) -> list[Finding]:
    largest, smallest = max(counts, key=lambda label: counts[label]), min(counts, key=lambda label: counts[label])
    ratio = counts[largest] / counts[smallest]
    if ratio <= _IMBALANCED:
        return []
    advice = "Gate on macro F1, not accuracy" + ("." if weighted else ", and set task.class_weights: balanced.")
    if ratio > _STRONGLY_IMBALANCED:
        advice += f" Add rows of {smallest!r}: weights do not replace them at this ratio."
    share = 100 * counts[largest] / sum(counts.values())
    message = (
        f"train has {ratio:.1f} times as many rows of {largest!r} ({counts[largest]:,}) as of {smallest!r} "
        f"({counts[smallest]:,}); always answering {largest!r} is right in {share:.0f}% of them. {advice}"
    )
    return [Finding("warning", "imbalance", message)]
