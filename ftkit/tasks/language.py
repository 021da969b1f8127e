"""Language modelling on next tokens: batches, how windows are scored, and whether packed documents stay apart.

Validation, evaluation and proof all score through ``score``: there is no second path to a figure.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ftkit.errors import Problem, TrainingFailed
from ftkit.models.base import inference_mode
from ftkit.models.quantise import is_quantised
from ftkit.tasks.batches import NOT_FINITE, Encoded, Rows, batches
from ftkit.tasks.windows import IGNORED, pack

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats, Integers

# Batches are as wide as a multiple of this. oneDNN keeps what it compiled for each shape that it saw: rows of up to 512
# tokens of all widths held 2,933 MiB in training, 1,818 in steps of 16, at the same speed (2 cores, 2026-11-25).
_WIDTHS = 16
_SHORTEST_WINDOW = 128  # tokens of a window that rows share; attention costs the square of it
_FEWEST = 2  # tokens of a row that can be packed
_TRIED = 64  # tokens of each of the two texts on which it is tried whether a model keeps them apart
# Share of the largest logit by which a document in a pack may differ from itself alone: rounding, not another's words.
_APART = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}


@dataclass(frozen=True, slots=True)
class Collate:
    """Pads windows on the right, where nothing that is predicted looks.

    There is no attention mask: with one, transformers would not keep packed documents apart by their positions. The
    positions of the padding go on, so that an unpacked batch looks like one document a row.

    ``limit``: positions of the model, None where it has no limit. ``shared``: rows are put together into windows as
    long as the longest of them, so that little is padded; else each stands alone.
    """

    pad_token_id: int
    limit: int | None
    shared: bool = False

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels`` and ``position_ids`` [B, T]."""
        import torch

        most = self.limit
        if self.shared:
            rows, most = together(rows), None  # positions start anew with each row
        width = math.ceil(max(len(row["input_ids"]) for row in rows) / _WIDTHS) * _WIDTHS
        width = width if most is None else min(width, most)
        filled: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            missing = width - len(row["input_ids"])
            filled["input_ids"].append(row["input_ids"] + [self.pad_token_id] * missing)
            filled["labels"].append(row["labels"] + [IGNORED] * missing)
            filled["position_ids"].append(row["position_ids"] + self._padding(row, missing))
        return {name: torch.tensor(values) for name, values in filled.items()}

    def _padding(self, row: Encoded, missing: int) -> list[int]:
        """Positions of the padding: they go on, or in a shared window start anew, as another row's would."""
        if not self.shared:
            last = int(row["position_ids"][-1])
            return list(range(last + 1, last + 1 + missing))
        return [place % (self.limit or missing) for place in range(missing)]


def together(rows: Sequence[Encoded]) -> list[Encoded]:
    """Rows one after the other in windows that hold the longest; a row's positions and labels stay its own."""
    lengths = [len(row["input_ids"]) for row in rows]
    order, starts = pack(lengths, max(_SHORTEST_WINDOW, *lengths))
    windows = [[rows[row] for row in order[start:end]] for start, end in pairwise(starts)]
    names = ("input_ids", "labels", "position_ids")
    return [{name: [value for row in own for value in row[name]] for name in names} for own in windows]


def sharing(collate: Collate, model: PreTrainedModel, rows: Rows, lengths: Sequence[int]) -> Collate:
    """The same with windows that rows share, where this model is tried and found to keep them apart.

    ``lengths``: tokens of each of ``rows``.
    """
    inference_mode(model)
    shortest, longest = min(lengths), max(lengths)
    ids: list[int] = rows[lengths.index(longest)]["input_ids"]
    half = min(longest // 2, _TRIED)
    if shortest < _FEWEST or not keeps_apart(model, ids[:half], ids[half : 2 * half]):
        return collate
    return replace(collate, shared=True)


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
    labels: Sequence[Sequence[int]] | None = None,
    positions: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] | None = None,
) -> Scores:
    """Scores pieces (token ids), each alone: every token but the first is predicted from those before it.

    ``labels``, as long as its row: the token's id where it is scored, else IGNORED; a row's first token never is.
    ``positions``: (row, place) pairs; the logits at these places, which predict the next token, are kept. Raises
    TrainingFailed where a score is not finite.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    goals = rows if labels is None else labels
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
        ahead = torch.tensor([[*goals[row][1:], *[IGNORED] * (width + 1 - len(rows[row]))] for row in batch])  # (B, T)
        asked = [at for row in batch for at in wanted.get(row, ())]
        places = list(range(width)) if labels is None else _places(ahead, asked)
        ahead = ahead[:, places].to(model.device)  # (B, P)
        chosen = ahead != IGNORED
        with torch.inference_mode():
            logits = _logits(model, ids.to(model.device), places)  # (B, P, V)
            own = logits[chosen].float()  # (scored, V)
            losses = functional.cross_entropy(own, ahead[chosen], reduction="none").double().cpu().numpy()
            two = own.topk(2)
            likeliest, ahead_by = two.indices[:, 0].cpu().numpy(), (two.values[:, 0] - two.values[:, 1]).cpu().numpy()
        ends = chosen.sum(1).cumsum(0).tolist()
        for number, row in enumerate(batch):
            within = slice(ends[number - 1] if number else 0, ends[number])
            nll[row], best[row], margins[row] = losses[within].sum(), likeliest[within], ahead_by[within]
            for at in wanted.get(row, ()):
                kept[row, at] = logits[number, places.index(at)].float().cpu().numpy()
        if advance:
            advance(len(batch))
    if not np.isfinite(nll).all():
        raise TrainingFailed("the model's scores are not finite", [Problem("", "train", NOT_FINITE)])
    return Scores(nll, best, margins, np.array([kept[position] for position in positions]))


def _places(ahead: torch.Tensor, asked: Sequence[int]) -> list[int]:
    """Where in a batch anything is scored or asked for; ``ahead`` [B, T]: the labels of the next tokens."""
    scored: list[int] = (ahead != IGNORED).any(0).nonzero().flatten().tolist()
    return sorted({*scored, *asked})


def _logits(model: PreTrainedModel, ids: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Logits [B, P, V] at some places of ``ids`` [B, T].

    The others are never made where the model can leave them out: a prompt's would be most of the memory, and with a
    large vocabulary much of the time.
    """
    import torch

    if len(places) == ids.shape[1]:
        return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)
    kept = torch.tensor(places, dtype=torch.long, device=ids.device)
    if takes(model, "logits_to_keep"):
        return torch.as_tensor(model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits)
    return torch.as_tensor(model(input_ids=ids, use_cache=False).logits[:, kept])


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the model can be given this input; an adapter's model is asked for the base below it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(base.forward).parameters


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
    dtype = "bfloat16" if is_quantised(model) else str(model.dtype).removeprefix("torch.")
    allowed = _APART[dtype] * max(1.0, float(alone.abs().max()))
    return float((alone - together).abs().max()) <= allowed
