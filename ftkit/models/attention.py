"""Attention of documents that stand one after the other in a row: each is computed by itself, and none is masked.

transformers keeps such documents apart with a mask over the square of the whole row, most of which is empty. On a
processor that square is most of a small model's work. Registered as an attention of its own, as transformers' guide to
its attention interface shows; where a model asks for anything else than plain causal attention, SDPA's answers.

In float32 SDPA attends to one document after the other, on AMD's processors unless heads are narrow (narrow_heads.py).
A training in bfloat16 attends in blocks, as plain products: on a processor torch's fused attention takes two to four
times as long there (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ftkit.models.hardware import cpu_is_amd
from ftkit.models.narrow_heads import NARROWER_THAN, attend_with_narrow_heads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BY_DOCUMENT = "sdpa_by_document"
_PLAIN = "sdpa"
# Tokens of a block; their keys begin at a multiple of it, so that there are few shapes: oneDNN keeps what it compiles
# for each that it saw. 64 were slower, 256 gained 2%.
_BLOCK = 128
_LONGEST = 1024  # tokens of a document up to which its probabilities, half a square, are held until the backward pass


def attend_by_document(model: PreTrainedModel) -> bool:
    """Gives the model this attention; False, and nothing is changed, where it uses another than SDPA's.

    It holds for all that the model does from then on: rows of one document get the attention they had.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation != _PLAIN:
        return False
    AttentionInterface.register(BY_DOCUMENT, _attention)
    AttentionMaskInterface.register(BY_DOCUMENT, _mask)
    model.set_attn_implementation(BY_DOCUMENT)
    return True


def attend_by_mask(model: PreTrainedModel) -> None:
    """Takes back ``attend_by_document``."""
    model.set_attn_implementation(_PLAIN)


def _mask(
    *, attention_mask: torch.Tensor | None = None, q_length: int, kv_length: int, **others: Any
) -> torch.Tensor | None:
    """No mask for whole rows of plain causal attention; SDPA's for padding, caches, sliding windows and the like."""
    from transformers import AttentionMaskInterface

    whole = attention_mask is None and q_length == kv_length
    if whole and others.get("local_size") is None and not others.get("use_vmap"):
        return None
    plain = AttentionMaskInterface()[_PLAIN]
    found: torch.Tensor | None = plain(attention_mask=attention_mask, q_length=q_length, kv_length=kv_length, **others)
    return found


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [B, T, H, D] of ``query``, ``key`` and ``value`` [B, H, T, D]; documents begin where positions do.

    Cut with split: the gradient of as many slices would be as many tensors of zeros, and their sum.
    """
    import torch
    from transformers import AttentionInterface

    plain: Callable[..., tuple[torch.Tensor, None]] = AttentionInterface()[_PLAIN]
    documents = None
    if attention_mask is None and position_ids is not None and query.shape[2] == key.shape[2]:
        documents = _documents(position_ids)
        whole = documents or [[query.shape[2]]] * len(query)
        trained = _in_training(query) if _is_usual(module, others) else None
        scale = others.get("scaling") or query.shape[-1] ** -0.5
        if trained == torch.bfloat16 and max(map(max, whole)) <= _LONGEST:
            query, key, value = (query * scale).bfloat16(), key.bfloat16(), value.bfloat16()
            return attend_in_blocks(query, key, value, whole), None
        if trained == torch.float32 and query.shape[-1] < NARROWER_THAN and cpu_is_amd():
            states = zip(query * scale, key, value, whole, strict=True)
            attend = attend_with_narrow_heads()
            return torch.stack([attend(*own, tuple(lengths)) for *own, lengths in states]), None
    if documents is None:
        return plain(module, query, key, value, attention_mask, position_ids=position_ids, **others)
    rows = zip(documents, *(torch.split(states, 1) for states in (query, key, value)), strict=True)
    found = []
    for lengths, *row in rows:
        parts = zip(*(torch.split(states, lengths, dim=2) for states in row), strict=True)
        found.append(torch.cat([plain(module, *part, None, **others)[0] for part in parts], dim=1))
    return torch.cat(found), None


def _in_training(query: torch.Tensor) -> torch.dtype | None:
    """The number format in which a training on a processor computes; None where nothing is trained."""
    import torch

    if not torch.is_grad_enabled() or query.device.type != "cpu":
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype


def _is_usual(module: torch.nn.Module, others: dict[str, Any]) -> bool:
    """Whether causal attention is asked for, with nothing dropped or added."""
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return bool(causal) and not others.get("dropout") and others.get("position_bias") is None


def attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Causal attention [B, T, H, D] of documents side by side, as products of 128 queries with the keys they may see.

    ``query`` [B, H, T, D], already scaled; ``key`` and ``value`` [B, K, T, D], each for H / K heads; ``documents``:
    the lengths of those of each row.
    """
    import torch

    rows = zip(query.unbind(), key.unbind(), value.unbind(), documents, strict=True)
    found = [_row_in_blocks(own, keys, values, tuple(lengths)) for own, keys, values, lengths in rows]
    return torch.stack(found).transpose(1, 2)


def _row_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    """[H, T, D] of one row, whose ``query`` is [H, T, D] and whose ``key`` and ``value`` are [K, T, D]."""
    import torch

    heads, _, width = query.shape
    groups = len(key)
    found = []
    for block, (first, end, hidden) in zip(torch.split(query, _BLOCK, 1), _blocks(lengths, query.dtype), strict=True):
        own = block.reshape(groups, -1, width)  # (K, H / K * block, D)
        scores = own @ key[:, first:end].transpose(1, 2)
        scores.view(heads, -1, end - first).add_(hidden)
        found.append((scores.softmax(-1) @ value[:, first:end]).view(heads, -1, width))
    return torch.cat(found, dim=1)


@lru_cache(maxsize=4)  # all layers of a model ask for the same
def _blocks(lengths: tuple[int, ...], dtype: torch.dtype) -> list[tuple[int, int, torch.Tensor]]:
    """For each block of a row: the first key and the end of those it may see, and minus infinity [block, keys] else."""
    import torch

    at = torch.arange(sum(lengths))
    long = torch.tensor(lengths)
    starts = (long.cumsum(0) - long).repeat_interleave(long)  # (T,)
    found = []
    for queries, begun in zip(torch.split(at, _BLOCK), torch.split(starts, _BLOCK), strict=True):
        first, end = int(begun[0]) // _BLOCK * _BLOCK, int(queries[-1]) + 1
        keys = at[first:end]
        seen = (keys <= queries[:, None]) & (keys >= begun[:, None])
        found.append((first, end, torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)))
    return found


def _documents(position_ids: torch.Tensor) -> list[list[int]] | None:
    """The lengths of the documents of each row; None where each row is one document."""
    anew = position_ids.diff() != 1  # (B, T - 1)
    if not bool(anew.any()):
        return None
    starts = ([0, *(row.nonzero().flatten() + 1).tolist(), len(row) + 1] for row in anew)
    return [[end - begin for begin, end in pairwise(row)] for row in starts]
