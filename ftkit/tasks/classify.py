"""Classification with a head: how texts become batches, what the loss is, and how a model scores rows.

Training, evaluation, proof and predict all score through ``score``: there is no second path to a figure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ftkit.errors import NotFinite, Problem, TrainingFailed
from ftkit.records import Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats, Integers

Encoded = dict[str, Any]

_POOL = 50  # batches whose rows are sorted together
# Padded tokens in one scoring batch. On a processor more would leave its cache: 872 rows of SST-2 took 2.8 s at 2,048
# and 3.6 s at 8,192 (2 cores, 2026-11-25); a GPU wants more work at once.
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to ``max_length``."""
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)["input_ids"]
    return ids


def targets(examples: Sequence[Example], labels: Sequence[str], *, multi_label: bool) -> Integers:
    """Label numbers [n], or 0 and 1 [n, K] for a multi-label task."""
    import numpy as np

    index = {label: number for number, label in enumerate(labels)}
    if not multi_label:
        return np.array([index[example.labels[0]] for example in examples], dtype=np.int64)
    found = np.zeros((len(examples), len(labels)), dtype=np.int64)
    for row, example in enumerate(examples):
        found[row, [index[label] for label in example.labels]] = 1
    return found


class TrainingRows:
    """Encoded rows in an order that pads little: sorted by length within pools of 50 batches, the batches shuffled.

    The order depends on seed and epoch alone, so a resumed run sees the rows that an uninterrupted one sees. The
    longest batch comes first in the first epoch, so that memory runs out at once or not at all. Read in sequence.
    """

    def __init__(self, rows: Sequence[Encoded], batch_size: int, seed: int) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._order = self._arrange(0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Encoded:
        return self._rows[self._order[position]]

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch, which counts from 0."""
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
        pool = _POOL * self._batch_size
        for start in range(0, len(order), pool):
            near = sorted(order[start : start + pool], key=self._length)
            batches += [near[at : at + self._batch_size] for at in range(0, len(near), self._batch_size)]
        # Only the last batch may be short, as the rows are cut into batches again by position.
        short = [batch for batch in batches if len(batch) < self._batch_size]
        full = [batch for batch in batches if len(batch) == self._batch_size]
        shuffler.shuffle(full)
        if epoch == 0 and full:
            longest = max(range(len(full)), key=lambda number: max(map(self._length, full[number])))
            full.insert(0, full.pop(longest))
        return [row for batch in [*full, *short] for row in batch]

    def _length(self, row: int) -> int:
        return len(self._rows[row]["input_ids"])


@dataclass(frozen=True, slots=True)
class Collate:
    """Pads rows on the right to the longest of the batch."""

    pad_token_id: int
    multi_label: bool

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` [B, T], ``labels`` [B] or, multi-label, [B, K]."""
        import torch

        batch = padded([row["input_ids"] for row in rows], self.pad_token_id)
        if "labels" in rows[0]:
            kind = torch.float32 if self.multi_label else torch.int64
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=kind)
        return batch


def padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` [B, T], padded on the right."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])  # (B, T)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])  # (B, T)
    return {"input_ids": ids, "attention_mask": mask}


def weights_of(
    setting: str | Mapping[str, float], labels: Sequence[str], counts: Mapping[str, int], *, multi_label: bool
) -> list[float] | None:
    """The weight of each label in the loss, or None for all alike.

    balanced: n / (K * count), which gives each label the same share of a single-label loss and a mean weight of 1 over
    the training rows (King and Zeng 2001). Multi-label: (n - count) / count, on the positive side of each label.
    """
    if setting == "none":
        return None
    if isinstance(setting, Mapping):
        return [float(setting.get(label, 1.0)) for label in labels]
    total = sum(counts.values())
    if multi_label:
        return [max(total - counts[label], 1) / counts[label] for label in labels]
    return [total / (len(labels) * counts[label]) for label in labels]


def loss_function(
    *, multi_label: bool, weights: Sequence[float] | None, label_smoothing: float
) -> Callable[..., torch.Tensor]:
    """The loss for transformers' Trainer: summed over the micro-batch, divided by the items of the whole batch.

    That makes the gradient of a batch independent of how it is cut into micro-batches, which the model's own mean is
    not. Raises NotFinite as soon as a loss is not finite.
    """
    import torch
    from torch.nn import functional

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        logits = outputs["logits"].float()  # (B, K)
        weight = None if weights is None else torch.tensor(weights, device=logits.device)
        if multi_label:
            goal = labels * (1 - label_smoothing) + label_smoothing / 2
            total = functional.binary_cross_entropy_with_logits(logits, goal, pos_weight=weight, reduction="sum")
        else:
            total = functional.cross_entropy(
                logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="sum"
            )
        if not torch.isfinite(total):
            raise NotFinite(f"the loss is {total.item()}", [Problem("", "train", NOT_FINITE)])
        items = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return total / items

    return loss


NOT_FINITE = "Likely causes, in order: learning_rate too high, bfloat16 on a base trained in float16, damaged weights."


def score(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    advance: Callable[[int], None] | None = None,
) -> Floats:
    """Logits [n, K] as float64, in the order of ``rows``; batches hold rows of like length.

    Raises TrainingFailed where a logit is not finite.
    """
    import numpy as np
    import torch

    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    logits: Floats = np.empty((len(rows), model.config.num_labels))
    for batch in batches(order, [len(row) for row in rows], model.device.type):
        inputs = {
            name: tensor.to(model.device) for name, tensor in padded([rows[row] for row in batch], pad_token_id).items()
        }
        with torch.inference_mode():
            logits[batch] = model(**inputs).logits.double().cpu().numpy()
        if advance:
            advance(len(batch))
    if not np.isfinite(logits).all():
        raise TrainingFailed("the model's scores are not finite", [Problem("", "train", NOT_FINITE)])
    return logits


def batches(order: Sequence[int], lengths: Sequence[int], device: str) -> Iterator[list[int]]:
    """Row numbers that ascend in length, in batches of as many padded tokens as suit the device."""
    batch: list[int] = []
    for row in order:
        if batch and lengths[row] * (len(batch) + 1) > _TOKENS_AT_ONCE[device]:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def probabilities(logits: Floats, *, multi_label: bool) -> Floats:
    """Softmax over the labels, or a sigmoid for each label of a multi-label task; [n, K]."""
    import numpy as np

    if multi_label:
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -700, 700))))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def label_names(answers: Integers, labels: Sequence[str], *, multi_label: bool) -> list[list[str]]:
    """Label names of predictions [n] or [n, K]."""
    if multi_label:
        return [[label for label, given in zip(labels, row, strict=True) if given] for row in answers]
    return [[labels[number]] for number in answers]


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size`` rows, read as they are needed."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
