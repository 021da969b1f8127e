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

# Shapes that are others than the base's, in PyTorch's words, and modules that have no update, in PEFT's.
_MISFITS = ("Error(s) in loading state_dict", "Target module of type")
_UNMERGED = "Use it with PEFT on its base."


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
    """What PEFT's own checks refuse is told; whatever else it raises is a bug, its or ours, and shows as one."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, __version__, get_peft_model_state_dict

    if adapter.config["peft_type"] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise _refused(adapter, f"PEFT {__version__} does not know it. Merge it with the PEFT that saved it.")
    if adapter.config.get("layer_replication"):
        raise _refused(adapter, f"Its replicated layers share their weights. {_UNMERGED}")
    try:
        if PeftConfig.from_pretrained(adapter.folder).is_prompt_learning:
            raise _refused(adapter, f"It changes what the model is given, not its weights. {_UNMERGED}")
        model = PeftModel.from_pretrained(base, adapter.folder)
    except ValueError as error:
        raise _refused(adapter, f"{_reason(error)} {_UNMERGED}") from error
    except (RuntimeError, TypeError) as error:
        if not str(error).startswith(_MISFITS):
            raise
        raise _refused(adapter, "It does not fit the base's modules. Name the base that it was trained on.") from error
    names = {name.removeprefix("base_model.model.") for name in get_peft_model_state_dict(model)}
    if names != set(adapter.tensors):
        first = sorted(names ^ set(adapter.tensors))[0]
        fix = f"{first} is in one of the two only. Name the base that it was trained on."
        raise DataError(f"{adapter.folder} does not fit the base", [Problem("", "--base", fix)])
    if not hasattr(model, "merge_and_unload"):
        raise _refused(adapter, f"PEFT has no merge for it. {_UNMERGED}")
    try:
        return model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        reason = _reason(error) or "PEFT has no merge for it."
        raise _refused(adapter, f"{reason} {_UNMERGED}") from error


def _refused(adapter: AdapterFiles, fix: str) -> DataError:
    return DataError(f"{adapter.folder} cannot be merged", [Problem("", str(adapter.config["peft_type"]), fix)])


def _reason(error: Exception) -> str:
    """The first line of what PEFT says, as a sentence; empty where it says nothing."""
    found = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{found}." if found and not found.endswith(".") else found
