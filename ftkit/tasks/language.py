"""Language modelling on next tokens: batches, how windows are scored, and whether packed documents stay apart.

Validation, evaluation and proof all score through ``score``: there is no second path to a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.errors import Problem, TrainingFailed
from ftkit.tasks.batches import NOT_FINITE, Encoded, batches
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats, Integers

# Share of the largest logit by which a document in a pack may differ from itself alone: rounding, not another's words.
_APART = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}


@dataclass(frozen=True, slots=True)
class Collate:
    """Pads windows on the right, where nothing that is predicted looks.

    There is no attention mask: with one, transformers would not keep packed documents apart by their positions. The
    positions of the padding go on, so that an unpacked batch looks like one document a row.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels`` and ``position_ids`` [B, T]."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        filled: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            missing = width - len(row["input_ids"])
            last = row["position_ids"][-1]
            filled["input_ids"].append(row["input_ids"] + [self.pad_token_id] * missing)
            filled["labels"].append(row["labels"] + [IGNORED] * missing)
            filled["position_ids"].append(row["position_ids"] + list(range(last + 1, last + 1 + missing)))
        return {name: torch.tensor(values) for name, values in filled.items()}


@dataclass(frozen=True, slots=True)
class Scores:
    """``nll`` [n]: nats of the predicted tokens of each piece; ``best``: the most probable token at each of them.

    ``margins``: by how much its logit exceeds the next one's. ``logits`` [m, V]: at the positions asked for, in order.
    """

    nll: Floats
    best: list[Integers]
    margins: list[Floats]
    logits: Floats


def score(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    positions: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] | None = None,
) -> Scores:
    """Scores pieces (token ids), each alone: every token but the first is predicted from those before it.

    ``positions``: (row, place) pairs; the logits at these places, which predict the next token, are kept. Raises
    TrainingFailed where a score is not finite.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    nll: Floats = np.zeros(len(rows))
    best: list[Integers] = [np.empty(0, dtype=np.int64)] * len(rows)
    margins: list[Floats] = [np.empty(0)] * len(rows)
    wanted: dict[int, list[int]] = {}
    for row, place in positions:
        wanted.setdefault(row, []).append(place)
    kept: dict[tuple[int, int], Any] = {}
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for batch in batches(order, [len(row) for row in rows], model.device.type):
        width = max(len(rows[row]) for row in batch)
        ids = torch.tensor([[*rows[row], *[pad_token_id] * (width - len(rows[row]))] for row in batch])  # (B, T)
        labels = torch.tensor([[*rows[row], *[IGNORED] * (width - len(rows[row]))] for row in batch])[:, 1:]
        ids, labels = ids.to(model.device), labels.to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
            ahead = logits[:, :-1].float().flatten(0, 1)
            losses = functional.cross_entropy(ahead, labels.flatten(), reduction="none", ignore_index=IGNORED)
            nll[batch] = losses.view(labels.shape).double().sum(1).cpu().numpy()
            two = ahead.topk(2)
            likeliest = two.indices[:, 0].view(labels.shape).cpu().numpy()
            ahead_by = (two.values[:, 0] - two.values[:, 1]).view(labels.shape).cpu().numpy()
        for place, row in enumerate(batch):
            best[row] = likeliest[place, : len(rows[row]) - 1]
            margins[row] = ahead_by[place, : len(rows[row]) - 1]
            for at in wanted.get(row, ()):
                kept[row, at] = logits[place, at].float().cpu().numpy()
        if advance:
            advance(len(batch))
    if not np.isfinite(nll).all():
        raise TrainingFailed("the model's scores are not finite", [Problem("", "train", NOT_FINITE)])
    return Scores(nll, best, margins, np.array([kept[position] for position in positions]))


def keeps_apart(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether the second of two documents in one window gets the logits that it gets alone.

    It depends on the model type and its attention, so the model itself is asked. ``first`` and ``second``: token ids.
    """
    import torch

    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        given = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
        with torch.inference_mode():
            found = model(**{name: value.to(model.device) for name, value in given.items()}, use_cache=False)
        return torch.as_tensor(found.logits[0].float())

    alone = logits(second, range(len(second)))
    together = logits([*first, *second], [*range(len(first)), *range(len(second))])[len(first) :]
    allowed = _APART[str(model.dtype).removeprefix("torch.")] * max(1.0, float(alone.abs().max()))
    return float((alone - together).abs().max()) <= allowed
