"""The tokenizer of a model's folder as GGUF metadata, or the reason why llama.cpp could not split text as it does.

Nothing is taken on trust: what llama.cpp would make of some hundred texts with the metadata is compared with what the
tokenizer makes of them. Differences that llama.cpp has for every tokenizer of a kind (white space at the start of a
text, text that is not in NFC) are told as notes; any other refuses the export.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem
from ftkit.export.gguf.probes import NAMES, probes
from ftkit.export.gguf.splitting import (
    BYTE,
    CONTROL,
    NORMAL,
    SPLITS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    named_split,
    reader,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.export.gguf.architectures import Value

_PREFIX = "tokenizer.ggml."
# The texts that llama.cpp ends a generation at, whatever the file says (src/llama-vocab.cpp), of those seen here.
_ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<|end_of_text|>")
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``metadata``: the keys tokenizer.*. ``stop``: the texts of the tokens that end a generation. ``notes``: what
    llama.cpp does otherwise than the tokenizer, in sentences."""

    metadata: Mapping[str, Value]
    stop: tuple[str, ...]
    notes: tuple[str, ...]


def read_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as transformers uses it. Raises DataError where it has none with tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise _refused(model, f"it cannot be loaded: {first} Put the model's tokenizer.json beside it.") from error
    if not tokenizer.is_fast:
        raise _refused(model, "it has no tokenizer.json. Load it with transformers and save it as a fast tokenizer.")
    return tokenizer


def read_vocabulary(model: Path, size: int) -> Vocabulary:
    """The tokenizer of a model with ``size`` embeddings. Raises DataError where llama.cpp would split otherwise."""
    tokenizer = read_tokenizer(model)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE":
        kind = described["model"]["type"]
        raise _refused(model, f"it is of the kind {kind}; BPE alone is carried over. Write another format.")
    _check_marks(model, described)
    byte_level = "ByteLevel" in json.dumps(described["pre_tokenizer"])
    fields = _byte_level(described) if byte_level else _sentencepiece(model, described)
    tokens, types = _tokens(model, described, size, byte_level=byte_level)
    fields |= {"tokens": tokens, "token_type": types}
    if not byte_level:
        fields["scores"] = _scores(described, tokens)
    fields |= _flags(model, tokenizer)
    ends, stop, notes = _ends(model, tokenizer)
    fields |= ends
    metadata: dict[str, Value] = {_PREFIX + key: value for key, value in fields.items()}
    told = _choose(model, tokenizer, described, metadata, byte_level=byte_level)
    metadata |= _templates(tokenizer)
    return Vocabulary(metadata, stop, (*notes, *told))


def compare(
    read: Callable[[str], list[int]], tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[str, list[int], list[int]] | None:
    """The first text of which the two make different ids: the text, the tokenizer's ids, the reader's."""
    for text in texts:
        own = list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        if (other := read(text)) != own:
            return text, own, other
    return None


def tolerated(tokenizer: PreTrainedTokenizerBase, described: Mapping[str, Any]) -> set[str]:
    """The groups of texts that llama.cpp may split otherwise: a note, and no reason to refuse the tokenizer."""
    if "ByteLevel" in json.dumps(described["pre_tokenizer"]):
        return {"decomposed"}  # it does not compose them as NFC does (Qwen), nor keep them with their letters
    # A chat begins with a mark, a bare text does not: llama.cpp may err in the other of the two.
    return {"spaced", "plain" if tokenizer.chat_template else "marks"}


def _check_marks(model: Path, described: Mapping[str, Any]) -> None:
    """Marks that take the white space around them, or count as whole words only, have no form in GGUF."""
    for token in described["added_tokens"]:
        for key in ("lstrip", "rstrip", "single_word"):
            if token[key]:
                why = f"its token {token['content']} is read with {key}, which llama.cpp does not know."
                raise _refused(model, f"{why} Write another format.")


def _byte_level(described: Mapping[str, Any]) -> dict[str, Any]:
    pairs = described["model"]["merges"]
    return {"model": "gpt2", "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]}


def _sentencepiece(model: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    if not described["model"].get("byte_fallback"):
        raise _refused(model, "it neither works on bytes nor falls back to them. Write another format.")
    vocab = described["model"]["vocab"]
    pairs = {tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in described["model"]["merges"]}
    marks = {token["content"] for token in described["added_tokens"]}
    for token in vocab.keys() - marks:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab and (left, right) not in pairs and not _is_byte(token):
                why = f"it does not join {left} and {right}, and llama.cpp would, since {token} is a token."
                raise _refused(model, f"{why} Write another format.")
    return {"model": "llama", "pre": "default"}


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _tokens(model: Path, described: Mapping[str, Any], size: int, *, byte_level: bool) -> tuple[list[str], list[int]]:
    """The text and the type of each id up to ``size``, with padding for the ids that are no token."""
    known = {index: token for token, index in described["model"]["vocab"].items()}
    types = dict.fromkeys(known, NORMAL)
    if not byte_level:
        types |= {index: BYTE for index, token in known.items() if _is_byte(token)}
    for token in described["added_tokens"]:
        known[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = described["model"].get("unk_token") or "<unk>"
    types |= {index: UNKNOWN for index, token in known.items() if not byte_level and token == unknown}
    if (last := max(known)) >= size:
        why = f"it has the token {last}, and the model {size} embeddings."
        raise _refused(model, f"{why} Resize the embeddings, or use the model's own tokenizer.")
    tokens = [known.get(index, f"[PAD{index}]") for index in range(size)]
    if len(set(tokens)) < size:
        twice = next(token for number, token in enumerate(tokens) if token in tokens[:number])
        raise _refused(model, f"it has the token {twice} twice. Write another format.")
    return tokens, [types.get(index, UNUSED) for index in range(size)]


def _scores(described: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """What is joined first has the highest score; what nothing is joined to, the lowest."""
    ranks: dict[str, int] = {}
    merges = described["model"]["merges"]
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair) if isinstance(pair, list) else pair.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _flags(model: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Whether a text begins with the start token and ends with the end token, as the tokenizer really does it."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first, last = whole[:1] == [bos] and bare[:1] != [bos], whole[-1:] == [eos] and bare[-1:] != [eos]
    if whole != [*([bos] if first else []), *bare, *([eos] if last else [])]:
        raise _refused(model, "it puts other tokens around a text than start and end. Write another format.")
    return {"add_bos_token": first, "add_eos_token": last}


def _ends(model: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """The ids of the special tokens; the texts of those that end a generation; notes."""
    settings = _read(model / "generation_config.json") or _read(model / "config.json")
    named = settings.get("eos_token_id")
    stops = [named] if isinstance(named, int) else list(named or ())
    if tokenizer.eos_token_id is not None:
        stops = [int(str(tokenizer.eos_token_id)), *stops]
    stops = list(dict.fromkeys(stops))
    if not stops:
        raise _refused(model, "it has no end token, so nothing would ever end. Set eos_token in tokenizer_config.json.")
    # Three ids can be named: end of text, of a turn, of a message. All three end a generation.
    ids = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), stops, strict=False))
    texts = tuple(str(text) for text in tokenizer.convert_ids_to_tokens(stops))
    more = [text for text in texts[3:] if text not in _ENDS]
    notes = [f"llama.cpp does not stop at {', '.join(more)} by itself. Name them as stop words."] if more else []
    for key, index in (
        ("bos_token_id", tokenizer.bos_token_id),
        ("unknown_token_id", tokenizer.unk_token_id),
        ("padding_token_id", tokenizer.pad_token_id),
    ):
        if index is not None:
            ids[key] = int(str(index))
    return ids, texts, tuple(notes)


def _choose(
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    described: Mapping[str, Any],
    metadata: dict[str, Value],
    *,
    byte_level: bool,
) -> list[str]:
    """Sets what makes llama.cpp split as the tokenizer does, and gives the notes on what stays different."""
    named = named_split(described) if byte_level else None
    key = "pre" if byte_level else "add_space_prefix"
    choices: Sequence[str | bool] = ([named] if named else [*SPLITS]) if byte_level else (True, False)
    # Where the split has no name, the vocabulary itself shows whether another split gives the same tokens.
    groups = probes(described, every_token=byte_level and named is None)
    allowed = tolerated(tokenizer, described)
    tried = []
    for choice in choices:
        metadata[_PREFIX + key] = choice
        read = reader(metadata)
        differences = {group: compare(read, tokenizer, texts) for group, texts in groups.items()}
        failed = {group: difference for group, difference in differences.items() if difference}
        tried.append((len(failed.keys() - allowed), len(failed), choice, failed))
        if not failed:
            break
    _, _, metadata[_PREFIX + key], failed = min(tried, key=lambda one: one[:2])
    for group, difference in failed.items():
        if group not in allowed:
            fix = f"llama.cpp has no way to split text as it does: {_shown(difference)}. Write another format."
            raise _refused(model, fix)
    return [f"llama.cpp splits {NAMES[group]} otherwise: {_shown(failed[group])}." for group in failed]


def _shown(difference: tuple[str, list[int], list[int]]) -> str:
    text, own, other = difference
    text = text if len(text) <= 40 else text[:40] + "…"
    return f"{text!r} is {own[:8]}, and would be {other[:8]}"


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    template = tokenizer.chat_template
    if not template:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    found: dict[str, Value] = {"tokenizer.chat_templates": sorted(set(template) - {"default"})}
    for name, text in template.items():
        found["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = text
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _refused(model: Path, fix: str) -> DataError:
    return DataError(f"the tokenizer of {model} cannot be written as GGUF", [Problem("", "tokenizer", fix)])
