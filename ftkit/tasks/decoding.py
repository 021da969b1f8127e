"""Answers that grow token by token, each with its own settings, for who listens while they are made.

``ftkit.tasks.generation`` is for whole files; this is for conversations and for a server. Both let the model generate
through transformers, so that at temperature 0 the tokens are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftkit.tasks.generation import without_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_MOST_OVER, _FEW = 0.75, 8  # as in generation: rows that are over cost as much as the others


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen: the likeliest at ``temperature`` 0, else by chance among those that make up ``top_p``.

    Nucleus sampling: Holtzman et al. 2020. The chance depends on ``seed`` and on the place of the token alone, not on
    what else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def chance(self, place: int) -> float:
        """A number in [0, 1) for the token at a place of the answer."""
        return random.Random(f"{self.seed}/{place}").random()


@dataclass(slots=True)
class Growing:
    """An answer in the making: at most ``room`` tokens behind ``prompt``.

    ``take`` is told each token, and says whether the answer goes on.
    """

    prompt: Sequence[int]
    room: int
    sampling: Sampling
    take: Callable[[int], bool]
    made: list[int] = field(default_factory=list)
    over: bool = False

    @property
    def left(self) -> int:
        return self.room - len(self.made)

    def add(self, token: int) -> None:
        self.made.append(token)
        self.over = not self.take(token) or self.left == 0


def decode(
    model: PreTrainedModel,
    rows: Sequence[Growing],
    *,
    limit: int | None,
    pad_token_id: int,
    pause: Callable[[int], bool] = lambda steps: False,
) -> None:
    """Goes on with rows that are not over, all together, until they are.

    It leaves some of them unfinished where most of many are over, where the longest fills ``limit``, the positions of
    the model, and where ``pause``, asked after each step with the number of steps, says so. Called again, it goes on
    with them as if nothing had been. Prompt and room of a row must fit the limit.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    texts = [[*row.prompt, *row.made] for row in rows]
    width = max(map(len, texts))
    most = max(row.left for row in rows)
    # On the left, so that what comes next stands in one column; transformers counts positions from the mask.
    ids = torch.tensor([[*[pad_token_id] * (width - len(text)), *text] for text in texts])  # (B, T)
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])  # (B, T)
    sampled = [row for row in rows if row.sampling.temperature]
    settings = GenerationConfig(
        max_new_tokens=most if limit is None else min(most, limit - width),
        do_sample=False,
        use_cache=True,
        pad_token_id=pad_token_id,
    )
    with torch.inference_mode(), without_settings(model):
        model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_choice(rows)] if sampled else []),
            stopping_criteria=StoppingCriteriaList([_told(rows, width, pause)]),
        )


def _told(rows: Sequence[Growing], width: int, pause: Callable[[int], bool]) -> Callable[..., torch.Tensor]:
    """Tells each row its token after each step; asked by transformers which rows are done."""
    import torch

    def told(input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
            if not row.over:
                row.add(token)
        over = [row.over for row in rows]
        if (len(rows) >= _FEW and sum(over) >= _MOST_OVER * len(rows)) or pause(input_ids.shape[1] - width):
            over = [True] * len(rows)
        return torch.tensor(over, device=input_ids.device)  # (B,)

    return told


def _choice(rows: Sequence[Growing]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Leaves of the scores [B, V] of sampled rows one token, which is then the likeliest.

    transformers samples all rows of a batch in one way and from one source of chance; a client's seed must give one
    answer, whoever asks beside it.
    """
    import torch

    places = [place for place, row in enumerate(rows) if row.sampling.temperature]
    chosen = [rows[place].sampling for place in places]

    def choose(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=scores.device)[:, None]  # (S, 1)

        own = scores[places].float()  # (S, V)
        own = (own - own.amax(-1, keepdim=True)) / column([sampling.temperature for sampling in chosen])
        shares, order = own.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = shares.cumsum(-1) - shares
        first = torch.arange(shares.shape[1], device=shares.device) == 0  # stays, whatever top_p
        kept = shares.where((before < column([sampling.top_p for sampling in chosen])) | first, 0)
        chances = column([rows[place].sampling.chance(len(rows[place].made)) for place in places])
        reached = kept.cumsum(-1)
        at = (reached <= chances * reached[:, -1:]).sum(-1, keepdim=True)
        at = at.minimum((kept > 0).sum(-1, keepdim=True) - 1)  # float32 may round a chance up to 1
        only = torch.full_like(own, -torch.inf).scatter(1, order.gather(1, at), 0.0)
        scores = scores.clone()
        scores[places] = only.to(scores.dtype)
        return scores

    return choose
