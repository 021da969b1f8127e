"""What a run has trained, loaded from its folder as it is used: the merged model, or its base with the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from ftkit.errors import Problem, RecipeError
from ftkit.files import read_json
from ftkit.models.adapters import Adapter
from ftkit.models.base import Loaded, inference_mode, load_adaptable, load_language_model, with_saved_adapter
from ftkit.models.fingerprint import check_base
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.models.placement import placement_of
from ftkit.rundir import RunDir

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Trained:
    """A run's plan.json, and the folder with what it trained: merged/, adapter/, or model/ for one from scratch."""

    run: RunDir
    folder: Path
    plan: dict[str, Any]

    @property
    def name(self) -> str:
        """What eval.json calls the model."""
        return self.folder.name

    @property
    def own(self) -> BaseFiles:
        """The folder as files of a model: its tokenizer is the one that was trained with."""
        return BaseFiles(str(self.folder), "folder", self.folder, None)

    @property
    def trusted(self) -> bool:
        return bool(self.plan["recipe"]["base"].get("trust_remote_code", False))

    @property
    def adapter(self) -> Adapter | None:
        adapter: Adapter | None = self.section("adapter", Adapter | None)
        return adapter

    @property
    def quantised(self) -> bool:
        """Whether it is used as it was measured, on a base in 4 bits: a merged model is in full precision."""
        return self.folder == self.run.adapter and self.adapter is not None and self.adapter.quantize is not None

    def section(self, name: str, kind: Any) -> Any:
        """A section of the run's recipe as the object that it was."""
        return TypeAdapter(kind).validate_json(json.dumps(self.plan["recipe"][name]))

    def base(self) -> BaseFiles:
        """The files of the run's base.

        Raises MachineError where it is not to be had, DataError where its weights are not those that were trained on.
        """
        files = locate(base_address(self.plan["base"]), Path.cwd(), weights=True)
        check_base(self.run.adapter, files)
        return files

    def model(self, load: Callable[[BaseFiles, bool], Loaded], machine: Machine) -> PreTrainedModel:
        """The trained model on the machine's device, as eval.json has it; ``load``: a whole one, in 4 bits or not."""
        if self.folder == self.run.adapter:
            model = with_saved_adapter(load(self.base(), self.quantised).model, self.folder)
        else:
            model = load(self.own, False).model
        if not placement_of(model).spread:
            model.to(machine.device)
        inference_mode(model)
        return model

    def language_loader(
        self, objective: Literal["causal", "masked"], *, pad_token_id: int, vocab: int, machine: Machine
    ) -> Callable[[BaseFiles, bool], Loaded]:
        """What loads the base or the merged model as the run evaluated it, with room for ``vocab`` tokens."""
        settings: dict[str, Any] = {
            "pad_token_id": pad_token_id,
            # As in the run's evaluation: embeddings of new tokens depend on it.
            "seed": int(self.plan["seed"]) + 1,
            "trust_remote_code": self.trusted,
            "vocab": vocab,
        }
        adapter, precision = self.adapter, self.plan["recipe"]["train"]["precision"]

        def load(files: BaseFiles, quantize: bool) -> Loaded:
            if adapter is None:
                import torch

                return load_language_model(files, objective, dtype=torch.float32, **settings)
            more = {"precision": precision, "machine": machine, "quantize": quantize}
            return load_adaptable(files, objective, adapter, **more, **settings)

        return load


def trained_by(run: RunDir) -> Trained:
    """What a run has trained. Raises RecipeError where that is nothing yet."""
    folder = next((path for path in (run.merged, run.adapter, run.model) if path.is_dir()), None)
    if folder is None:
        fix = f"Train it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} has no trained model", [Problem("", "RUN", fix)])
    return Trained(run, folder, read_json(run.plan))


def base_address(base: dict[str, Any]) -> str:
    """Where the base of plan.json is: its folder, or its hub id at the commit that was trained on."""
    if base["folder"]:
        return str(base["folder"])
    name = str(base["ref"]).partition("@")[0]
    return f"{name}@{base['revision']}" if base["revision"] else str(base["ref"])
