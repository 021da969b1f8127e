"""The baselines that an adapter has to beat: the majority class, and a linear probe on the frozen base."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.tasks.batches import batches, padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats, Integers

PROBE_ROWS = 5_000


def features(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    advance: Callable[[int], None] | None = None,
) -> Floats:
    """What the head sees of each row: the base's output [n, H], pooled as the model's own head pools it."""
    import numpy as np
    import torch

    pooled: list[Floats] = []
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for batch in batches(order, [len(row) for row in rows], model.device.type):
        inputs = {
            name: tensor.to(model.device) for name, tensor in padded([rows[row] for row in batch], pad_token_id).items()
        }
        with torch.inference_mode():
            pooled.append(_pool(model, inputs, pad_token_id).double().cpu().numpy())
        if advance:
            advance(len(batch))
    found = np.concatenate(pooled)
    sorted_back = np.empty_like(found)
    sorted_back[order] = found
    return sorted_back


def _pool(model: PreTrainedModel, inputs: dict[str, torch.Tensor], pad_token_id: int) -> Any:
    """[B, H]. Decoders: the last token but padding. Encoders: the pooler's output, the mean or the first token."""
    import torch

    output = model.base_model(**inputs)
    hidden = output.last_hidden_state  # (B, T, H)
    mask = inputs["attention_mask"]
    if hasattr(model, "score"):
        # By the token, not by the mask, as the head does it: they differ where a text ends with the padding token.
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * (inputs["input_ids"] != pad_token_id)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    pooler = getattr(output, "pooler_output", None)
    if pooler is not None:
        return pooler
    if getattr(model.config, "classifier_pooling", "cls") == "mean":
        return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return hidden[:, 0]


def sample(count: int, seed: int) -> list[int]:
    """At most 5,000 seeded row numbers of ``count``, in order."""
    if count <= PROBE_ROWS:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), PROBE_ROWS))


def probe(train: Floats, references: Integers, test: Floats, *, labels: int, multi_label: bool) -> Floats:
    """Probabilities [n, K] of a logistic regression (C=1) on standardised features.

    ``train`` [m, H] with ``references`` [m] or [m, K]; ``test`` [n, H]. A label without a row in the sample, or in all
    its rows, gets its share as probability (Alain and Bengio 2016, for the idea of the probe).
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    seen, unseen = scaler.transform(train), scaler.transform(test)
    found: Floats = np.zeros((len(test), labels))
    if multi_label:
        for label in range(labels):
            own = references[:, label]
            if own.min() == own.max():
                found[:, label] = own[0]
            else:
                found[:, label] = LogisticRegression(C=1.0, max_iter=5_000).fit(seen, own).predict_proba(unseen)[:, 1]
        return found
    model = LogisticRegression(C=1.0, max_iter=5_000).fit(seen, references)
    found[:, model.classes_] = model.predict_proba(unseen)
    return found


def majority(references: Integers, rows: int, *, labels: int, multi_label: bool) -> Floats:
    """The shares of the labels in train as the probabilities of each row [n, K]."""
    import numpy as np

    shares = references.mean(axis=0) if multi_label else np.bincount(references, minlength=labels) / len(references)
    return np.tile(shares.astype(np.float64), (rows, 1))
