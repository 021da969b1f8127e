"""GGUF, the file that llama.cpp and Ollama read: a model with its tokenizer and chat template, or a LoRA adapter alone.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Written and read with the ``gguf`` package.
"""

from ftkit.export.gguf.check import check_gguf
from ftkit.export.gguf.lora import write_lora_gguf
from ftkit.export.gguf.write import write_gguf

__all__ = ["check_gguf", "write_gguf", "write_lora_gguf"]
