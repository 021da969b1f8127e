"""Shares of a corpus for validation and test: whole documents, or the tails of few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ftkit.data.documents import Documents
from ftkit.data.findings import counted
from ftkit.data.partition import Side
from ftkit.data.rows import data_error
from ftkit.errors import Problem

if TYPE_CHECKING:
    from ftkit.data.documents import Table

FEW = 10  # documents below which the tail of each is cut, as whole ones would be too unlike each other


def draw(
    documents: Documents, shares: Mapping[Side, float], *, seed: int, shown: str
) -> tuple[dict[Side, Table], dict[Side, str]]:
    """The tables of train and of each share, in the documents' order, and how each share was drawn, in words.

    Of ten documents or more, whole ones are drawn by ``seed``; of fewer, the last part of each is cut off: train comes
    first, then valid, then test. Raises DataError where a share above 0 gives nothing.
    """
    wanted = {side: share for side, share in shares.items() if share > 0}
    if not wanted:
        return {"train": documents.table}, {side: "no validation" for side in shares}
    tables = _tails(documents, wanted) if len(documents) < FEW else _whole(documents, wanted, seed)
    empty = [side for side in ("train", *wanted) if not len(tables[side])]
    if empty:
        many = counted(len(documents), "document")
        message = f"{many} give{'s' * (len(documents) == 1)} none for {empty[0]}. Write other shares, or name a file."
        raise data_error(shown, [Problem("", f"data.{empty[0]}", message)])
    how = {
        side: f"the last part of {'the document' if len(documents) == 1 else f'each of {len(documents)} documents'}"
        if len(documents) < FEW
        else f"{len(tables[side]):,} of {len(documents):,} documents of train, seed {seed}"
        for side in wanted
    }
    return tables, {side: how.get(side, "no validation") for side in shares}


def _whole(documents: Documents, shares: Mapping[Side, float], seed: int) -> dict[Side, Table]:
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(documents))
    tables: dict[Side, Table] = {}
    for side, share in shares.items():
        count = max(1, round(share * len(documents)))
        chosen, order = order[:count], order[count:]
        tables[side] = documents.table[np.sort(chosen)]
    tables["train"] = documents.table[np.sort(order)]
    return tables


def _tails(documents: Documents, shares: Mapping[Side, float]) -> dict[Side, Table]:
    """Cuts at white space, so that no word is halved."""
    import numpy as np

    sides: list[Side] = ["train", *(side for side in ("valid", "test") if side in shares)]
    parts: dict[Side, list[tuple[int, ...]]] = {side: [] for side in sides}
    for number in range(len(documents)):
        text, row = documents[number], documents.table[number]
        cuts = [
            0,
            *(_space_before(text, 1 - sum(shares[later] for later in sides[at:])) for at in range(1, len(sides))),
        ]
        start = int(row["start"])
        for side, begin, end in zip(sides, cuts, [*cuts[1:], len(text)], strict=True):
            if text[begin:end].strip():
                first = start + len(text[:begin].encode())
                last = first + len(text[begin:end].encode())
                parts[side].append((first, last, int(row["source"]), int(row["file"]), int(row["number"])))
    return {side: np.array(found, dtype=documents.table.dtype) for side, found in parts.items()}


def _space_before(text: str, share: float) -> int:
    """The character from which on the rest is cut: after the last white space before ``share`` of the text."""
    at = round(len(text) * share)
    while at > 0 and not text[at - 1].isspace():
        at -= 1
    return at
