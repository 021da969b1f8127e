"""A histogram of lengths in lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from ftkit.data.lengths import Lengths

_BAR = 40


def histogram(lengths: Lengths) -> Iterator[str]:
    most = max(rows for _, rows in lengths.histogram)
    for upto, rows in lengths.histogram:
        bar = "▇" * round(_BAR * rows / most) or ("▏" if rows else "")
        yield f"  up to {upto:>6,} {rows:>8,}   {bar}".rstrip()
