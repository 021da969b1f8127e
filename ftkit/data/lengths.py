"""How many tokens the rows have, and how many the model takes. Reads the base's own files; loads no model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ftkit.errors import MachineError
from ftkit.records import Decision

_CHUNK = 1024
_SANE = 1_000_000  # tokenizers without a limit say 1e30
_PERCENTILES = (50, 90, 95, 99, 99.5)
COVERED = 99.5  # per cent of the train rows that a max_length of our choice does not cut
# These families take any length (relative or recurrent positions), whatever number their config holds.
_UNLIMITED = frozenset("t5 mt5 umt5 longt5 switch_transformers bloom xlnet mamba mamba2 falcon_mamba rwkv".split())
# These count positions from padding_idx + 1, so a table of 514 takes 512 tokens.
_OFFSET = frozenset(
    "roberta xlm-roberta xlm-roberta-xl camembert roberta-prelayernorm longformer mpnet xmod data2vec-text luke mluke "
    "ibert layoutlmv3 markuplm lilt esm".split()
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of the rows of one split, special tokens included.

    ``percentiles`` by name ("50", "99.5"); ``histogram``: pairs of the largest length in a bin and the rows in it.
    """

    rows: int
    longest: int
    mean: float
    percentiles: dict[str, int]
    histogram: tuple[tuple[int, int], ...]


def token_lengths(base: Path, texts: Iterable[str]) -> list[int] | None:
    """The number of tokens of each text, special ones included, uncut; None where the base has no tokenizer.json.

    Raises MachineError where that file cannot be read.
    """
    from tokenizers import Tokenizer

    path = base / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise MachineError(f"{path} cannot be read as a tokenizer: {error}. Fetch the base again.") from error
    # The file may cut and fill to a fixed length (MiniLM's does, to 128), and each row would seem that long.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoding) for chunk in _chunks(texts) for encoding in tokenizer.encode_batch_fast(chunk)]


def summary(lengths: Sequence[int]) -> Lengths:
    """The percentiles and the histogram of token counts; there must be at least one."""
    ordered = sorted(lengths)
    width = max(8, math.ceil(ordered[-1] / 16 / 8) * 8)
    bins = [0] * math.ceil(max(ordered[-1], 1) / width)
    for length in ordered:
        bins[max(length - 1, 0) // width] += 1
    return Lengths(
        rows=len(ordered),
        longest=ordered[-1],
        mean=round(sum(ordered) / len(ordered), 2),
        percentiles={f"{percent:g}": percentile(ordered, percent) for percent in _PERCENTILES},
        histogram=tuple(((index + 1) * width, rows) for index, rows in enumerate(bins)),
    )


def max_positions(base: Path) -> int | None:
    """The most tokens the base takes, by its config.json and tokenizer_config.json; None where it has no limit.

    Raises MachineError where one of the files is no JSON object.
    """
    tokenizer = _read_config(base / "tokenizer_config.json").get("model_max_length")
    limits = [_config_positions(_read_config(base / "config.json")), tokenizer]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _SANE]
    return min(known, default=None)


def choose_max_length(train_lengths: Sequence[int], positions: int | None, *, covered: float = COVERED) -> Decision:
    """The ``train.max_length`` for a recipe that leaves it out: ``covered`` per cent of the rows, within the model."""
    longest = percentile(sorted(train_lengths), covered)
    rounded = math.ceil(longest / 8) * 8
    why = f"{covered}% of the train rows have at most {longest} tokens"
    if positions is not None and positions < rounded:
        return Decision("train.max_length", positions, f"the model's positions; {why}")
    return Decision("train.max_length", rounded, why)


def too_long(max_length: int, positions: int | None) -> str | None:
    """What is wrong with a ``train.max_length`` the model does not take, with the fix; None where it fits."""
    if positions is None or max_length <= positions:
        return None
    return f"got {max_length}, but the base takes {positions} tokens. Write {positions} or less."


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The smallest value that at least ``percent`` of the values do not exceed (nearest rank)."""
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def _config_positions(config: dict[str, Any]) -> int | None:
    config = config.get("text_config") or config
    if config.get("model_type") in _UNLIMITED:
        return None
    keys = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
    values = [value for key in keys if isinstance(value := config.get(key), int) and value > 0]
    if not values:
        return None
    if config.get("model_type") in _OFFSET:
        padding = config.get("pad_token_id")
        return min(values) - (padding if isinstance(padding, int) else 1) - 1
    return min(values)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MachineError(f"{path} is no JSON: {error}. Fetch the base again.") from error
    if not isinstance(value, dict):
        raise MachineError(f"{path} holds no JSON object. Fetch the base again.")
    return value


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
