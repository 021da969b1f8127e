"""A merge by PEFT, with the whole model in memory: for methods whose update is known to PEFT alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, Problem
from ftkit.export.adapter import AdapterFiles
from ftkit.export.blocks import main_dtype
from ftkit.export.stream import Streamed, complete
from ftkit.export.tensors import check_space, read_index
from ftkit.export.tree import tree_of
from ftkit.export.updates import Changes
from ftkit.files import read_json, sha256_file, sha256_files, writing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_by_peft(
    adapter: AdapterFiles, base: Path, out: Path, *, extra: Sequence[Path] = (), base_sha256: str | None = None
) -> Streamed:
    """Writes base and adapter, merged by PEFT in the base's number format, into the folder ``out``.

    ``extra`` and ``base_sha256`` as for ``merge_streamed``. Raises DataError for an adapter that PEFT cannot load on
    the base as a whole, or cannot merge.
    """
    started = time.perf_counter()
    stored = read_index(base)
    weights = sorted(base.glob("*.safetensors"))
    found = sha256_file(weights[0]) if len(weights) == 1 else sha256_files(weights)
    if base_sha256 not in (None, found):
        fix = f"SHA-256 {found[:12]}, and the adapter was trained on {str(base_sha256)[:12]}. Name that base."
        raise DataError(f"{base} is another base", [Problem("", "--base", fix)])
    check_space(out, sum(tensor.nbytes for tensor in stored.values()))
    bare = tree_of(adapter, base, stored, adapter.tensors).model
    merged = _merged(adapter, type(bare).from_pretrained(base, config=bare.config, dtype="auto"))
    with writing_folder(out) as folder:
        merged.save_pretrained(folder)
        complete(folder, base, extra, Changes({}, config=read_json(folder / "config.json")))
        written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Streamed(
        method="peft",
        dtype=main_dtype(stored),
        touched=0,
        copied=0,
        added=0,
        dropped=(),
        bytes_read=sum(tensor.nbytes for tensor in stored.values()),
        bytes_written=written,
        seconds=round(time.perf_counter() - started, 3),
        base_sha256=found,
    )


def _merged(adapter: AdapterFiles, base: PreTrainedModel) -> Any:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    headline = f"{adapter.folder} cannot be merged"
    if PeftConfig.from_pretrained(adapter.folder).is_prompt_learning:
        fix = "It changes what the model is given, not its weights. Use it with PEFT on its base."
        raise DataError(headline, [Problem("", str(adapter.config["peft_type"]), fix)])
    try:
        model = PeftModel.from_pretrained(base, adapter.folder)
        names = {name.removeprefix("base_model.model.") for name in get_peft_model_state_dict(model)}
        if names != set(adapter.tensors):
            first = sorted(names ^ set(adapter.tensors))[0]
            fix = f"{first} is in one of the two only. Name the base that it was trained on."
            raise DataError(f"{adapter.folder} does not fit the base", [Problem("", "--base", fix)])
        return model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        fix = f"{reason} Use it with PEFT on its base."
        raise DataError(headline, [Problem("", str(adapter.config["peft_type"]), fix)]) from error
