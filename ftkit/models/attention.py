"""Attention of documents that stand one after the other in a row: each is computed by itself, and none is masked.

transformers keeps such documents apart with a mask over the square of the whole row, most of which is empty. On a
processor that square is most of a small model's work. Registered as an attention of its own, as transformers' guide to
its attention interface shows; where a model asks for anything else than plain causal attention, SDPA's answers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BY_DOCUMENT = "sdpa_by_document"
_PLAIN = "sdpa"


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
    if documents is None:
        return plain(module, query, key, value, attention_mask, position_ids=position_ids, **others)
    rows = zip(documents, *(torch.split(states, 1) for states in (query, key, value)), strict=True)
    found = []
    for lengths, *row in rows:
        parts = zip(*(torch.split(states, lengths, dim=2) for states in row), strict=True)
        found.append(torch.cat([plain(module, *part, None, **others)[0] for part in parts], dim=1))
    return torch.cat(found), None


def _documents(position_ids: torch.Tensor) -> list[list[int]] | None:
    """The lengths of the documents of each row; None where each row is one document."""
    anew = position_ids.diff() != 1  # (B, T - 1)
    if not bool(anew.any()):
        return None
    starts = ([0, *(row.nonzero().flatten() + 1).tolist(), len(row) + 1] for row in anew)
    return [[end - begin for begin, end in pairwise(row)] for row in starts]
