"""The types of GGUF that llama.cpp alone makes of a file: by its program llama-quantize, or by its library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ftkit.errors import MachineError, Problem

PROGRAM = "llama-quantize"
QUANTISED = (
    "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K",
)  # fmt: skip
# llama.cpp ends the process it is in where a check of its own fails, so the library gets one to itself.
_BY_LIBRARY = "import sys; from ftkit.export.gguf.quantise import by_library; sys.exit(by_library(*sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Quantiser:
    """``command``: what is called with source, output and type; ``name``: what messages call it."""

    command: tuple[str, ...]
    name: str

    def run(self, source: Path, kind: str) -> Path:
        """A file in ``kind`` beside ``source``. Raises MachineError, with what llama.cpp said, where it fails."""
        made = source.with_name("quantised.gguf")
        command = [*self.command, str(source), str(made), kind]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not made.is_file():
            last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            fix = f"It ended with {done.returncode}: {last} Try it by hand, or write Q8_0."
            raise MachineError(f"{self.name} failed", [Problem("", "type", fix)])
        return made


def quantiser(kind: str) -> Quantiser:
    """The program where it is on the PATH, else the library. Raises MachineError where there is neither."""
    program = shutil.which(PROGRAM)
    if program is not None:
        return Quantiser((program,), PROGRAM)
    if find_spec("llama_cpp") is not None:
        return Quantiser((sys.executable, "-c", _BY_LIBRARY), "llama-cpp-python")
    fix = (
        f"{kind} is made by llama.cpp. Run pip install 'ftkit[llama]', or put its program {PROGRAM} on the PATH (brew "
        "install llama.cpp, or github.com/ggml-org/llama.cpp/releases), or write Q8_0."
    )
    raise MachineError(f"there is no {PROGRAM}", [Problem("", "type", fix)])


def by_library(source: str, out: str, kind: str) -> int:
    """Writes the file in ``kind`` with llama.cpp in this process, which it logs to; 0 where it went well."""
    import ctypes

    import llama_cpp

    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    return int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(settings)))
