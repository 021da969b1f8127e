"""The update of one tensor from those of several adapters: pruned, weighted and summed, for some rows at a time.

All that depends on the place of a value is computed in pieces that are the same whatever rows are asked for: a product
of other rows may be rounded otherwise, and a value beside the threshold would be kept in one reading and not the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ftkit.export.methods import Additive
from ftkit.export.pruning import least_kept, random_kept

if TYPE_CHECKING:
    import torch

_AT_ONCE = 2**17  # values that are computed at once


@dataclass(frozen=True)
class Combined(Additive):
    """The update of one tensor [rows, ...] from those of several adapters, ``parts``, each already weighted."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    elected: bool

    def delta(self, first: int, last: int) -> torch.Tensor:
        """The combined values of some rows, float32. Computed in the same pieces whatever is asked for."""
        import torch

        step = step_of(self.shape)
        pieces = []
        for start in range(first - first % step, last, step):
            stop = min(start + step, self.shape[0])
            piece = self._piece(start, stop)
            pieces.append(piece[max(first - start, 0) : last - start])
        return torch.cat(pieces)

    def _piece(self, start: int, stop: int) -> torch.Tensor:
        if not self.elected:
            total = self.parts[0].delta(start, stop)
            for part in self.parts[1:]:
                total = total + part.delta(start, stop)
            return total
        return elected_mean([part.delta(start, stop) for part in self.parts])


def elected_mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """At each place the mean of the values that have the sign of their sum; 0 where that is 0 (TIES, steps 2 and 3)."""
    import torch

    stacked = torch.stack([*values])  # [adapters, rows, ...]
    agree = (stacked * stacked.sum(0).sign()) > 0
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


@dataclass(frozen=True)
class Part:
    """One adapter's update of a tensor, pruned and weighted. ``key``: of random dropping; None for the largest."""

    update: Additive
    shape: tuple[int, ...]
    weight: float
    density: float
    key: tuple[object, ...] | None

    def delta(self, first: int, last: int) -> torch.Tensor:
        values = self.update.delta(first, last)
        if self.density < 1:
            values = self._pruned(values, first)
        return values * self.weight

    def _pruned(self, values: torch.Tensor, first: int) -> torch.Tensor:
        if self.key is None:
            return values * (values.abs() >= self._threshold)
        return values * random_kept(self.key, first, tuple(values.shape), self.density) / self.density

    @cached_property
    def _threshold(self) -> float:
        return least_kept(self._all, max(1, round(self.density * math.prod(self.shape))))

    def _all(self) -> Iterator[torch.Tensor]:
        step = step_of(self.shape)
        for start in range(0, self.shape[0], step):
            yield self.update.delta(start, min(start + step, self.shape[0]))


def step_of(shape: tuple[int, ...]) -> int:
    """Rows that are computed at once. A product of other rows may be rounded otherwise, so this never changes."""
    return max(1, _AT_ONCE // math.prod(shape[1:]))
