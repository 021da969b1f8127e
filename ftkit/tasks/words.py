"""Labels as words that a decoder answers with: how probable each is after a prompt, and what an answer says.

Training and evaluation score labels through ``label_scores``: there is no second path to a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.errors import Problem, TrainingFailed
from ftkit.tasks.batches import NOT_FINITE, batches
from ftkit.tasks.generation import Allowed
from ftkit.tasks.language import score, takes
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats


def label_scores(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    words: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    advance: Callable[[int], None] | None = None,
) -> Floats:
    """Log-probability (nats) of each label's answer after each prompt [n, K], in the order of ``prompts``.

    ``words`` [K]: token ids of each answer, its stop token included. The probabilities of all its tokens are
    multiplied, that of the stop too, so that "good" and "good enough" are told apart. Raises TrainingFailed where a
    score is not finite.
    """
    import numpy as np

    found: Floats = np.empty((len(prompts), len(words)))
    lengths = list(map(len, prompts))
    for batch in batches(sorted(range(len(prompts)), key=lengths.__getitem__), lengths, model.device.type):
        rows = [prompts[row] for row in batch]
        shared = _after_shared_prompt(model, rows, words, pad_token_id)
        found[batch] = _one_by_one(model, rows, words, pad_token_id) if shared is None else shared
        if advance:
            advance(len(batch))
    if not np.isfinite(found).all():
        raise TrainingFailed("the model's scores are not finite", [Problem("", "train", NOT_FINITE)])
    return found


def _after_shared_prompt(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], words: Sequence[Sequence[int]], pad_token_id: int
) -> Floats | None:
    """Scores [B, K]; the prompts are computed once, and each answer goes on from what the model remembers of them.

    None where the model's memory cannot be put back as it was before an answer, as that of a recurrent model.
    """
    import numpy as np
    import torch

    width, longest = max(map(len, prompts)), max(map(len, words))
    ids = torch.tensor([[*[pad_token_id] * (width - len(row)), *row] for row in prompts])  # (B, T)
    seen = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) + longest) for row in prompts])
    seen = seen.to(model.device)  # (B, T + longest)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    placed, last = takes(model, "position_ids"), takes(model, "logits_to_keep")

    def logits(given: torch.Tensor, start: int, **settings: Any) -> tuple[torch.Tensor, Any]:
        """Logits of the tokens ``given`` from column ``start`` on, and what the model remembers then."""
        end = start + given.shape[1]
        if placed:
            settings["position_ids"] = positions[:, start:end]
        made = model(input_ids=given.to(model.device), attention_mask=seen[:, :end], use_cache=True, **settings)
        return made.logits, getattr(made, "past_key_values", None)

    found = np.empty((len(prompts), len(words)))
    with torch.inference_mode():
        opening, memory = logits(ids, 0, **({"logits_to_keep": 1} if last else {}))
        if memory is None or not memory.is_croppable:
            return None
        memory.activate_past_recording()
        first = opening[:, -1].float().log_softmax(-1)  # (B, V)
        for number, word in enumerate(words):
            total = first[:, word[0]].double()
            if rest := list(word[1:]):
                ahead, _ = logits(torch.tensor([list(word[:-1])] * len(prompts)), width, past_key_values=memory)
                memory.crop(-len(rest))
                total += ahead.float().log_softmax(-1)[:, range(len(rest)), rest].double().sum(1)
            found[:, number] = total.cpu().numpy()
    return found


def _one_by_one(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], words: Sequence[Sequence[int]], pad_token_id: int
) -> Floats:
    """Scores [B, K], each answer with its prompt as a text of its own."""
    rows = [[*prompt, *word] for prompt in prompts for word in words]
    labels = [[*[IGNORED] * len(prompt), *word] for prompt in prompts for word in words]
    nll = score(model, rows, pad_token_id=pad_token_id, labels=labels).nll
    return -nll.reshape(len(prompts), len(words))


def constrained(words: Sequence[Sequence[int]]) -> Allowed:
    """What ``generation.generate`` may write so that an answer is one of ``words``, each with a stop token at its end.

    Token by token the likeliest is taken, which need not lead to the label that is likeliest as a whole.
    """
    following: dict[tuple[int, ...], list[int]] = {}
    for word in words:
        for place, token in enumerate(word):
            known = following.setdefault(tuple(word[:place]), [])
            if token not in known:
                known.append(token)
    return lambda _, made: following[tuple(made)]


def label_of(ids: Sequence[int], words: Sequence[Sequence[int]]) -> int | None:
    """The number of the label whose answer these tokens are (without the stop token); None: they are no label's."""
    return next((number for number, word in enumerate(words) if list(word[:-1]) == list(ids)), None)


def label_named(text: str, labels: Sequence[str]) -> int | None:
    """The number of the label that a freely generated answer names; None where it says anything else or more.

    Space around it does not count; capitals do, as they may tell two labels apart.
    """
    answer = text.strip()
    return next((number for number, label in enumerate(labels) if label.strip() == answer), None)
