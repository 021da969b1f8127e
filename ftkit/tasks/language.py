"""Language modelling on next tokens: batches, how windows are scored, and whether packed documents stay apart.

Validation, evaluation and proof all score through ``score``: there is no second path to a figure.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import Problem, TrainingFailed
from ftkit.models.attention import attend_by_document, attend_by_mask
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
# The same for rows in one line, of which there are few a step. In float32 nothing is compiled, so nothing is padded.
_LINES = {"bfloat16": 64, "float32": 1}
_SHORTEST_WINDOW = 128  # tokens of a window that rows share; attention costs the square of it
_FEWEST = 2  # tokens of a row that can be packed
_TRIED = 64  # tokens of each of the two texts on which it is tried whether a model keeps them apart
_FLOAT_LOGITS = 2**25  # logits that are brought to float32 at a time
# Share of the largest logit by which a document in a pack may differ from itself alone: rounding, not another's words.
_APART = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}


@dataclass(frozen=True, slots=True)
class Collate:
    """Pads windows on the right, where nothing that is predicted looks.

    There is no attention mask: with one, transformers would not keep packed documents apart by their positions. The
    positions of the padding go on, so that an unpacked batch looks like one document a row.

    ``limit``: positions of the model, None where it has no limit. ``arranged``: rows stand alone; or they are put
    together, so that little is padded, into windows as long as the longest of them or all into one line. ``step``:
    a batch is as wide as a multiple of it.
    """

    pad_token_id: int
    limit: int | None
    arranged: Literal["alone", "windows", "line"] = "alone"
    step: int = _WIDTHS

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels`` and ``position_ids`` [B, T]."""
        import numpy as np
        import torch

        lengths = [len(row["input_ids"]) for row in rows]
        if self.arranged == "line":
            rows = [_in_line(rows)]
        elif self.arranged == "windows":
            rows = together(rows, max(_SHORTEST_WINDOW, *lengths))
        width = math.ceil(max(len(row["input_ids"]) for row in rows) / self.step) * self.step
        if self.arranged == "alone" and self.limit is not None:  # else positions start anew with each row
            width = min(width, self.limit)
        filled: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            missing = width - len(row["input_ids"])
            filled["input_ids"].append(row["input_ids"] + [self.pad_token_id] * missing)
            filled["labels"].append(row["labels"] + [IGNORED] * missing)
            filled["position_ids"].append(row["position_ids"] + self._padding(row, missing))
        # By way of numpy, which reads a list six times as fast as torch does.
        return {name: torch.from_numpy(np.array(values)) for name, values in filled.items()}

    def _padding(self, row: Encoded, missing: int) -> list[int]:
        """Positions of the padding: they go on, or after several rows start anew, as another row's would."""
        if self.arranged == "alone":
            last = int(row["position_ids"][-1])
            return list(range(last + 1, last + 1 + missing))
        return [place % (self.limit or missing) for place in range(missing)]


def together(rows: Sequence[Encoded], most: int) -> list[Encoded]:
    """Rows one after the other in windows of at most ``most`` tokens; positions and labels stay a row's own."""
    order, starts = pack([len(row["input_ids"]) for row in rows], most)
    return [_in_line([rows[row] for row in order[start:end]]) for start, end in pairwise(starts)]


def _in_line(rows: Sequence[Encoded]) -> Encoded:
    """Rows as one, in their order."""
    names = ("input_ids", "labels", "position_ids")
    return {name: [value for row in rows for value in row[name]] for name in names}


def sharing(
    collate: Collate, model: PreTrainedModel, rows: Rows, lengths: Sequence[int], dtype: torch.dtype
) -> Collate:
    """The same for rows that are put together, where this model is tried and found to keep them apart.

    On a processor the model attends by document from then on, and all rows stand in one line. Elsewhere rows share
    windows: for a GPU documents are many small pieces of work. ``lengths``: tokens of ``rows``; ``dtype``: of the
    training.
    """
    import torch

    inference_mode(model)
    longest = max(lengths)
    ids: list[int] = rows[lengths.index(longest)]["input_ids"]
    half = min(longest // 2, _TRIED)
    if min(lengths) < _FEWEST or half == 0:
        return collate
    first, second = ids[:half], ids[half : 2 * half]
    if model.device.type == "cpu":
        with torch.inference_mode():
            alone = _logits_of(model, second)
        if attend_by_document(beneath(model)):
            with _as_trained(dtype):
                after = _logits_after(model, first, second)
            name = str(dtype).removeprefix("torch.")
            if _equal(alone, after, name):
                return replace(collate, arranged="line", step=_LINES[name])
            attend_by_mask(beneath(model))
    return replace(collate, arranged="windows") if keeps_apart(model, first, second) else collate


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

    goals = rows if labels is None else labels
    nll: Floats = np.zeros(len(rows))
    best: list[Integers] = [np.empty(0, dtype=np.int64)] * len(rows)
    margins: list[Floats] = [np.empty(0)] * len(rows)
    wanted: dict[int, list[int]] = {}
    for row, place in positions:
        wanted.setdefault(row, []).append(place)
    kept: dict[tuple[int, int], Any] = {}
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    vocabulary = vocabulary_of(model)
    for batch in batches(order, [len(row) for row in rows], model.device.type, vocabulary=vocabulary):
        width = max(len(rows[row]) for row in batch)
        ids = torch.tensor([[*rows[row], *[pad_token_id] * (width - len(rows[row]))] for row in batch])  # (B, T)
        ahead = torch.tensor([[*goals[row][1:], *[IGNORED] * (width + 1 - len(rows[row]))] for row in batch])  # (B, T)
        asked = [at for row in batch for at in wanted.get(row, ())]
        places = list(range(width)) if labels is None else _places(ahead, asked)
        ahead = ahead[:, places].to(model.device)  # (B, P)
        chosen = ahead != IGNORED
        with torch.inference_mode():
            logits = _logits(model, ids.to(model.device), places)  # (B, P, V)
            losses, likeliest, ahead_by = scored_logits(logits[chosen], ahead[chosen])
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


def scored_logits(logits: torch.Tensor, goals: torch.Tensor) -> tuple[Floats, Integers, Floats]:
    """Of logits [N, V]: the nats of the goals [N], the likeliest tokens, and by how much they lead; in float32."""
    import torch
    from torch.nn import functional

    step = max(1, _FLOAT_LOGITS // logits.shape[1])
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for part, goal in zip(torch.split(logits, step), torch.split(goals, step), strict=True):
        own = part.float()
        nats, two = functional.cross_entropy(own, goal, reduction="none").double(), own.topk(2)
        found.append((nats, two.indices[:, 0], two.values[:, 0] - two.values[:, 1]))
    losses, likeliest, ahead_by = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return losses, likeliest, ahead_by


def vocabulary_of(model: PreTrainedModel) -> int:
    """Tokens that the model has logits for."""
    return int(beneath(model).config.get_text_config().vocab_size)


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
    return name in inspect.signature(beneath(model).forward).parameters


def beneath(model: PreTrainedModel) -> PreTrainedModel:
    """The base below an adapter, or the model itself."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def keeps_apart(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether the second of two documents in one window gets the logits that it gets alone.

    It depends on the model type and its attention, so the model itself is asked. ``first`` and ``second``: token ids.
    """
    import torch

    dtype = "bfloat16" if is_quantised(model) else str(model.dtype).removeprefix("torch.")
    with torch.inference_mode():
        return _equal(_logits_of(model, second), _logits_after(model, first, second), dtype)


@contextmanager
def _as_trained(dtype: torch.dtype) -> Iterator[None]:
    """The way that a training's forward pass on a processor goes."""
    import torch

    with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        yield


def _logits_after(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] of the second of two documents in one row."""
    return _logits_of(model, [*first, *second], [*range(len(first)), *range(len(second))])[len(first) :]


def _logits_of(model: PreTrainedModel, ids: Sequence[int], positions: Sequence[int] = ()) -> torch.Tensor:
    """Logits [T, V] of one row, whose positions count from 0 unless they are given."""
    import torch

    given = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions or range(len(ids))])}
    found = model(**{name: value.to(model.device) for name, value in given.items()}, use_cache=False)
    return torch.as_tensor(found.logits[0].detach().float())


def _equal(alone: torch.Tensor, together: torch.Tensor, dtype: str) -> bool:
    """Whether logits differ by no more than rounding in ``dtype`` makes them."""
    allowed = _APART[dtype] * max(1.0, float(alone.abs().max()))
    return float((alone - together).abs().max()) <= allowed
