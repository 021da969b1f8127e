"""An adapter in PEFT's format as files: its configuration, and which of its tensors belong to which module.

Nothing is loaded: tensors are known by their headers, and read when a merge comes to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit.errors import DataError, Problem
from ftkit.export.tensors import Stored, read_headers
from ftkit.files import read_json, sha256_files
from ftkit.models.fingerprint import read_fingerprint

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What peft calls the tensors of a module. ``whole`` ones (heads, biases) are stored under their own names.
_OWN = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|ia3_l|token_adapter\.trainable_tokens_delta)(?:(?<=vector)\.weight)?"
)
# A module that is trained whole, in its wrapper.
_WRAPPED = re.compile(r"\.modules_to_save\.(default\.)?")
# Starts that change the base itself: their factors are an update of what is left of it.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga")
# Switches of LoraConfig under which the update is another one than scale * B A.
_OTHER_UPDATES = (
    "use_qalora", "alora_invocation_tokens", "velora_config", "monteclora_config", "use_bdlora", "arrow_config",
    "kasa_config", "layer_replication", "megatron_config",
)  # fmt: skip


class NoStreamedForm(Exception):
    """What PEFT merges, and this package cannot merge tensor by tensor; the text says what it is."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on disk: ``tensors`` by the names of the model's modules, without PEFT's own prefix."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    sha256: str

    @property
    def type(self) -> str:
        """PEFT's name of the method, in small letters: lora, ia3, ..."""
        return str(self.config.get("peft_type", "")).lower()


@dataclass(frozen=True, slots=True)
class Modules:
    """The tensors of an adapter by what they are for.

    ``adapted``: of each module that has an update, its tensors by PEFT's name (lora_A.weight, ia3_l, ...); ``whole``:
    those that take the place of a tensor of the model, by that tensor's name.
    """

    adapted: dict[str, dict[str, Stored]] = field(default_factory=dict)
    whole: dict[str, Stored] = field(default_factory=dict)


def read_adapter(folder: Path) -> AdapterFiles:
    """The adapter in ``folder``. Raises DataError where it is not there, damaged, or has pickled weights only."""
    path, weights = folder / _CONFIG, folder / _WEIGHTS
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = f"It has no {_CONFIG}. Name a folder that PEFT saved an adapter into."
        raise DataError(f"{folder} is no adapter", [Problem("", "adapter", fix)]) from None
    except ValueError:
        config = None
    if not isinstance(config, dict) or not config.get("peft_type"):
        raise DataError(f"{path} cannot be read", [Problem("", "adapter", "Fetch or save the adapter again.")])
    if not weights.is_file():
        fix = f"It has no {_WEIGHTS}. Fetch or save the adapter again."
        if (folder / "adapter_model.bin").exists():
            fix = "It has pickled weights (.bin) only, which can run code. Save it anew with peft's save_pretrained."
        raise DataError(f"{folder} has no safetensors weights", [Problem("", "adapter", fix)])
    found = {stored.name.removeprefix(_PREFIX): stored for stored in read_headers(weights)}
    return AdapterFiles(folder, config, found, sha256_files([weights]))


def check_start(adapter: AdapterFiles) -> None:
    """Raises DataError for an adapter that belongs to other weights than those of its base on disk."""
    start = str(adapter.config.get("init_lora_weights", "")).lower()
    if "loftq" in (start, _started_from(adapter.folder)):
        fix = (
            "LoftQ's update holds what quantising the base lost, so it belongs to the quantised base, not to the one "
            "on disk. Merge the run that trained it: ftkit merge RUN."
        )
        raise DataError(f"{adapter.folder} cannot be merged into the base", [Problem("", "adapter", fix)])
    if start.startswith(_CHANGED_BASE):
        fix = (
            f"{start} changed the base before training, and the adapter was saved as it is. Save it anew with "
            "model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL)."
        )
        raise DataError(f"{adapter.folder} cannot be merged into the base", [Problem("", "init_lora_weights", fix)])


def _started_from(folder: Path) -> str | None:
    """What a run started an adapter from, which PEFT's own file does not tell of LoftQ.

    It stands in ftkit.json; for those trained before it did, in the plan of the run that they are in.
    """
    noted, plan = read_fingerprint(folder), folder.absolute().parent / "plan.json"
    if noted is not None and noted.init != "default":
        return noted.init
    recipe = read_json(plan).get("recipe", {}) if plan.is_file() else {}
    init: str | None = (recipe.get("adapter") or {}).get("init")
    return init


def modules(adapter: AdapterFiles) -> Modules:
    """Sorts an adapter's tensors. Raises NoStreamedForm for other methods than LoRA and IA3, and some of LoRA's own."""
    if adapter.type not in ("lora", "ia3"):
        raise NoStreamedForm(f"adapters of the type {adapter.config['peft_type']}")
    others = [name for name in _OTHER_UPDATES if adapter.config.get(name)]
    if others:
        raise NoStreamedForm(f"LoRA with {others[0]}")
    found = Modules()
    for name, stored in adapter.tensors.items():
        own = _OWN.fullmatch(name)
        if own:
            found.adapted.setdefault(own["module"], {})[own["kind"]] = stored
        elif "lora_" in name.rpartition(".")[2]:
            raise NoStreamedForm(f"tensors called {name}")
        elif ".original_module." not in name:
            # With all biases, PEFT saves those of a module trained whole again, under the name of its wrapper.
            plain = _WRAPPED.sub(".", name).replace(".base_layer.", ".")
            if plain == name or plain not in adapter.tensors:
                found.whole[plain] = stored
    return found


def scale(config: Mapping[str, Any], module: str) -> float:
    """What LoRA's product B A is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA, with the patterns' values."""
    r = rank(config, module)
    alpha = float(_by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    return alpha / r**0.5 if config.get("use_rslora") else alpha / r


def rank(config: Mapping[str, Any], module: str) -> int:
    return int(_by_pattern(config.get("rank_pattern") or {}, module, config["r"]))


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of a module's name, from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
