"""Which values of a weight update are kept: the largest of a tensor, or random ones; by rows, never a whole tensor.

Both answers depend on the place of a value in its tensor alone, and not on how many rows are asked for at once: a
merge that is done again, or read back in other pieces, is the same merge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_HIGH, _LOW = 15, 16  # bits of a float32 but for its sign


def least_kept(blocks: Callable[[], Iterable[torch.Tensor]], keep: int) -> float:
    """The ``keep``-th largest absolute value of a tensor that comes in ``blocks`` of float32, exactly.

    Reads the blocks twice and holds one: without their sign, the bits of floats stand in the order of the floats, so
    the value is found by its upper bits first and then by its lower ones. ``keep`` is 1 or more, and at most all.
    """
    import torch

    upper = torch.zeros(2**_HIGH, dtype=torch.int64)
    for block in blocks():
        upper += torch.bincount(_bits(block) >> _LOW, minlength=2**_HIGH)
    high, keep = _reached(upper, keep)
    lower = torch.zeros(2**_LOW, dtype=torch.int64)
    for block in blocks():
        bits = _bits(block)
        lower += torch.bincount(bits[bits >> _LOW == high] & (2**_LOW - 1), minlength=2**_LOW)
    low, _ = _reached(lower, keep)
    return float(torch.tensor(high << _LOW | low, dtype=torch.int32).view(torch.float32))


def random_kept(key: Iterable[object], first: int, shape: tuple[int, ...], density: float) -> torch.Tensor:
    """Which values of the rows from ``first`` on, of shape ``shape``, are kept: each alone, with ``density`` (below 1).

    ``key`` names the tensor and the draw. The generator (Philox, Salmon et al. 2011) is one that can be asked for
    any place of its sequence; numpy keeps its output the same in all versions.
    """
    import numpy as np
    import torch

    width = int(np.prod(shape[1:], dtype=np.int64))
    digest = hashlib.sha256("\n".join(map(str, key)).encode("utf-8")).digest()
    step, skipped = divmod(first * width, 4)  # the generator makes four numbers a step
    source = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    source.advance(step)
    drawn = source.random_raw(skipped + shape[0] * width)[skipped:]
    return torch.from_numpy(drawn < np.uint64(density * 2.0**64)).reshape(shape)


def _bits(block: torch.Tensor) -> torch.Tensor:
    import torch

    return block.abs().flatten().contiguous().view(torch.int32)


def _reached(counts: torch.Tensor, keep: int) -> tuple[int, int]:
    """The bin in which the ``keep``-th largest value lies, and which one of that bin it is."""
    from_top = counts.flip(0).cumsum(0)
    place = int((from_top < keep).sum())
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, keep - above
