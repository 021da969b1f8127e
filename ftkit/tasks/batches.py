"""Rows to batches, for training and for scoring: what is sorted together, padded, and taken at once."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from ftkit.models.hardware import Machine, is_narrow

if TYPE_CHECKING:
    import torch

Encoded = dict[str, Any]

NOT_FINITE = "Likely causes, in order: learning_rate too high, bfloat16 on a base trained in float16, damaged weights."

_POOL = 50  # batches whose rows are sorted together
# Padded tokens in one scoring batch. On a processor more would leave its cache: 872 rows of SST-2 took 2.8 s at 2,048
# and 3.6 s at 8,192 (2 cores, 2026-11-25); a GPU wants more work at once.
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
# Logits in one scoring batch, which with a large vocabulary are most of the memory: 800 tokens of Qwen's 152,000.
_LOGITS_AT_ONCE = 2**27
# Tokens of one micro-batch of a language model's training, for the same reason: tiny-lm made 3,800 tokens a second with
# 4,096 at once, 4,100 with 2,048 and 3,000 with 1,024, and held 1,866, 1,526 and 1,151 MiB (2 cores, 2026-11-25).
_TRAINED_AT_ONCE = 2048
# A narrow model holds less for each: 64 wide, XQuAD's batches (3,800 tokens) and DialogSum's (3,400) trained 7% faster
# whole than in two, with at most 84 MiB more (mean of six pairs, 2 cores, 2026-11-26).
_NARROW_TRAINED_AT_ONCE = 4096


def trained_at_once(machine: Machine, width: int | None) -> int | None:
    """Tokens of a micro-batch of a language model, ``width`` wide, in training; None on a GPU, which takes it whole."""
    if machine.device != "cpu":
        return None
    return _NARROW_TRAINED_AT_ONCE if is_narrow(width) else _TRAINED_AT_ONCE


class Rows(Protocol):
    """Encoded rows, in memory or made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Encoded: ...


class TrainingRows:
    """Encoded rows in an order that pads little: sorted by length within pools of 50 batches, the batches shuffled.

    ``mixed``: only the rows of one batch are sorted. Where a loss is the mean over a batch's tokens, batches of short
    rows and of long ones would count alike, and a token of a short row for more.
    The order depends on seed and epoch alone, so a resumed run sees the rows that an uninterrupted one sees. The
    longest batch comes first in the first epoch, so that memory runs out at once or not at all. Read in sequence.
    """

    def __init__(self, rows: Rows, lengths: Sequence[int], batch_size: int, seed: int, *, mixed: bool = False) -> None:
        self._rows = rows
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._pool = batch_size if mixed else _POOL * batch_size
        self._epoch = 0
        self._order = self._arrange(0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Encoded:
        row = self._order[position]
        return {**self._rows[row], "row": row, "epoch": self._epoch}  # what a collator may draw its chances from

    def set_epoch(self, epoch: int) -> None:
        """Arranges the rows for an epoch; these count from 0."""
        self._epoch = epoch
        self._order = self._arrange(epoch)

    def rows_of_step(self, step: int) -> list[int]:
        """The numbers of the rows that optimiser step ``step`` sees; steps count from 1 over all epochs."""
        epoch, within = divmod(step - 1, math.ceil(len(self._rows) / self._batch_size))
        return self._arrange(epoch)[within * self._batch_size : (within + 1) * self._batch_size]

    def _arrange(self, epoch: int) -> list[int]:
        shuffler = random.Random(f"{self._seed}/{epoch}")
        order = list(range(len(self._rows)))
        shuffler.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), self._pool):
            near = sorted(order[start : start + self._pool], key=self._lengths.__getitem__)
            batches += [near[at : at + self._batch_size] for at in range(0, len(near), self._batch_size)]
        # Only the last batch may be short, as the rows are cut into batches again by position.
        short = [batch for batch in batches if len(batch) < self._batch_size]
        full = [batch for batch in batches if len(batch) == self._batch_size]
        shuffler.shuffle(full)
        if epoch == 0 and full:
            longest = max(range(len(full)), key=lambda number: max(self._lengths[row] for row in full[number]))
            full.insert(0, full.pop(longest))
        return [row for batch in [*full, *short] for row in batch]


def padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` [B, T], padded on the right."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])  # (B, T)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])  # (B, T)
    return {"input_ids": ids, "attention_mask": mask}


def batches(
    order: Sequence[int],
    lengths: Sequence[int],
    device: str,
    *,
    at_once: Mapping[str, int] = _TOKENS_AT_ONCE,
    vocabulary: int = 1,
) -> Iterator[list[int]]:
    """Row numbers that ascend in length, in batches of as many padded tokens as suit the device (``at_once``).

    Fewer where each token gets logits over a large ``vocabulary``.
    """
    most = min(at_once[device], _LOGITS_AT_ONCE // vocabulary)
    batch: list[int] = []
    for row in order:
        if batch and lengths[row] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size`` rows, read as they are needed."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
