"""How llama.cpp would read a text with a GGUF file's tokenizer: to compare with the tokenizer that the model has.

What its sources do for the two kinds of tokenizer that are written here, on the metadata of a file: "gpt2", byte-level
BPE after one of the splits that it knows by name, and "llama", SentencePiece's BPE, which joins the two neighbours that
make the token of the highest score. Marks in the text (control and user-defined tokens) become their tokens first.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's types of tokens


@dataclass(frozen=True, slots=True)
class Split:
    """A split of text into pieces that llama.cpp has under a name: one expression after the other, each on its own.

    ``original``: how tokenizer.json files write it. ``whole``: a piece that is a token is taken whole (ignore_merges).
    """

    expressions: tuple[str, ...]
    original: tuple[str, ...]
    whole: bool = False


_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
SPLITS: Mapping[str, Split] = {
    "gpt-2": Split((_GPT2,), ("ByteLevel",)),
    "smollm": Split((r"\p{N}", _GPT2), ("Digits", "ByteLevel")),
    "qwen2": Split((_LATER % "",), (_QWEN2,)),
    "llama-bpe": Split((_LATER % "{1,3}",), (_LLAMA3,), whole=True),
    "smaug-bpe": Split((_LATER % "{1,3}",), (_LLAMA3,)),
}


def named_split(tokenizer: Mapping[str, Any]) -> str | None:
    """The name of the split that a tokenizer.json describes in so many words; None where llama.cpp has no name."""
    pre = tokenizer["pre_tokenizer"] or {}
    parts = pre.get("pretokenizers", [pre])
    described = []
    for part in parts:
        match part:
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
                described.append("ByteLevel")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
                pass  # it changes bytes to letters, and splits nothing
            case {"type": "Digits", "individual_digits": True}:
                described.append("Digits")
            case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}:
                described.append(expression)
            case _:
                return None
    whole = bool(tokenizer["model"].get("ignore_merges"))
    return next(
        (name for name, split in SPLITS.items() if split.original == tuple(described) and split.whole == whole), None
    )


def reader(metadata: Mapping[str, Any]) -> Callable[[str], list[int]]:
    """A function from a text to the ids that llama.cpp gives it, without start and end tokens.

    ``metadata``: the keys tokenizer.ggml.* of a file. Raises KeyError where one that is needed is missing.
    """
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    marks = {text: index for index, (text, kind) in enumerate(zip(tokens, types, strict=True)) if _is_mark(kind)}
    split = re.compile("|".join(f"({re.escape(mark)})" for mark in sorted(marks, key=len, reverse=True)) or r"(?!)")
    prefix = False
    if metadata["tokenizer.ggml.model"] == "llama":
        piece = _sentencepiece(tokens, metadata["tokenizer.ggml.scores"])
        prefix = metadata["tokenizer.ggml.add_space_prefix"]
    else:
        piece = _byte_level(tokens, metadata["tokenizer.ggml.merges"], SPLITS[metadata["tokenizer.ggml.pre"]])

    def read(text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            mark = split.search(text, at)
            end = mark.start() if mark else len(text)
            if end > at:  # a space is put at the start and after each mark, where the file says so
                ids += piece((" " if prefix else "") + text[at:end])
            if mark:
                ids.append(marks[mark.group()])
                end = mark.end()
            at = end
        return ids

    return read


def _is_mark(kind: int) -> bool:
    return kind in (CONTROL, USER_DEFINED, UNKNOWN)


def _byte_level(tokens: Sequence[str], merges: Sequence[str], split: Split) -> Callable[[str], list[int]]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=split.whole))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in split.expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _sentencepiece(tokens: Sequence[str], scores: Sequence[float]) -> Callable[[str], list[int]]:
    ids = {token: index for index, token in enumerate(tokens)}

    def read(text: str) -> list[int]:
        parts: list[str] = list(text.replace(" ", "▁"))
        before = [*range(-1, len(parts) - 1)]
        after = [*range(1, len(parts)), -1]
        waiting: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (joined := parts[left] + parts[right]) in ids:
                heapq.heappush(waiting, (-scores[ids[joined]], left, right, len(joined)))

        for index in range(1, len(parts)):
            offer(index - 1, index)
        while waiting:
            _, left, right, length = heapq.heappop(waiting)
            if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != length:
                continue
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [token for part in parts if part for token in _ids(part, ids)]

    return read


def _ids(part: str, ids: Mapping[str, int]) -> list[int]:
    """Of a token, or of the bytes of what is none."""
    return [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode("utf-8")]
