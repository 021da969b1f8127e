"""What a loss is computed on, as figures and as text: counted on the rows that are trained, not on the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from statistics import fmean, median
from typing import TypedDict

from ftkit.data.lengths import Lengths, summary
from ftkit.data.rows import LISTED
from ftkit.records import Example
from ftkit.tasks.chat import Answered, Chat
from ftkit.tasks.rendering import decode
from ftkit.tasks.windows import IGNORED


class Token(TypedDict):
    """A special token as the tokenizer writes it, and its id."""

    token: str
    id: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """Facts about the labels of some rows, as plain values.

    ``trained_tokens``: of all rows, ``share`` of all their tokens; ``min`` to ``max``: trained tokens of a row.
    ``untrained``: rows without a trained token, ``untrained_at`` the places of the first of them. ``stopped``: rows
    whose last trained answer ends with a stop token; all others must be. ``two_bos``: rows that begin with two start
    tokens; none must. ``recut``: rows whose prompt and answer were tokenised apart. ``tokens``: bos, eos, pad and stop,
    those that there are. ``samples``: of the first rows the pieces of text, and whether each is trained.
    """

    rows: int
    untrained: int
    untrained_at: tuple[str, ...]
    trained_tokens: int
    share: float
    min: int
    median: float
    mean: float
    max: int
    stopped: int
    two_bos: int
    recut: int
    source: str
    sha256: str
    tokens: dict[str, list[Token]]
    lengths: Lengths
    samples: tuple[tuple[tuple[str, bool], ...], ...]


def certificate(chat: Chat, rows: Sequence[Answered], examples: Sequence[Example], *, samples: int = 3) -> Certificate:
    """The certificate of the rows and, in the same order, the examples that they come from; at least one."""
    trained = [sum(label != IGNORED for label in row.labels) for row in rows]
    untrained = [example.where for example, count in zip(examples, trained, strict=True) if not count]
    bos = chat.tokenizer.bos_token_id
    return Certificate(
        rows=len(rows),
        untrained=len(untrained),
        untrained_at=tuple(untrained[:LISTED]),
        trained_tokens=sum(trained),
        share=round(sum(trained) / sum(len(row.ids) for row in rows), 6),
        min=min(trained),
        median=float(median(trained)),
        mean=round(fmean(trained), 2),
        max=max(trained),
        stopped=sum(_stopped(chat, row) for row in rows),
        two_bos=sum(bos is not None and row.ids[:2] == [bos, bos] for row in rows),
        recut=sum(row.recut for row in rows),
        source=chat.source,
        sha256=chat.sha256,
        tokens=_tokens(chat),
        lengths=summary([len(row.ids) for row in rows]),
        samples=tuple(tuple(pieces(chat, row)) for row in islice(rows, samples)),
    )


def pieces(chat: Chat, row: Answered) -> list[tuple[str, bool]]:
    """A row's text in pieces, each with whether it is trained; joined they are the text of all its tokens."""
    # Each piece is what its tokens add to the text so far: decoded alone, some tokenizers would drop a space.
    found: list[tuple[str, bool]] = []
    length = end = 0
    for trained, run in groupby(label != IGNORED for label in row.labels):
        end += sum(1 for _ in run)
        text = decode(chat.tokenizer, row.ids[:end])
        found.append((text[length:], trained))
        length = len(text)
    return found


def _stopped(chat: Chat, row: Answered) -> bool:
    # Under train_on all, what the template writes after the last answer is trained too.
    trained = [index for index in range(row.end + 1) if row.labels[index] != IGNORED]
    return bool(trained) and row.ids[trained[-1]] in chat.stop_ids


def _tokens(chat: Chat) -> dict[str, list[Token]]:
    names = {"bos": chat.tokenizer.bos_token_id, "eos": chat.tokenizer.eos_token_id, "pad": chat.tokenizer.pad_token_id}
    named = {name: [int(index)] for name, index in names.items() if index is not None} | {"stop": list(chat.stop_ids)}
    return {
        name: [{"token": str(chat.tokenizer.convert_ids_to_tokens(index)), "id": index} for index in ids]
        for name, ids in named.items()
    }
