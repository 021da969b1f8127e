"""The result of a merge as blocks of bytes: which tensors it has, and what stands in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.errors import DataError, Problem
from ftkit.export.methods import Replaced, Tokens
from ftkit.export.tensors import Header, Stored
from ftkit.export.updates import Changes, Update

if TYPE_CHECKING:
    import torch

_AT_ONCE = 2**19  # values that are computed at once: with their float32 copy they stay in a processor's cache
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# The bits of the exponent, which are all set in infinity and in what is no number, and in nothing else (IEEE 754).
_EXPONENTS = {"F32": ("int32", 0x7F800000), "F16": ("int16", 0x7C00), "BF16": ("int16", 0x7F80)}


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the result. ``source``: that of the base, None for a new one; ``update``: None where it is copied."""

    header: Header
    source: Stored | None
    update: Update | None


@contextmanager
def one_thread() -> Iterator[None]:
    """Blocks are small: with two threads a merge took ten times the processor time while other programs ran."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def planned(stored: Mapping[str, Stored], changes: Changes) -> list[Planned]:
    """All tensors of the result, in the order of the base's files; new ones at the end.

    Raises DataError where one that changes is held in numbers that cannot be computed with, as in a quantised base.
    """
    layout: list[Planned] = []
    for name, tensor in stored.items():
        if name not in changes.dropped:
            update = changes.updates.get(name)
            if update is not None and tensor.dtype not in _FLOATS:
                fix = f"{name} holds {tensor.dtype}. Name the base in float32, float16 or bfloat16."
                raise DataError("the base cannot be merged into", [Problem("", "--base", fix)])
            header = Header(changes.renamed.get(name, name), tensor.dtype, _shape(update, tensor.shape))
            layout.append(Planned(header, tensor, update))
    for name, update in changes.updates.items():
        if name not in stored:
            layout.append(Planned(Header(name, _format(stored), _shape(update, ())), None, update))
    return layout


def _shape(update: Update | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(update, Replaced):
        return update.shape
    return (update.grown, *shape[1:]) if isinstance(update, Tokens) else shape


def _format(stored: Mapping[str, Stored]) -> str:
    sizes = {kind: sum(tensor.count for tensor in stored.values() if tensor.dtype == kind) for kind in _FLOATS}
    return max(_FLOATS, key=lambda kind: sizes[kind])


def main_dtype(stored: Mapping[str, Stored]) -> str:
    """The number format of most of the base's weights, in torch's words."""
    return _FLOATS[_format(stored)]


def computed(
    tensor: Planned, read: Callable[[Stored, memoryview], None] | None = None
) -> Iterator[tuple[memoryview | None, memoryview]]:
    """The old bytes of a tensor that changes and the new ones, block by block; None for rows that the base has not.

    ``read`` is given every block of the base, in order. Raises DataError for values that are no finite numbers.
    """
    import torch

    header, source, update = tensor.header, tensor.source, tensor.update
    assert update is not None
    rows, rest = header.shape[0], header.shape[1:]
    step = rows if update.needs_whole else max(1, _AT_ONCE // max(1, math.prod(rest)))
    begin = 0
    if source is not None:
        for old in source.blocks(step * math.prod(rest) * source.nbytes // max(1, source.count)):
            if read is not None:
                read(source, old)
            if source.shape == header.shape or isinstance(update, Tokens):
                stored = torch.frombuffer(old, dtype=_torch(header.dtype))
                weight = stored.to(torch.float32, copy=True).reshape(-1, *rest)
                yield old, _rounded(update.rows(weight, begin), header)
                begin += len(weight)
    for first in range(begin, rows, step):
        yield None, _rounded(update.rows(torch.zeros(min(step, rows - first), *rest), first), header)


def _rounded(values: torch.Tensor, header: Header) -> memoryview:
    """The bytes of float32 values in a tensor's own number format."""
    import torch

    new = values.to(_torch(header.dtype)).reshape(-1)
    bits, exponent = _EXPONENTS[header.dtype]
    # Four times as fast as a sum, which may be infinite where no value is; isfinite takes eight times as long as that.
    if len(new) and int(new.view(getattr(torch, bits)).bitwise_and(exponent).max()) == exponent:
        fix = f"{header.name} would hold values that are no finite numbers. Train or fetch the adapter again."
        raise DataError("the adapter seems to be broken", [Problem("", "adapter", fix)])
    return new.view(torch.uint8).numpy().data


def _torch(dtype: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, _FLOATS[dtype])
    return found
