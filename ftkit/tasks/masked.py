"""Masked language modelling (Devlin et al. 2019): which tokens are hidden, batches, the loss, and scoring.

Training hides other tokens in each epoch, scoring always the same ones, so that two models are compared on one task.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.errors import NotFinite, Problem, TrainingFailed
from ftkit.tasks.batches import NOT_FINITE, Encoded, batches
from ftkit.tasks.language import Scores, scored_logits, vocabulary_of
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Floats, Integers

_SHOWN_AS_MASK, _SHOWN_AS_OTHER = 0.8, 0.1  # of the hidden tokens; the rest is shown as it is


@dataclass(frozen=True, slots=True)
class Masking:
    """How tokens are hidden. ``continues`` [vocabulary]: whether a token goes on with the word of the one before it."""

    mask_token_id: int
    special: frozenset[int]
    share: float
    vocabulary: int
    continues: tuple[bool, ...] | None

    def hide(self, ids: Sequence[int], chance: random.Random) -> tuple[list[int], list[int]]:
        """The ids as the model sees them, and the labels: the true id where it is to be predicted, else IGNORED.

        ``share`` of the tokens is chosen, at least one, by whole words where ``continues`` is given. Of the chosen, 80%
        are shown as the mask, 10% as a random token, 10% as they are.
        """
        units = self._units(ids)
        tokens = sum(map(len, units))
        goal = max(1, round(self.share * tokens))
        chance.shuffle(units)
        shown, labels = list(ids), [IGNORED] * len(ids)
        hidden = 0
        for unit in units:
            if hidden and hidden + len(unit) > goal:
                continue
            hidden += len(unit)
            for place in unit:
                labels[place] = ids[place]
                drawn = chance.random()
                if drawn < _SHOWN_AS_MASK:
                    shown[place] = self.mask_token_id
                elif drawn < _SHOWN_AS_MASK + _SHOWN_AS_OTHER:
                    shown[place] = chance.randrange(self.vocabulary)
            if hidden >= goal:
                break
        return shown, labels

    def _units(self, ids: Sequence[int]) -> list[list[int]]:
        """Places that are hidden together: words, or single tokens."""
        units: list[list[int]] = []
        joined = False  # whether the token before is part of a word that can go on
        for place, token in enumerate(ids):
            if token in self.special:
                joined = False
                continue
            if joined and self.continues is not None and self.continues[token]:
                units[-1].append(place)
            else:
                units.append([place])
            joined = True
        return units


def masking(tokenizer: PreTrainedTokenizerBase, *, share: float, whole_word: bool) -> Masking:
    """The masking for a tokenizer that has a mask token."""
    return Masking(
        mask_token_id=int(str(tokenizer.mask_token_id)),
        special=frozenset(tokenizer.all_special_ids),
        share=share,
        vocabulary=len(tokenizer),
        continues=_continues(tokenizer) if whole_word else None,
    )


def _continues(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, ...]:
    """WordPiece marks what goes on (##ing), the others what begins: with a space as the first sign (Ġ or ▁)."""
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if any(word.startswith("##") for word in words):
        return tuple(word.startswith("##") for word in words)
    return tuple(
        word[:1] not in ("Ġ", "▁") and _within_word(tokenizer.convert_tokens_to_string([word])) for word in words
    )


def _within_word(text: str) -> bool:
    """Whether a token begins with a letter, a digit, an accent, or the bytes of a part of a character."""
    return bool(text) and (text[0] == "\ufffd" or text[0].isalnum() or unicodedata.category(text[0])[0] == "M")


@dataclass(frozen=True, slots=True)
class CollateMasked:
    """Hides tokens and pads on the right. What is hidden depends on seed, epoch and row alone."""

    masking: Masking
    pad_token_id: int
    seed: int

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels`` [B, T]."""
        hidden = [
            self.masking.hide(row["input_ids"], random.Random(f"{self.seed}/{row['epoch']}/{row['row']}"))
            for row in rows
        ]
        return _batch(hidden, self.pad_token_id)


def hidden_rows(masking: Masking, rows: Sequence[Sequence[int]], *, seed: int) -> list[tuple[list[int], list[int]]]:
    """What is hidden in each row for scoring: shown ids and labels. The same for every model."""
    return [masking.hide(row, random.Random(f"score/{seed}/{number}")) for number, row in enumerate(rows)]


def loss_function() -> Callable[..., torch.Tensor]:
    """The loss for transformers' Trainer: summed over the micro-batch, divided by the hidden tokens of the whole batch.

    Raises NotFinite as soon as a loss is not finite.
    """
    import torch
    from torch.nn import functional

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        chosen = labels != IGNORED
        total = functional.cross_entropy(outputs["logits"][chosen].float(), labels[chosen], reduction="sum")
        if not torch.isfinite(total):
            raise NotFinite(f"the loss is {total.item()}", [Problem("", "train", NOT_FINITE)])
        return total / (chosen.sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


def score(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_token_id: int,
    positions: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] | None = None,
) -> Scores:
    """Scores rows of shown ids and labels on the hidden tokens alone; otherwise as ``language.score``."""
    import numpy as np
    import torch

    nll: Floats = np.zeros(len(rows))
    best: list[Integers] = [np.empty(0, dtype=np.int64)] * len(rows)
    margins: list[Floats] = [np.empty(0)] * len(rows)
    wanted: dict[int, list[int]] = {}
    for row, place in positions:
        wanted.setdefault(row, []).append(place)
    kept: dict[tuple[int, int], Any] = {}
    lengths = [len(ids) for ids, _ in rows]
    order, vocabulary = sorted(range(len(rows)), key=lengths.__getitem__), vocabulary_of(model)
    for batch in batches(order, lengths, model.device.type, vocabulary=vocabulary):
        given = _batch([(list(rows[row][0]), list(rows[row][1])) for row in batch], pad_token_id)
        labels = given.pop("labels").to(model.device)
        with torch.inference_mode():
            logits = model(**{name: value.to(model.device) for name, value in given.items()}).logits  # (B, T, V)
        for place, row in enumerate(batch):
            chosen = labels[place] != IGNORED
            losses, best[row], margins[row] = scored_logits(logits[place][chosen], labels[place][chosen])
            nll[row] = losses.sum()
            for at in wanted.get(row, ()):
                kept[row, at] = logits[place, at].float().cpu().numpy()
        if advance:
            advance(len(batch))
    if not np.isfinite(nll).all():
        raise TrainingFailed("the model's scores are not finite", [Problem("", "train", NOT_FINITE)])
    return Scores(nll, best, margins, np.array([kept[position] for position in positions]))


def unigram(train: Any, rows: Sequence[Sequence[int]], *, vocabulary: int) -> Floats:
    """Nats of the hidden tokens of each row under the frequencies of tokens in train, one added to each count.

    ``train``: token ids of the training texts; ``rows``: labels. What can be known without looking at the context.
    """
    import numpy as np

    counts = np.zeros(vocabulary)
    for start in range(0, len(train), 2**24):  # in parts: train may be larger than memory
        counts += np.bincount(train[start : start + 2**24], minlength=vocabulary)
    costs = -np.log((counts + 1) / (counts + 1).sum())
    return np.array([costs[[label for label in row if label != IGNORED]].sum() for row in rows])


def _batch(rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    import torch

    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows]),
    }
