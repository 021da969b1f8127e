"""Attention with heads of fewer than 16 numbers, in float32 on an AMD processor, as a training computes it.

The products of a fused kernel have a few queries, or keys, on one side and the width of a head on the other. Where the
one to be summed over is long and the result as narrow as 8, MKL on AMD's processors takes four to six times as long as
for the transposed product, which is the same sum. So each product here has its long side where MKL wants it. From a
width of 16 on it makes no difference; on Intel's processors SDPA's kernel is the faster one (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NARROWER_THAN = 16  # numbers of a head
_BLOCK = 96  # queries whose probabilities are held at once, about; 64 and 128 took as long
_LARGEST = 2 * _BLOCK  # queries of a block


@cache
def attend_with_narrow_heads() -> Callable[..., torch.Tensor]:
    """A function that gives the causal attention [T, H, D] within documents that stand one after the other in T tokens.

    Of ``query`` [H, T, D], already scaled, ``key`` and ``value`` [K, T, D], each for H / K heads, and the documents'
    lengths. Its backward pass computes the probabilities again, a block at a time, as fused kernels do (Dao et al.
    2022), so that none are held: with P = softmax(Q K') and O = P V it is dV = P' dO, dS = P (dO V' - rowsum(dO O)),
    dQ = dS K and dK = dS' Q.
    """
    import torch
    from torch.autograd.function import once_differentiable

    class NarrowHeads(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
        ) -> torch.Tensor:
            (heads, tokens, width), groups = query.shape, len(key)
            found = query.new_empty(tokens, groups, heads // groups, width)
            keys, values = key.transpose(1, 2), value.transpose(1, 2)  # (K, D, T)
            for start, first, end in _blocks(lengths):
                probable = _probable(_rows(query.transpose(0, 1), groups, first, end), keys, start, first, end)
                seen = torch.bmm(values[:, :, start:end], probable.transpose(1, 2))  # (K, D, H / K * block)
                found[first:end] = seen.view(groups, width, -1, end - first).permute(3, 0, 2, 1)
            found = found.view(tokens, heads, width)
            ctx.save_for_backward(query, key, value, found)
            ctx.lengths = lengths
            return found

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
            query, key, value, found = ctx.saved_tensors
            (heads, tokens, width), groups = query.shape, len(key)
            keys, values = key.transpose(1, 2), value.transpose(1, 2)  # (K, D, T)
            by_query = query.new_empty(groups, heads // groups, tokens, width)
            by_key, by_value = torch.zeros_like(keys), torch.zeros_like(values)
            along = (slope * found).sum(-1, keepdim=True)  # (T, H, 1)
            for start, first, end in _blocks(ctx.lengths):
                own = _rows(query.transpose(0, 1), groups, first, end)  # (K, H / K * block, D)
                given = _rows(slope, groups, first, end)
                probable = _probable(own, keys, start, first, end)  # (K, H / K * block, keys)
                by_value[:, :, start:end].add_(torch.bmm(given.transpose(1, 2), probable))
                scores = torch.bmm(given, values[:, :, start:end])
                scores.sub_(_rows(along, groups, first, end)).mul_(probable)
                by_key[:, :, start:end].add_(torch.bmm(own.transpose(1, 2), scores))
                turned = torch.bmm(keys[:, :, start:end], scores.transpose(1, 2))  # (K, D, H / K * block)
                by_query[:, :, first:end] = turned.view(groups, width, -1, end - first).permute(0, 2, 3, 1)
            return by_query.view(heads, tokens, width), by_key.transpose(1, 2), by_value.transpose(1, 2), None

    apply: Callable[..., torch.Tensor] = NarrowHeads.apply
    return apply


def _blocks(lengths: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Of each block of queries: where its document starts, its first query, and its end, up to which keys are seen."""
    start = 0
    for length in lengths:
        step = -(-length // max(1, round(length / _BLOCK)))
        for first in range(0, length, step):
            yield start, start + first, start + min(first + step, length)
        start += length


def _rows(values: torch.Tensor, groups: int, first: int, end: int) -> torch.Tensor:
    """Some tokens of ``values`` [T, H, D], those of heads that share keys one below the other [K, H / K * block, D]."""
    _, heads, width = values.shape
    own = values[first:end].reshape(end - first, groups, heads // groups, width)
    return own.permute(1, 2, 0, 3).reshape(groups, -1, width)


def _probable(query: torch.Tensor, keys: torch.Tensor, start: int, first: int, end: int) -> torch.Tensor:
    """Probabilities [K, H / K * block, keys] of a block of queries [K, H / K * block, D] over the keys [K, D, T]."""
    import torch

    scores = torch.bmm(query, keys[:, :, start:end])
    own = scores.view(len(keys), -1, end - first, end - start)[..., first - start :]  # among themselves
    own.add_(_later()[: end - first, : end - first])
    return scores.softmax(-1)


@cache
def _later() -> torch.Tensor:
    """Minus infinity where a key comes after its query [largest block, largest block], else 0."""
    import torch

    return torch.full((_LARGEST, _LARGEST), -torch.inf).triu_(1)
