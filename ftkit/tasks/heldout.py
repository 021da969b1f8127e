"""The pieces of validation and test texts that are scored: what is predicted of each, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftkit.data.documents import Documents
from ftkit.errors import DataError, Problem
from ftkit.tasks import language, masked
from ftkit.tasks.language import Scores
from ftkit.tasks.masked import Masking, hidden_rows
from ftkit.tasks.tokens import Tokens, character_starts, start_token
from ftkit.tasks.windows import IGNORED, Layout, Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.evals.statistics import Integers

Objective = Literal["causal", "masked"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A side that is scored: its documents, and for each piece its token ids, what is predicted of it, its bytes.

    ``hidden``: for the masked objective what is shown of each piece, and the labels; else None. ``tokens`` [n]: those
    that are predicted; ``bytes`` [n]: UTF-8 bytes that they stand for, None for the masked objective.
    """

    documents: Documents
    pieces: Pieces
    rows: list[list[int]]
    hidden: list[tuple[list[int], list[int]]] | None
    tokens: Integers
    bytes: Integers | None

    def __len__(self) -> int:
        return len(self.rows)


def layout(tokenizer: Any, objective: Objective, max_length: int, *, end: bool) -> Layout:
    """What stands around a document: the tokenizer's start and end tokens, or an encoder's own around each piece."""
    if objective == "masked":
        return Layout(max_length, tokenizer.cls_token_id, tokenizer.sep_token_id, overlap=0, closed=True)
    return Layout(max_length, start_token(tokenizer), tokenizer.eos_token_id if end else None)


def held_out(
    documents: Documents,
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    max_length: int,
    *,
    masking: Masking | None,
    seed: int,
) -> HeldOut:
    """The pieces to score. The end of a document is trained, and not scored: no byte of the text stands behind it.

    ``masking`` (None for the causal objective) hides the same tokens for every model, by ``seed``. Raises DataError
    where there are documents and no token of them is predicted.
    """
    import numpy as np

    pieces = Pieces(tokens, layout(tokenizer, objective, max_length, end=False))
    if len(documents) and not len(pieces):
        raise DataError("a side has no token to predict", [Problem("", "data", "Name longer texts.")])
    rows = [pieces.ids(piece) for piece in range(len(pieces))]
    if masking is not None:
        hidden = hidden_rows(masking, rows, seed=seed)
        tokens_hidden = np.array([sum(label != IGNORED for label in labels) for _, labels in hidden], dtype=np.int64)
        return HeldOut(documents, pieces, rows, hidden, tokens_hidden, None)
    return HeldOut(documents, pieces, rows, None, pieces.predicted(), byte_counts(documents, pieces, tokenizer))


def score_held_out(
    model: PreTrainedModel,
    side: HeldOut,
    *,
    pad_token_id: int,
    positions: Sequence[tuple[int, int]] = (),
    advance: Callable[[int], None] | None = None,
) -> Scores:
    """The model's scores of a side, by its objective. Raises TrainingFailed where one is not finite."""
    if side.hidden is not None:
        return masked.score(model, side.hidden, pad_token_id=pad_token_id, positions=positions, advance=advance)
    return language.score(model, side.rows, pad_token_id=pad_token_id, positions=positions, advance=advance)


def byte_counts(documents: Documents, pieces: Pieces, tokenizer: PreTrainedTokenizerBase) -> Integers:
    """The UTF-8 bytes that the predicted tokens of each piece stand for [n]; together those of the texts.

    A piece's bytes go from the first character of its first predicted token to that of the next piece's. Where no start
    token makes the first token of a document predicted, its bytes are left out.
    """
    import numpy as np

    shift = int(pieces.layout.start is not None)
    found = np.zeros(len(pieces), dtype=np.int64)
    last = -1
    for piece in range(len(pieces)):
        document = int(pieces.document[piece])
        if document != last:
            text, last = documents[document], document
            starts = [*character_starts(tokenizer, text), len(text)]
            starts[0] = 0  # white space before the first token is the document's too
        begin = int(pieces.begin[piece]) + 1 - shift
        end = begin + int(pieces.length[piece]) - 1
        found[piece] = len(text[starts[begin] : starts[end]].encode())
    return found
