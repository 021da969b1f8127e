"""What a training leaves on disk while it runs: the best weights so far, and where to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import NotProved, Problem
from ftkit.files import read_json, sha256_files, write_json, writing_folder
from ftkit.models.placement import placement_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Checkpoints:
    """Of one training: the best weights so far, and ``product``, the folder that they become in the end.

    ``lowest``: whether less is better. ``converted``: PiSSA, saved as the plain LoRA of twice the rank. ``best`` holds
    the step, value and SHA-256 of the best weights; it is empty until a validation.
    """

    def __init__(self, folder: Path, product: Path, *, lowest: bool, converted: bool) -> None:
        self.folder, self.product = folder, product
        self.lowest = lowest
        self.initial = folder / "initial" if converted else None
        self.best: dict[str, Any] = {}
        self._weights, self._note = folder / "best", folder / "best.json"

    def resume(self) -> Path | None:
        """The checkpoint to go on from; None to begin anew, with nothing left of what was begun."""
        found = last(self.folder)
        if found is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.product, ignore_errors=True)
        elif self.product.exists():  # killed at the end, before the training was noted as done
            self.product.replace(self._weights)
        if self._note.exists():
            noted = read_json(self._note)
            # A later step comes again: what it was worth was lost with its checkpoint.
            self.best = noted if noted["step"] <= step_of(found) else {}
        return found

    def keep_best(self, model: PreTrainedModel, step: int, value: float) -> bool:
        """Keeps the model where it is the best so far; returns whether it is."""
        before = self.best.get("value")
        better: bool = before is None or (value < before if self.lowest else value > before)
        if better:
            save(model, self._weights, initial=self.initial)
            self.best = {"step": step, "value": value, "sha256": weights_sha256(self._weights)}
            write_json(self._note, self.best)
        return better

    def deliver(self, model: PreTrainedModel) -> None:
        """Puts the best weights, or where none was ever validated those of ``model``, into ``product``.

        Raises NotProved where they are not those that were validated.
        """
        if not self._weights.exists():
            save(model, self._weights, initial=self.initial)
        if self.best and self.best["sha256"] != weights_sha256(self._weights):
            fix = "Its weights are not those that were scored. Train again."
            raise NotProved("the best checkpoint was changed on disk", [Problem("", str(self._weights), fix)])
        self._weights.replace(self.product)


# By which a validation loss may differ between training and a load from disk, in nats: PiSSA trains on what is left of
# the base without its principal part, which bfloat16 rounds otherwise than the base.
_RELOADED, _RELOADED_ROUNDED = 1e-3, 1e-2
# Of embeddings that have grown the new rows are saved with the adapter. PEFT would add the whole matrices to them.
_ALONE = {"save_embedding_layers": False}


def save(model: PreTrainedModel, folder: Path, *, initial: Path | None) -> None:
    """Writes an adapter as plain PEFT, or a whole model.

    ``initial``: a PiSSA adapter as it was at the start, against which it is saved as a plain LoRA of twice the rank.
    """
    from peft import PeftModel

    with writing_folder(folder) as fresh:
        if isinstance(model, PeftModel):
            _save_adapter(model, fresh, initial)
        else:
            model.save_pretrained(fresh)
        (fresh / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run has one of its own


def save_start(model: PeftModel, folder: Path) -> None:
    """Writes an untrained PiSSA adapter, for ``initial`` of ``save``, unless a training that goes on has it already."""
    model.peft_config["default"].init_lora_weights = True
    if not folder.exists():
        model.save_pretrained(folder, **_ALONE)


def forget_base(model: PeftModel) -> None:
    """Leaves the base's name out of the adapter's configuration, but where ``save`` writes it.

    With it PEFT looks at each of the Trainer's own checkpoints whether the base on disk, or on the hub, has as many
    tokens, and where it has fewer adds the whole embeddings, of which the new rows are there already.
    """
    model.peft_config["default"].base_model_name_or_path = ""


def _save_adapter(model: PeftModel, folder: Path, initial: Path | None) -> None:
    forget_base(model)
    if initial is None:
        model.save_pretrained(folder, **_ALONE)
    else:
        import torch

        # PEFT loads the initial adapter into a new one that it first fills with random numbers: the training that goes
        # on must not draw others for it.
        with torch.random.fork_rng():
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial), **_ALONE)
        _add_head(model, folder / "adapter_model.safetensors")
    file = folder / "adapter_config.json"
    write_json(file, {**read_json(file), "base_model_name_or_path": model.get_base_model().name_or_path})


def check_reloaded(model: PreTrainedModel, folder: Path, figure: str, before: float, now: float) -> None:
    """Raises NotProved where ``model``, loaded from ``folder``, has another validation loss than in training."""
    if abs(before - now) > (_RELOADED if placement_of(model).dtype == "float32" else _RELOADED_ROUNDED):
        message = f"its validation {figure} was {before:.5f} in training and is {now:.5f} from disk. Report this."
        raise NotProved(f"the {folder.name} on disk is not the trained one", [Problem("", str(folder), message)])


def weights_sha256(folder: Path) -> str:
    """One SHA-256 over the weights in a folder: which checkpoint it is."""
    return sha256_files(sorted(folder.glob("*.safetensors")))


def last(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; trainer_state.json is the last file of each."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _add_head(model: PeftModel, file: Path) -> None:
    """Puts the head's weights beside the converted updates: peft 0.21's conversion keeps the updates alone."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for name, weight in get_peft_model_state_dict(model).items():
        if "lora_" not in name:
            weights.setdefault(name, weight.detach().cpu().contiguous())
    save_file(weights, file, metadata={"format": "pt"})
