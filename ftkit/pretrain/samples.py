"""Texts that base and trained model go on with from the same starts, to be read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.pretrain.prepare import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT, _NEW = 24, 64  # tokens
_TEMPERATURE, _TOP_P = 0.8, 0.95


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a test document: its piece, its token ids, its text, and how the document goes on."""

    piece: int
    ids: list[int]
    prompt: str
    reference: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A start with what the trained model, the base (None from scratch) and the document itself go on with."""

    piece: int
    prompt: str
    reference: str
    prediction: str
    baseline: str | None


def prompts(prepared: Prepared, count: int, *, seed: int) -> list[Start]:
    """Starts of ``count`` test documents that are long enough, drawn by ``seed``."""
    import random

    side, tokenizer = prepared.test, prepared.tokenizer
    firsts = [piece for piece in range(len(side)) if side.pieces.begin[piece] == 0 and len(side.rows[piece]) > _PROMPT]
    chosen = sorted(random.Random(seed).sample(firsts, min(count, len(firsts))))
    found = []
    for piece in chosen:
        ids = side.rows[piece]
        prompt, rest = ids[:_PROMPT], ids[_PROMPT : _PROMPT + _NEW]
        decoded = [tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, rest)]
        found.append(Start(piece, prompt, *decoded))
    return found


def continuations(model: PreTrainedModel, prepared: Prepared, starts: Sequence[Start], *, seed: int) -> list[str]:
    """What the model goes on with from each start: drawn with temperature 0.8 and top-p 0.95, by ``seed`` and start."""
    import torch

    if not starts:
        return []
    tokenizer = prepared.tokenizer
    texts = []
    with torch.random.fork_rng():
        for start in starts:
            torch.manual_seed(seed + start.piece)
            ids = torch.tensor([start.ids], device=model.device)
            with torch.inference_mode():
                found = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=min(_NEW, max(1, prepared.test.pieces.layout.max_length - len(start.ids))),
                    do_sample=True,
                    temperature=_TEMPERATURE,
                    top_p=_TOP_P,
                    top_k=0,
                    pad_token_id=prepared.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            texts.append(str(tokenizer.decode(found[0, len(start.ids) :], skip_special_tokens=True)))
    return texts
