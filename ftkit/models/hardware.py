"""What this machine has, and the settings that have to stand before torch is imported, and before it computes."""

from __future__ import annotations

import atexit
import gc
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Spins of libgomp before a thread sleeps. Waking one took 65 us on an Intel Xeon, where a spin is 11 ns: training a toy
# Llama made 6,000 tokens a second with 1,000, 10,700 with 3,000, 12,200 with 20,000 and with the library's own 300,000;
# with another program on one of two cores 4,700, 3,500, 1,700 and 600. An AMD EPYC made 13,100 to 13,500 with 1,000,
# 3,000 and 300,000 (2026-11-26).
_SPINS = "20000"
# Products that oneDNN keeps compiled, each with working memory of its own; 1,024 by itself. recipes/sentiment.yaml
# trained with 2,250 MiB and 1,024 of them, with 1,910 and 128, at the same speed. Of 64 and 128, in turn: sentiment
# 1,720 and 1,753 MiB at 4,460 and 4,280 tokens a second, questions 1,103 and 1,136 at 6,470 and 6,960 (2 cores,
# bfloat16, 2026-11-26); with 32 a small Llama lost a tenth of its speed.
_COMPILED = "64"
_NARROW = 128  # hidden states less wide are those of a small model
# Width from which a processor gains by bfloat16. A small Llama, tokens a second in
# float32 and bfloat16, on an EPYC: 64 wide 16,700 and 11,400, 128 wide 10,000 and 11,700, 256 wide 5,800 and 7,800; on
# a Xeon with AMX: 128 wide 7,380 and 4,480, 256 wide 3,940 and 3,320, 384 wide 2,720 and 2,610 (MiniLM, as wide: 2,350
# and 2,580), 512 wide 2,160 and 2,220, 768 wide 1,300 and 1,640 (2 cores, 2026-11-26).
_HALVED_FROM, _HALVED_FROM_ON_AMD = 384, 128


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as a run sees it. ``bfloat16``: the device multiplies matrices in bfloat16 by itself."""

    cpu: str
    cores: int
    threads: int
    memory_gb: float
    gpu: str | None
    gpu_memory_gb: float | None
    bfloat16: bool

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    @property
    def halves(self) -> bool:
        """Whether decoders are held, and scored, in bfloat16: in float32 few would fit on a GPU beside anything."""
        return self.gpu is not None


def available_cores() -> int:
    """The cores that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_cores() -> int:
    """How many of the available cores others leave free just now (a tenth of a second is watched); at least 1."""
    import psutil

    cores = available_cores()
    busy = psutil.cpu_percent(interval=0.1) / 100 * (os.cpu_count() or 1)
    return max(1, cores - int(busy + 0.25))


def settle_environment() -> None:
    """Sets what must stand before torch is imported; a value that the user has set stays.

    OpenMP threads that spin at barriers ruin small steps as soon as another program wants a core, so they wait
    passively; while nothing else runs they spin for some microseconds first, as waking them takes longer than many of a
    small model's steps do. Telemetry of the libraries is off. CUDA memory grows in segments, against fragmentation.
    Of several GPUs the first is used: the Trainer would copy the model to all of them and cut each batch, which neither
    a base in 4 bits nor rows that share a window bear.
    Importing the libraries makes millions of lasting objects, which the garbage collector walks again and again: it is
    asked less often, and not when the process ends (importing torch, transformers, peft and evaluate took 5.8 s, then
    3.5 s).
    """
    free = free_cores()
    gc.set_threshold(100_000, 20, 100)
    atexit.register(gc.freeze)
    defaults = {
        "OMP_WAIT_POLICY": "PASSIVE",
        **({"GOMP_SPINCOUNT": _SPINS} if free == available_cores() else {}),
        "OMP_NUM_THREADS": str(free),
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": _COMPILED,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def flush_subnormals() -> None:
    """From here on numbers closer to 0 than a format's smallest normal one (1.2e-38 in float32) are 0.

    A trained model's attention is full of such probabilities, and Intel's processors take many times as long for each.
    Threads take this over from the one that starts them, so it must stand before torch starts any; it is for the whole
    process, Python's own numbers included. Where a processor has no such setting, nothing changes.
    """
    import torch

    torch.set_flush_denormal(True)


def settle_machine() -> Machine:
    """Sets what must stand once torch is imported (subnormal numbers are 0), and says what the machine has."""
    import psutil
    import torch

    flush_subnormals()
    gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if gpu else None
    return Machine(
        cpu=_cpu_name(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=properties.name if properties else None,
        gpu_memory_gb=round(properties.total_memory / 2**30, 1) if properties else None,
        bfloat16=torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_has_bfloat16(),
    )


def is_narrow(width: int | None) -> bool:
    """Whether hidden states so wide are those of a small model, which is less work than the bookkeeping around it."""
    return width is not None and width < _NARROW


def training_dtype(precision: str, machine: Machine, width: int | None) -> torch.dtype:
    """The number format of training: ``auto`` is bfloat16 where the device has it, else float32.

    On a processor a model that is less than 128 wide (384 where it is not AMD's) stays in float32. ``width``: of its
    hidden states, if known.
    """
    import torch

    if precision == "auto":
        least = _HALVED_FROM_ON_AMD if "AMD" in machine.cpu else _HALVED_FROM
        narrow = machine.device == "cpu" and width is not None and width < least
        return torch.bfloat16 if machine.bfloat16 and not narrow else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def peak_rss_mb() -> int:
    """The most memory that this process has held so far, in MiB."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset // 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // 2**20 if sys.platform == "darwin" else peak // 2**10)


def peak_gpu_mb() -> int | None:
    """The most GPU memory that torch has reserved so far, in MiB; None without a GPU."""
    import torch

    return int(torch.cuda.max_memory_reserved() // 2**20) if torch.cuda.is_available() else None


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _cpu_name() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def cpu_is_amd() -> bool:
    """Whether the processor is AMD's, for which MKL, torch's library for products, has other code than for Intel's."""
    return "AuthenticAMD" in (_cpuinfo() or platform.processor())


def _cpu_has_bfloat16() -> bool:
    return any(flag in _cpuinfo() for flag in ("avx512_bf16", "amx_bf16"))
