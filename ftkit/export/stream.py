"""Writes a merged model tensor by tensor: each of the base's bytes is read once, and written once.

A tensor that the adapter changes is computed in blocks of rows, in float32, and rounded once to the base's own number
format; all others are copied as they are. What is held in memory is a block, and the factors of one update.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ftkit.errors import DataError, Problem
from ftkit.export.beside import Beside
from ftkit.export.blocks import Planned, computed, main_dtype, one_thread, planned
from ftkit.export.tensors import Shards, Stored, check_space, read_index
from ftkit.export.updates import Changes, Update
from ftkit.export.verify import check_merged
from ftkit.files import sha256_file, sha256_text, write_json, writing_folder

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates",
)  # fmt: skip
_OTHERS = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "labels.json")


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a merge did. ``method``: "streamed", or "peft" where only PEFT can; ``dtype``: of most weights.

    ``touched``, ``copied``, ``added``: tensors; ``dropped``: the names of those that the model has no more.
    """

    method: str
    dtype: str
    touched: int
    copied: int
    added: int
    dropped: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    seconds: float
    base_sha256: str


def merge_streamed(
    base: Path,
    updates: Mapping[str, Update] | Changes,
    out: Path,
    *,
    extra: Sequence[Path] = (),
    shard_bytes: int | None = None,
    base_sha256: str | None = None,
    check: bool = True,
) -> Streamed:
    """Writes the model in ``base`` with ``updates`` into the folder ``out``, whole or not at all.

    ``extra``: folders whose tokenizer, label names and generation settings go before the base's, the first first;
    ``shard_bytes``: of a file, by default as large as the base's; ``base_sha256``: what the base's weights must be;
    ``check``: read the result back and compare all of its tensors (``verify.check_merged``).

    Raises DataError where the base is damaged or another, or where nothing would change; MachineError where there is
    no room, NotProved where what is read back is not what was meant.
    """
    started = time.perf_counter()
    changes = updates if isinstance(updates, Changes) else Changes(dict(updates))
    stored = read_index(base)
    layout = planned(stored, changes)
    check_space(out, sum(tensor.header.nbytes for tensor in layout))
    with writing_folder(out) as folder, one_thread():
        reading = _Reading()
        headers = [tensor.header for tensor in layout]
        with reading.beside, Shards(folder, headers, shard_bytes or _limit(stored)) as shards:
            for tensor in layout:
                shards.write(tensor.header.name, reading.blocks(tensor))
        found = reading.base_sha256(base, stored, changes)
        if base_sha256 not in (None, found):
            fix = f"SHA-256 {found[:12]}, and the adapter was trained on {str(base_sha256)[:12]}. Name that base."
            raise DataError(f"{base} is another base", [Problem("", "--base", fix)])
        if not reading.changed:
            fix = "In the base's number format no value becomes another. Train the adapter, or name another."
            raise DataError("the adapter changes nothing", [Problem("", "adapter", fix)])
        complete(folder, base, extra, changes)
        if check:
            check_merged(base, changes, folder)
        written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Streamed(
        method="streamed",
        dtype=main_dtype(stored),
        touched=sum(tensor.source is not None and tensor.update is not None for tensor in layout),
        copied=sum(tensor.update is None for tensor in layout),
        added=sum(tensor.source is None for tensor in layout),
        dropped=changes.dropped,
        bytes_read=sum(tensor.nbytes for tensor in stored.values()),
        bytes_written=written,
        seconds=round(time.perf_counter() - started, 3),
        base_sha256=found,
    )


def _limit(stored: Mapping[str, Stored]) -> int:
    """Bytes of a file: as in the largest of the base's; all in one where the base is."""
    files: dict[Path, int] = {}
    for tensor in stored.values():
        files[tensor.file] = files.get(tensor.file, 0) + tensor.nbytes
    return max(files.values()) if len(files) > 1 else 2**62


class _Reading:
    """Reads a base once, from its first byte to its last, and hashes what it reads in ``beside``."""

    def __init__(self) -> None:
        self.changed = False
        self.beside = Beside()
        self._digests: dict[Path, hashlib._Hash] = {}

    def blocks(self, tensor: Planned) -> Iterator[memoryview]:
        """The bytes of a tensor of the result, in blocks of which each is valid until the next."""
        if tensor.update is None:
            assert tensor.source is not None
            for block in tensor.source.blocks():
                self._hash(tensor.source, block)
                yield block
            return
        for old, new in computed(tensor, self._hash):
            self.changed = self.changed or old is None or bytes(old) != bytes(new)
            yield new

    def base_sha256(self, base: Path, stored: Mapping[str, Stored], changes: Changes) -> str:
        """One hash over the base's weights, as ``BaseFiles.sha256`` makes it."""
        skipped = {stored[name].file for name in changes.dropped}
        found = {}
        for path in sorted(base.glob("*.safetensors")):
            whole = path in self._digests and path not in skipped
            found[path.name] = self._digests[path].hexdigest() if whole else sha256_file(path)
        if len(found) == 1:
            return next(iter(found.values()))
        return sha256_text("".join(f"{name}\n{digest}\n" for name, digest in found.items()))

    def _hash(self, source: Stored, block: memoryview) -> None:
        if source.file not in self._digests:
            with source.file.open("rb") as file:
                length = file.read(8)
                self._digests[source.file] = hashlib.sha256(length + file.read(int.from_bytes(length, "little")))
        self.beside.run(partial(self._digests[source.file].update, block))


def complete(folder: Path, base: Path, extra: Sequence[Path], changes: Changes) -> None:
    """Puts beside the weights what a model needs: configuration, tokenizer, label names, and code where it has some."""
    if changes.config is None:
        shutil.copyfile(base / "config.json", folder / "config.json")
    else:
        write_json(folder / "config.json", changes.config)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sources = [*extra, base]
    # The files of one tokenizer belong together: those of two are never mixed.
    tokenizer = next((place for place in sources if any((place / name).exists() for name in _TOKENIZER[:2])), base)
    for name in _TOKENIZER:
        _copy(tokenizer / name, folder)
    for name in _OTHERS:
        place = next((place for place in sources if (place / name).exists()), None)
        if place is not None:
            _copy(place / name, folder)
    if config.get("auto_map"):
        for path in base.glob("*.py"):
            _copy(path, folder)


def _copy(path: Path, folder: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, folder / path.name)
    elif path.exists():
        shutil.copyfile(path, folder / path.name)
