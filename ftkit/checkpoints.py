"""What a training leaves on disk while it runs: the best weights so far, and where to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.files import sha256_files, writing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(model: PreTrainedModel, folder: Path, *, initial: Path | None) -> None:
    """Writes an adapter as plain PEFT, or a whole model.

    ``initial``: a PiSSA adapter as it was at the start, against which it is saved as a plain LoRA of twice the rank.
    """
    with writing_folder(folder) as fresh:
        if initial is not None:
            model.save_pretrained(fresh, path_initial_model_for_weight_conversion=str(initial))
            _add_head(model, fresh / "adapter_model.safetensors")
        else:
            model.save_pretrained(fresh)
        (fresh / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run has one of its own


def weights_sha256(folder: Path) -> str:
    """One SHA-256 over the weights in a folder: which checkpoint it is."""
    return sha256_files(sorted(folder.glob("*.safetensors")))


def last(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; trainer_state.json is the last file of each."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _add_head(model: PreTrainedModel, file: Path) -> None:
    """Puts the head's weights beside the converted updates: peft 0.21's conversion keeps the updates alone."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for name, weight in get_peft_model_state_dict(model).items():
        if "lora_" not in name:
            weights.setdefault(name, weight.detach().cpu().contiguous())
    save_file(weights, file, metadata={"format": "pt"})
