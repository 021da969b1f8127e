"""The formats around GGUF: the file alone, with a Modelfile for Ollama, and the adapter alone for llama.cpp."""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ftkit.export import llama_cpp
from ftkit.export.source import Needs, Source, short

FILE = "model.gguf"
ADAPTER_FILE = "adapter.gguf"
_FLOATS = ("f32", "f16", "bf16")
# Beside q8_0, those that llama.cpp makes. Named anew: the writer's module is not loaded to read a recipe.
_QUANTISED = (
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "q3_k_l", "q3_k_m",
    "q3_k_s", "q2_k",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gguf:
    """model.gguf, with tokenizer and chat template inside."""

    name: str = "gguf"
    types: tuple[str, ...] = (*_FLOATS, *_QUANTISED)
    needs: Needs = "decoder"

    @property
    def reader(self) -> str:
        return f"llama.cpp {llama_cpp.version()}" if llama_cpp.installed() else "transformers"

    def left_out(self, source: Source) -> str:
        return short(source.stored)

    def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
        from ftkit.export.gguf import check_gguf, write_gguf

        written = write_gguf(source.model, folder / FILE, kind.upper())
        return {**check_gguf(source.model, folder / FILE), **written}

    def read(self, folder: Path, source: Source) -> Any:
        """By llama.cpp where it is installed, else by transformers, which writes quantised weights out in float32.

        For transformers the weights are the file's and the configuration is the model's: 5.23 does not read all that a
        file says of it (scaled ropes, widths of heads, GPT-2's positions), which ``check_gguf`` has compared.
        """
        if llama_cpp.installed():
            return llama_cpp.LlamaCpp(folder / FILE)
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(source.model)
        with redirect_stderr(StringIO()):  # its progress bar has no switch
            return AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=FILE, config=config, dtype=torch.float32
            ).eval()


@dataclass(frozen=True, slots=True)
class Ollama(Gguf):
    """model.gguf and a Modelfile with the trained template and stop words: ``ollama create NAME -f Modelfile``."""

    name: str = "ollama"

    def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
        from ftkit.export.ollama import write_modelfile

        found = Gguf.write(self, source, folder, kind)
        made = write_modelfile(source.model, folder / FILE, folder / "Modelfile")
        return {**found, **made, "notes": [*found["notes"], *made["notes"]]}


@dataclass(frozen=True, slots=True)
class LoraGguf:
    """adapter.gguf: the adapter alone, for llama.cpp's --lora beside the base's own GGUF file."""

    name: str = "lora-gguf"
    types: tuple[str, ...] = _FLOATS
    needs: Needs = "adapter"
    reader: str = ""

    def left_out(self, source: Source) -> str:
        return "f32"

    def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
        from ftkit.export.gguf import write_lora_gguf

        assert source.adapter is not None
        assert source.base is not None  # what the format needs
        return write_lora_gguf(source.adapter, source.base, folder / ADAPTER_FILE, kind.upper())

    def read(self, folder: Path, source: Source) -> None:
        return None
