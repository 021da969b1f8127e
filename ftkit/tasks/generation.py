"""Answers of a language model: greedy, in batches, the same for a row whatever else is answered with it.

Evaluation and predict answer through ``generate``. What a base's own settings ask for (a temperature, a
penalty on repetition) is put aside: two models are compared by what they find likeliest, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.tasks.batches import batches

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# For a row and the tokens that it has so far: those that may come next, at least one.
Allowed = Callable[[int, list[int]], list[int]]

# Tokens in one batch, the new ones included. 256 answers of 48 tokens by tiny-lm took 5.3 s at 2,048, 4.1 s at 8,192
# and 5.5 s at 32,768 (2 cores, 2026-11-25). A GPU is bound by its memory: an 8B model keeps 2 GiB for 16,384 tokens.
_TOKENS_AT_ONCE = {"cpu": 8192, "cuda": 16384}
# Share of a batch that has ended when the rest goes on with that of other batches: the 250 test answers of
# recipes/translation.yaml took 3.0 to 3.4 s at 0.5, 2.6 to 2.8 s at 0.75, 2.5 to 2.6 s at 0.9, and 3.7 to 3.8 s where
# every batch went on to its last row (2 cores, 2026-11-25). Few rows are not worth it.
_ENOUGH_ENDED, _FEW = 0.75, 8
_ALIKE = 1.5  # how much more room a row may have than the longest row of its batch, which decides how far that goes


@dataclass(frozen=True, slots=True)
class Generated:
    """``ids``: the new tokens of a row, without the stop token. ``ended``: whether a stop token came."""

    ids: list[int]
    ended: bool


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    limit: int | None,
    stop_ids: Sequence[int],
    pad_token_id: int,
    advance: Callable[[int], None] | None = None,
    allowed: Allowed | None = None,
) -> list[Generated]:
    """What the model finds likeliest after each prompt (token ids), token by token, in the order of ``prompts``.

    A row ends at a stop token, after ``max_new_tokens``, or where prompt and answer fill ``limit``, the positions that
    the model has (None: no such limit); a prompt that fills them gets no token. ``allowed`` narrows what may come next.
    """
    rooms = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    waiting = [row for row, room in enumerate(rooms) if room > 0]
    if advance and len(waiting) < len(prompts):
        advance(len(prompts) - len(waiting))
    with without_settings(model):
        while waiting:
            rows = {row: [*prompts[row], *found[row]] for row in waiting}
            left = {row: rooms[row] - len(found[row]) for row in waiting}
            waiting = []
            for batch in _batches(rows, left, limit, model.device.type):
                most = max(left[row] for row in batch)
                room = most if limit is None else min(most, limit - max(len(rows[row]) for row in batch))
                step = _Step([rows[row] for row in batch], [left[row] for row in batch], room, stop_ids, pad_token_id)
                narrowed = None if allowed is None else _narrowed(allowed, batch, [found[row] for row in batch])
                for row, (ids, stopped) in zip(batch, step.run(model, narrowed), strict=True):
                    found[row] += ids
                    ended[row] = stopped
                unfinished = [row for row in batch if not ended[row] and len(found[row]) < rooms[row]]
                waiting += unfinished
                if advance and len(unfinished) < len(batch):
                    advance(len(batch) - len(unfinished))
    return [Generated(ids, stopped) for ids, stopped in zip(found, ended, strict=True)]


def _batches(
    rows: Mapping[int, Sequence[int]], left: Mapping[int, int], limit: int | None, device: str
) -> Iterator[list[int]]:
    """Row numbers, those of like length together; ``left``: how many tokens each may still get."""
    most = max(left.values())
    order = sorted(rows, key=lambda row: (len(rows[row]), row))
    sizes = [len(rows[row]) + most if row in rows else 0 for row in range(max(rows) + 1)]
    for batch in batches(order, sizes, device, at_once=_TOKENS_AT_ONCE):
        group: list[int] = []
        for row in reversed(batch):
            if group and limit is not None and left[row] > _ALIKE * (limit - len(rows[group[0]])):
                yield group
                group = []
            group.append(row)
        yield group


def _narrowed(allowed: Allowed, batch: Sequence[int], before: Sequence[Sequence[int]]) -> Allowed:
    """``allowed`` for the rows of a batch, which had these tokens ``before`` it."""
    return lambda place, made: allowed(batch[place], [*before[place], *made])


@dataclass(frozen=True, slots=True)
class _Step:
    """Rows [B] that go on together by at most ``room`` tokens, each by at most ``left`` [B].

    It may leave rows unfinished: where the longest has less room than they, and where most have ended.
    """

    rows: list[list[int]]
    left: list[int]
    room: int
    stop_ids: Sequence[int]
    pad_token_id: int

    def run(self, model: PreTrainedModel, allowed: Allowed | None) -> list[tuple[list[int], bool]]:
        """The new tokens of each row, and whether a stop token ended them."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        width = max(map(len, self.rows))
        # On the left, so that what comes next stands in one column; transformers counts positions from the mask.
        ids = torch.tensor([[*[self.pad_token_id] * (width - len(row)), *row] for row in self.rows])  # (B, T)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in self.rows])  # (B, T)
        settings = GenerationConfig(
            max_new_tokens=self.room,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.pad_token_id,
            eos_token_id=list(self.stop_ids) or None,
        )
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([self._most_ended(width)] if len(self.rows) >= _FEW else []),
                prefix_allowed_tokens_fn=None if allowed is None else self._next(allowed, width),
            )
        return [self._answer(row[:left]) for row, left in zip(made[:, width:].tolist(), self.left, strict=True)]

    def _answer(self, made: list[int]) -> tuple[list[int], bool]:
        end = next((place for place, token in enumerate(made) if token in self.stop_ids), None)
        return made[:end], end is not None

    def _most_ended(self, width: int) -> Callable[..., torch.Tensor]:
        """Stops all rows at once: those that have ended cost as much as the others."""
        import torch

        def most_ended(input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            made = input_ids[:, width:]
            ended = torch.isin(made, torch.tensor(self.stop_ids, dtype=made.dtype, device=made.device)).any(1)  # (B,)
            ended |= torch.tensor(self.left, device=made.device) <= made.shape[1]
            return (ended.float().mean() >= _ENOUGH_ENDED).expand(len(ended))

        return most_ended

    def _next(self, allowed: Allowed, width: int) -> Callable[[int, torch.Tensor], list[int]]:
        """``allowed`` as transformers asks it: with the prompt, and of rows that have ended, too."""

        def next_ids(place: int, row: torch.Tensor) -> list[int]:
            made = row[width:].tolist()
            over = len(made) >= self.left[place] or any(token in self.stop_ids for token in made)
            return [self.pad_token_id] if over else allowed(place, made)

        return next_ids


@contextmanager
def without_settings(model: PreTrainedModel) -> Iterator[None]:
    """The model's own settings for generation put aside: what a call leaves open, transformers takes from them."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
