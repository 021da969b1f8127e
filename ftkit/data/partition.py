"""Shares of a set of examples: stratified by label, or by whole groups. Seeded, and nothing but the examples counts.

Rows with the same text (``normalised``) stay on one side, or the split itself would leak. A label's last row stays in
train, where it can be learned from.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from ftkit.data.duplicates import normalised
from ftkit.records import Example

Side = Literal["train", "valid", "test"]
_Unit = list[int]  # positions of examples that are never separated
_Stratum = tuple[str, ...]


def stratified_sides(
    examples: Sequence[Example], shares: Mapping[Side, float], *, seed: int, multi_label: bool
) -> list[Side]:
    """The side of each example, such that each label has its share of each side within one row.

    Examples without labels, as conversations are, are one stratum: each side gets its share of the rows.

    Strata are the labels; for a multi-label task the combinations of labels, where the rare ones form one stratum.
    ``shares`` gives valid and test; what is left is train. test is drawn first, so it does not depend on valid.
    """
    rng = random.Random(seed)
    strata = _strata(examples, shares, multi_label)
    sizes = {key: sum(map(len, units)) for key, units in strata.items()}
    for units in strata.values():
        rng.shuffle(units)
    sides: list[Side] = ["train"] * len(examples)
    in_train = Counter(label for example in examples for label in example.labels)
    for side in _drawn(shares):
        quotas = _quotas(sizes, shares[side])
        for key, units in strata.items():
            strata[key] = _draw(units, quotas[key], side, sides, examples, in_train)
    return sides


def grouped_sides(examples: Sequence[Example], shares: Mapping[Side, float], *, seed: int) -> list[Side]:
    """The side of each example by whole groups, such that sizes and label counts come close to the shares.

    Groups are placed one by one, large ones first, on the side that lacks their labels most. A label that would be
    missing from train brings its smallest group back.
    """
    groups: defaultdict[str | None, _Unit] = defaultdict(list)
    for position, example in enumerate(examples):
        groups[example.group].append(position)
    units = list(groups.values())
    random.Random(seed).shuffle(units)
    # Ordered by size class, not by size: groups of similar size change places with the seed.
    units.sort(key=lambda unit: -len(unit).bit_length())
    labels = [Counter(label for position in unit for label in examples[position].labels) for unit in units]
    placed = _place(units, labels, {"train": 1 - sum(shares.values()), **shares})
    _return_missing(units, labels, placed)
    sides: list[Side] = ["train"] * len(examples)
    for unit, side in zip(units, placed, strict=True):
        for position in unit:
            sides[position] = side
    return sides


def _drawn(shares: Mapping[Side, float]) -> list[Side]:
    order: tuple[Side, ...] = ("test", "valid")
    return [side for side in order if shares.get(side, 0) > 0]


def _strata(
    examples: Sequence[Example], shares: Mapping[Side, float], multi_label: bool
) -> dict[_Stratum, list[_Unit]]:
    same_text: defaultdict[str, _Unit] = defaultdict(list)
    for position, example in enumerate(examples):
        same_text[normalised(example.text)].append(position)
    keys: Counter[_Stratum] = Counter(tuple(sorted(example.labels)) for example in examples)
    smallest = min((share for share in shares.values() if share > 0), default=1.0)
    strata: defaultdict[_Stratum, list[_Unit]] = defaultdict(list)
    for unit in same_text.values():
        key = tuple(sorted(examples[unit[0]].labels))
        # A combination too rare to give one row to the smallest share is pooled; no label is an empty text.
        strata[("",) if multi_label and keys[key] * smallest < 1 else key].append(unit)
    return dict(sorted(strata.items()))


def _quotas(sizes: Mapping[_Stratum, int], share: float) -> dict[_Stratum, int]:
    """Rows to draw from each stratum: its share rounded down, then up where the most is missing (largest remainder)."""
    exact = {key: size * share for key, size in sizes.items()}
    quotas = {key: int(value) for key, value in exact.items()}
    left = int(sum(sizes.values()) * share + 0.5) - sum(quotas.values())
    for key in sorted(exact, key=lambda key: (quotas[key] - exact[key], key))[:left]:
        quotas[key] += 1
    return quotas


def _draw(
    units: Sequence[_Unit],
    quota: int,
    side: Side,
    sides: list[Side],
    examples: Sequence[Example],
    in_train: Counter[str],
) -> list[_Unit]:
    """Puts units on a side until the quota is full; gives back those that stay. Updates ``sides``, ``in_train``."""
    kept = []
    for unit in units:
        labels = Counter(label for position in unit for label in examples[position].labels)
        if len(unit) > quota or any(in_train[label] <= count for label, count in labels.items()):
            kept.append(unit)
            continue
        quota -= len(unit)
        in_train.subtract(labels)
        for position in unit:
            sides[position] = side
    return kept


def _place(units: Sequence[_Unit], labels: Sequence[Counter[str]], shares: Mapping[Side, float]) -> list[Side]:
    total = sum(map(len, units))
    counts = sum(labels, Counter[str]())
    rows_left = {side: share * total for side, share in shares.items()}
    left = {side: {label: share * count for label, count in counts.items()} for side, share in shares.items()}
    placed: list[Side] = []
    for unit, own in zip(units, labels, strict=True):

        def need(side: Side, own: Counter[str] = own) -> tuple[float, float]:
            # How far the side is from its share of these labels; rows decide between sides that lack them alike.
            wanted = sum(n * left[side][label] / (shares[side] * counts[label]) for label, n in own.items())
            return wanted / (sum(own.values()) or 1), rows_left[side] / (shares[side] * total)

        # A group may exceed what is left of a share by half at most; larger ones go to train.
        fitting: list[Side] = [side for side in _drawn(shares) if len(unit) <= 1.5 * rows_left[side]]
        chosen = max([*fitting, "train"], key=need)
        rows_left[chosen] -= len(unit)
        for label, n in own.items():
            left[chosen][label] -= n
        placed.append(chosen)
    return placed


def _return_missing(units: Sequence[_Unit], labels: Sequence[Counter[str]], placed: list[Side]) -> None:
    """Moves groups to train until each label stands there."""
    for label in sorted(sum(labels, Counter[str]())):
        having = [index for index, own in enumerate(labels) if own[label]]
        if all(placed[index] != "train" for index in having):
            placed[min(having, key=lambda index: (len(units[index]), index))] = "train"
