"""A GGUF file read by llama.cpp itself, through llama-cpp-python, and asked as a model of transformers is.

So an export is scored with the arithmetic and at the speed that it has in use: products of quantised numbers, one text
after the other. It is given token ids; its tokenizer and its samplers are not used.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import MachineError, NotProved, Problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_AT_ONCE = 512  # tokens that are read at once, llama.cpp's default
_STEP = 256  # a context has a multiple of so many tokens
_ERROR = 4  # of llama.cpp's levels of messages


def installed() -> bool:
    return find_spec("llama_cpp") is not None


def version() -> str:
    """Of llama-cpp-python; llama.cpp, which is built in, has none of its own."""
    import llama_cpp

    return str(llama_cpp.__version__)


class LlamaCpp:
    """A GGUF file that scores and writes as transformers' decoder would, on the processor.

    What it remembers of a text is held in float32, where llama.cpp's default is float16: what differs from the model
    is then the file's type alone. Raises NotProved where llama.cpp does not read the file.
    """

    def __init__(self, file: Path) -> None:
        import llama_cpp
        import torch
        from transformers import PreTrainedConfig

        self._name = file.name
        self.device = torch.device("cpu")
        self.generation_config: Any = None  # put aside and back by who generates; there is none in the file
        self._said, _ = _log()
        self._said.clear()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # not mapped: the file is renamed while it is in use
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(file), settings)
        if not self._model:
            raise self._not_proved("read it")
        weakref.finalize(self, llama_cpp.llama_model_free, self._model)
        self._vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self.config = PreTrainedConfig(vocab_size=self._vocab)
        self._batch = llama_cpp.llama_batch_init(_AT_ONCE, 0, 1)
        weakref.finalize(self, llama_cpp.llama_batch_free, self._batch)
        self._context: Any = None
        self._free_context: Any = None
        self._size = 0

    def __call__(self, **given: Any) -> Any:
        return self.forward(**given)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> Any:
        """``logits`` [B, P, V] at the last P places, or at those of a tensor, in order; of all of them with 0.

        ``input_ids`` [B, T]; ``attention_mask`` [B, T]: 0 for padding on the left. Nothing is remembered for a later
        call, whatever ``use_cache`` says.
        """
        import torch
        from transformers.modeling_outputs import CausalLMOutput

        width = input_ids.shape[1]
        if isinstance(logits_to_keep, int):
            places = [*range(width)][-logits_to_keep:]
        else:
            places = logits_to_keep.tolist()
        found = []
        for ids, padding in zip(input_ids.tolist(), _padding(input_ids, attention_mask), strict=True):
            found.append(self._logits(ids[padding:], [place - padding for place in places]))
        return CausalLMOutput(logits=torch.stack(found))

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        generation_config: Any,
        stopping_criteria: object,
        prefix_allowed_tokens_fn: None,
    ) -> torch.Tensor:
        """``input_ids`` [B, T] with what is likeliest behind them, token by token, up to a stop token [B, T + N].

        ``stopping_criteria`` are not asked: they end a batch for those of its rows that have ended, and here each row
        goes alone.
        """
        import torch

        stops = set(generation_config.eos_token_id or ())
        answers = []
        for ids, padding in zip(input_ids.tolist(), _padding(input_ids, attention_mask), strict=True):
            answers.append(self._answer(ids[padding:], generation_config.max_new_tokens, stops))
        longest = max(map(len, answers))
        filled = [[*answer, *[generation_config.pad_token_id] * (longest - len(answer))] for answer in answers]
        return torch.cat([input_ids, torch.tensor(filled, dtype=input_ids.dtype).reshape(-1, longest)], dim=1)

    def _answer(self, prompt: list[int], room: int, stops: set[int]) -> list[int]:
        """At most ``room`` tokens; the stop token is the last where one came."""
        self._reserve(len(prompt) + room)
        made = [int(self._logits(prompt, [len(prompt) - 1])[0].argmax())]
        while len(made) < room and made[-1] not in stops:
            made.append(int(self._logits(made[-1:], [0], behind=len(prompt) + len(made) - 1)[0].argmax()))
        return made

    def _logits(self, ids: Sequence[int], places: Sequence[int], *, behind: int = 0) -> torch.Tensor:
        """Logits [P, V] at some places of ``ids``, in rising order. ``behind``: tokens of the text before them."""
        import llama_cpp
        import torch

        if not behind:
            self._reserve(len(ids))
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        found = torch.empty(len(places), self._vocab)
        wanted, done = set(places), 0
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            kept = [start + at in wanted for at in range(len(part))]
            made = self._decode(part, kept, behind + start)
            found[done : done + len(made)] = torch.from_numpy(made)
            done += len(made)
        return found

    def _decode(self, ids: Sequence[int], kept: Sequence[bool], position: int) -> npt.NDArray[np.float32]:
        """Logits of the tokens that are ``kept``, of a part of a text from ``position`` on: valid until the next."""
        import llama_cpp
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(ids)
        for at, (token, keep) in enumerate(zip(ids, kept, strict=True)):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position + at, keep
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise self._not_proved(f"read {len(ids)} tokens from position {position} on")
        if not any(kept):
            return np.empty((0, self._vocab), dtype=np.float32)
        flat = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(sum(kept) * self._vocab,))
        return flat.reshape(-1, self._vocab)

    def _reserve(self, tokens: int) -> None:
        """Room to remember so many. Raises MachineError where there is no memory for it."""
        import llama_cpp
        import torch

        if tokens <= self._size:
            return
        if self._context is not None:
            self._free_context()
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = size = math.ceil(tokens / _STEP) * _STEP
        settings.n_batch = settings.n_ubatch = _AT_ONCE
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            fix = self._failed(f"remember {size} tokens") + "Free memory."
            raise MachineError("there is no room for llama.cpp", [Problem("", "memory", fix)])
        self._free_context = weakref.finalize(self, llama_cpp.llama_free, self._context)
        self._size = size

    def _not_proved(self, what: str) -> NotProved:
        problem = Problem("", self._name, self._failed(what) + "Report this.")
        return NotProved("the export is not shown to be the model", [problem])

    def _failed(self, what: str) -> str:
        """The first of what it said is the cause, the rest who had to do with it."""
        return f"llama.cpp cannot {what}: {self._said[0] if self._said else 'it does not say why'}. "


def _padding(ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """How much of each row [B, T] is padding."""
    if mask is None:
        return [0] * len(ids)
    padding: list[int] = (ids.shape[1] - mask.sum(1)).tolist()
    return padding


@cache
def _log() -> tuple[list[str], Any]:
    """What llama.cpp says of its failures from now on: nothing that it says goes to the terminal any more.

    And the function that it tells, which it does not keep itself.
    """
    import llama_cpp

    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            said.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(keep, None)
    llama_cpp.llama_backend_init()
    return said, keep
