"""What the benchmarks of language models share: the machine in words, one run of a plain script, one of ftkit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Trained:
    """What one training took: ``speed`` in tokens a second, ``memory`` in MiB (of the GPU, where there is one)."""

    speed: float
    memory: int
    tokens: int


def machine() -> str:
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores{gpu}{busy}"


def base_folder(base: str) -> Path:
    from ftkit.models.locate import locate

    return locate(base, Path.cwd(), weights=True).folder


def plain(script: str, base: Path, train: Path, out: Path, options: Mapping[str, object]) -> Trained:
    """A plain script on the rows of ``train``; its adapter stands in ``out``.

    What datasets made of the rows in an earlier run is not used again: ftkit prepares its rows within the run too.
    """
    command = [sys.executable, str(HERE / script), str(base), str(train), str(out)]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**ENVIRONMENT, "HF_DATASETS_CACHE": str(out.with_name(f"{out.name}-cache"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    return _trained(found["tokens"] / found["seconds"], found)


def ours(recipe: Path, out: Path) -> Trained:
    """``ftkit run`` of a recipe; the run stands in ``out``, its cache beside it."""
    environment = {**ENVIRONMENT, "FTKIT_CACHE": str(out.parent / "cache")}
    command = [sys.executable, "-m", "ftkit", "run", str(recipe), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads((out / "train.json").read_text("utf-8"))
    return _trained(found["tokens_per_s"], found)


def _trained(speed: float, found: Mapping[str, Any]) -> Trained:
    return Trained(speed, found["peak_gpu_mb"] or found["peak_rss_mb"], int(found["tokens"]))


def shown(seed: int, theirs: Trained, mine: Trained, losses: Mapping[str, float]) -> str:
    """One line for a seed; ``losses`` in nats a token of base, plain and ftkit."""
    return (
        f"seed {seed}: tokens/s plain {theirs.speed:,.0f}, ftkit {mine.speed:,.0f}, "
        f"ratio {mine.speed / theirs.speed:.2f}; peak memory {theirs.memory:,} and {mine.memory:,} MiB; test loss "
        f"base {losses['base']:.4f}, plain {losses['plain']:.4f}, ftkit {losses['ftkit']:.4f}; "
        f"tokens {theirs.tokens:,} and {mine.tokens:,}"
    )
