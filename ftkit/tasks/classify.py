"""Classification with a head: how texts become batches, what the loss is, and how a model scores rows.

Training, evaluation, proof and predict all score through ``score``: there is no second path to a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.errors import NotFinite, Problem, TrainingFailed
from ftkit.records import Example
from ftkit.tasks.batches import NOT_FINITE, Encoded, batches, padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats, Integers


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
