"""The token ids of a corpus on disk, made once for each pair of texts and tokenizer.

The cache's key holds the texts, the tokenizer's files (its chat template among them) and the code that makes the ids.
A special token that stands in a text, such as <|im_end|>, is text: it ends nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.data.documents import Documents
from ftkit.files import cache_folder, code_sha256, settle, sha256_files, sha256_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    Ids = npt.NDArray[np.integer]

_AT_ONCE = 2**20  # characters after which what was gathered is encoded together
_LONGEST = 2**22  # characters: a longer document is encoded in parts, which are cut at line ends
_ENDS = "ends.npy"  # written last


@dataclass(frozen=True, slots=True)
class Tokens:
    """``ids``: those of all documents, one after the other, without special tokens. ``ends`` [n]: where each ends."""

    ids: Ids
    ends: Ids

    def __len__(self) -> int:
        return len(self.ends)

    def of(self, document: int) -> Ids:
        """The ids of one document."""
        return self.ids[int(self.ends[document - 1]) if document else 0 : int(self.ends[document])]

    @property
    def lengths(self) -> Ids:
        """Tokens of each document [n]."""
        import numpy as np

        return np.diff(self.ends, prepend=0)


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What opens a document, in training, scoring and use: the tokenizer's own start token, or else its end token."""
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return None if found is None else int(str(found))


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """One SHA-256 over all files that the tokenizer is saved as."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        return sha256_files(sorted(path for path in Path(name).rglob("*") if path.is_file()))


def tokenise(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, *, advance: Callable[[int], None] | None = None
) -> Tokens:
    """The token ids of the documents, from the cache where they are there. ``advance`` is told of documents done."""
    import numpy as np

    key = sha256_text(f"{documents.sha256()} {tokenizer_sha256(tokenizer)} {code_sha256('tasks')}")[:32]
    folder = cache_folder() / f"tokens-{key}"
    if not (folder / _ENDS).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".tokens-", dir=folder.parent))
        try:
            _write(fresh, documents, tokenizer, advance)
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
            settle(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    elif advance:
        advance(len(documents))
    ends = np.load(folder / _ENDS, mmap_mode="r")
    size = int(ends[-1]) if len(ends) else 0
    ids = np.memmap(folder / "ids.bin", dtype=_kind(tokenizer), mode="r") if size else np.empty(0, dtype=np.int64)
    return Tokens(ids, ends)


def character_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The character at which each token of a text starts; the ids are those of ``tokenise``."""
    starts: list[int] = []
    before = 0
    for part in _parts(text):
        found = _encoded(tokenizer, [part], return_offsets_mapping=True)
        starts += [before + start for start, _ in found["offset_mapping"][0]]
        before += len(part)
    return starts


def _write(
    folder: Path,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    advance: Callable[[int], None] | None,
) -> None:
    import numpy as np

    lengths: list[int] = []
    kind = _kind(tokenizer)
    with (folder / "ids.bin").open("wb") as file:
        for batch in _batches(documents):
            encoded: list[list[int]] = _encoded(tokenizer, [part for part, _ in batch])["input_ids"]
            for (_, first), ids in zip(batch, encoded, strict=True):
                file.write(np.array(ids, dtype=kind).tobytes())
                if first:
                    lengths.append(0)
                lengths[-1] += len(ids)
            if advance:
                advance(sum(first for _, first in batch))
    np.save(folder / _ENDS, np.cumsum(np.array(lengths, dtype=np.int64)))


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str], **settings: Any) -> Any:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False, **settings)


def _batches(documents: Documents) -> Iterator[list[tuple[str, bool]]]:
    """Parts of the documents, each with whether it is the first of its document."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for text in documents:
        for number, part in enumerate(_parts(text)):
            batch.append((part, number == 0))
            size += len(part)
            if size >= _AT_ONCE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _parts(text: str) -> Iterator[str]:
    """A text in parts of bounded length, so that the memory of encoding is bounded; nearly always the text itself."""
    start = 0
    while len(text) - start > _LONGEST:
        end = text.rfind("\n", start + 1, start + _LONGEST) + 1 or start + _LONGEST
        yield text[start:end]
        start = end
    yield text[start:]


def _kind(tokenizer: PreTrainedTokenizerBase) -> Any:
    return "<u2" if max(tokenizer.get_vocab().values()) < 2**16 else "<u4"


def cut_text(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> str:
    """The beginning of a text that has at most ``most`` tokens."""
    starts = character_starts(tokenizer, text)
    return text if len(starts) <= most else text[: starts[most]]
