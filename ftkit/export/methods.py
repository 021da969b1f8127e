"""What a merge does to one tensor: W' = W + s B A and its kin, computed for some rows at a time.

Factors are read when the first rows are asked for and let go after the last, so that an adapter of a high rank is not
held in memory as a whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ftkit.export.tensors import Stored

if TYPE_CHECKING:
    import torch

_AT_ONCE = 2**20  # values of a tensor that are surveyed at once
Factor = Callable[[], "torch.Tensor"]
"""Reads one factor of an update, float32."""


class Update(Protocol):
    """New values for a tensor of the base."""

    @property
    def needs_whole(self) -> bool:
        """Whether it must be given all rows at once."""

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        """The new values [n, ...], float32, of the rows from ``first`` on, whose old ones are ``weight``.

        ``weight`` (float32) is the caller's own copy, and may be overwritten.
        """


class Additive(ABC):
    """An update that is added to the tensor: W' = W + delta."""

    needs_whole = False

    @abstractmethod
    def delta(self, first: int, last: int) -> torch.Tensor:
        """What is added to the rows from ``first`` up to ``last`` [last - first, ...], float32."""

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        return weight.add_(self.delta(first, first + len(weight)))


class LowRank(Additive):
    """The product of two factors, left [rows, r] and right [r, columns]; ``rows``: how many the tensor has.

    LoRA's B and A where the tensor is stored (out x in), their transposes in the other order where it is (in x out).
    """

    def __init__(self, left: Factor, right: Factor, count: int) -> None:
        self._left, self._right, self._count = left, right, count
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def delta(self, first: int, last: int) -> torch.Tensor:
        left, right = self._read(last)
        return left[first:last] @ right

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        left, right = self._read(first + len(weight))
        return weight.addmm_(left[first : first + len(weight)], right)

    def _read(self, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        factors = self._factors or (self._left(), self._right())
        self._factors = None if last == self._count else factors
        return factors


class Stacked(Additive):
    """LoRA of a stack of matrices [experts, ...]: a low-rank update of each, by their place."""

    def __init__(self, experts: list[LowRank], shape: tuple[int, ...]) -> None:
        self._experts, self._shape = experts, shape

    def delta(self, first: int, last: int) -> torch.Tensor:
        import torch

        return torch.stack([self._experts[place].delta(0, self._shape[1]) for place in range(first, last)])


class Dora:
    """DoRA: W' = m (W + delta) / |W + delta|, the norm taken over each output (Liu et al. 2024, as peft 0.21 has it).

    ``base``: the tensor itself where it is stored (in x out), so that an output is a column, whose norm must be known
    before the first row; None where it is stored (out x in).
    """

    needs_whole = False

    def __init__(self, direction: LowRank, magnitude: Factor, base: Stored | None) -> None:
        self._direction, self._magnitude, self._base = direction, magnitude, base
        self._factor: torch.Tensor | None = None

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        if self._base is None:
            merged = self._direction.rows(weight, first)
            part = self._magnitude()[first : first + len(merged)]
            return merged.mul_((part / merged.norm(dim=1)).unsqueeze(1))
        if self._factor is None or first == 0:
            self._factor = self._magnitude() / self._norms(self._base)
        return self._direction.rows(weight, first).mul_(self._factor)

    def _norms(self, base: Stored) -> torch.Tensor:
        import torch

        squares = torch.zeros(base.shape[1], dtype=torch.float64)
        step = max(1, _AT_ONCE // base.shape[1])
        for first in range(0, base.shape[0], step):
            last = min(first + step, base.shape[0])
            squares += self._direction.rows(base.rows(first, last).float(), first).double().square().sum(0)
        return squares.sqrt().float()


class Scaled:
    """(IA)^3: each row or each column times a learned number; a bias, which has rows alone, by its rows."""

    needs_whole = False

    def __init__(self, factor: Factor, *, by_rows: bool) -> None:
        self._factor, self._by_rows = factor, by_rows

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        factor = self._factor()
        if not self._by_rows:
            return weight.mul_(factor)
        part = factor[first : first + len(weight)]
        return weight.mul_(part.reshape(-1, *[1] * (weight.dim() - 1)))


class Offset(Additive):
    """What lora_bias adds to a bias."""

    def __init__(self, values: Factor) -> None:
        self._values = values

    def delta(self, first: int, last: int) -> torch.Tensor:
        return self._values()[first:last]


class Replaced:
    """Stored values in the place of the base's, or of a new tensor; ``then``: an update of them."""

    needs_whole = False

    def __init__(self, values: Stored, then: Update | None = None) -> None:
        self.values, self.then = values, then

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        """As every update; of ``weight`` the number of rows alone is used."""
        new = self.values.rows(first, first + len(weight)).float()
        return new if self.then is None else self.then.rows(new, first)


class Tokens:
    """Rows of an embedding in the place of the base's; ``grown``: how many it then has, with those that are new."""

    needs_whole = False

    def __init__(self, values: Stored, tokens: list[int], grown: int) -> None:
        self._values, self._tokens, self.grown = values, tokens, grown

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        for place, token in enumerate(self._tokens):
            if first <= token < first + len(weight):
                weight[token - first] = self._values.rows(place, place + 1)[0].float()
        return weight


def low_rank(a: Stored, b: Stored, scale: float, *, transposed: bool = False) -> LowRank:
    """The update scale B A, with A [r, in] and B [out, r] read from the adapter.

    ``transposed``: as it is added to a tensor that is stored (in x out).
    """

    def outer() -> torch.Tensor:
        return b.tensor().float() * scale

    def inner() -> torch.Tensor:
        return a.tensor().float()

    if transposed:
        return LowRank(lambda: inner().T, lambda: outer().T, a.shape[1])
    return LowRank(outer, inner, b.shape[0])


def expert(
    a: Stored, b: Stored, scale: float, *, of: int, place: int, outputs: range | None = None, transposed: bool = False
) -> LowRank:
    """The update of one of ``of`` stacked matrices, whose factors PEFT keeps together.

    A [of * r, in] has the experts one after the other, B [out, r * of] has them in turns. ``outputs``: those of the
    matrix that is stored by itself, where several were put together; ``transposed``: it is stored (in x out).
    """
    rank = a.shape[0] // of
    chosen = outputs or range(b.shape[0])

    def outer() -> torch.Tensor:
        return b.tensor().float()[chosen.start : chosen.stop, place::of] * scale

    def inner() -> torch.Tensor:
        return a.rows(place * rank, (place + 1) * rank).float()

    if transposed:
        return LowRank(lambda: inner().T, lambda: outer().T, a.shape[1])
    return LowRank(outer, inner, len(chosen))


def vector(values: Stored, scale: float = 1.0) -> Factor:
    """All values of a small tensor in one dimension, times ``scale``."""
    return lambda: values.tensor().float().reshape(math.prod(values.shape)) * scale
