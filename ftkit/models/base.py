"""Loads a base model, with a classification head or as a language model, its tokenizer, and an adapter on top of it.

Everything is loaded through the public classes of transformers and peft; the real module tree decides what is head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import MachineError, Problem, RecipeError
from ftkit.models.locate import BaseFiles

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.models.adapters import Adapter

_BLOCK = 64  # bitsandbytes quantises weights in blocks of this many values


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model in memory. ``head``: the full names of the modules the base's checkpoint lacks, to be trained whole.

    ``revision``: the commit of the base on the hub, where it came from there. ``task_type``: what PEFT calls the task.
    ``lacks_bias``: the checkpoint also lacks a bias in a module that it has otherwise, as that of a tied output.
    """

    model: PreTrainedModel
    head: tuple[str, ...]
    revision: str | None
    task_type: Literal["SEQ_CLS", "CAUSAL_LM"] | None
    lacks_bias: bool = False


def quiet_libraries() -> None:
    """Progress bars and chatter of the libraries off: what matters is said by ftkit."""
    import logging

    import datasets
    import transformers

    # peft imports it in every run, and it tells of kernels that only 4-bit inference would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def load_tokenizer(
    files: BaseFiles, *, max_length: int | None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the right, with a pad token, cutting at ``max_length`` where that is given.

    A tokenizer without a pad token (GPT-2, Llama) pads with its end token: the mask and the pooled position, not the
    token, say what is padding. Raises MachineError where it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise MachineError(
            f"the tokenizer of {files.name} cannot be loaded", [Problem("", "base", f"{_first_line(error)}")]
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise MachineError(
            f"the tokenizer of {files.name} has no pad, end or unknown token",
            [Problem("", "base", "Add a pad_token to its tokenizer_config.json.")],
        )
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if max_length is not None:
        tokenizer.model_max_length = max_length
    return tokenizer


def load_classifier(
    files: BaseFiles,
    labels: Sequence[str],
    *,
    multi_label: bool,
    pad_token_id: int,
    dtype: torch.dtype,
    seed: int,
    trust_remote_code: bool = False,
    skip_quantising: Sequence[str] | None = None,
) -> Loaded:
    """The base with a new head whose random weights depend on ``seed`` alone.

    ``skip_quantising`` not None: the base is quantised to NF4 but for these modules, which must hold the head.
    Raises MachineError where the files are damaged or of a model type without a classification head.
    """
    from transformers import AutoModelForSequenceClassification

    model, lacking = _from_pretrained(
        AutoModelForSequenceClassification,
        files,
        dtype=dtype,
        seed=seed,
        trust_remote_code=trust_remote_code,
        skip_quantising=skip_quantising,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
    )
    _set_pad_token(model, pad_token_id)
    return Loaded(model, _head_modules(model, lacking), files.revision, "SEQ_CLS")


def load_language_model(
    files: BaseFiles,
    objective: Literal["causal", "masked"],
    *,
    pad_token_id: int,
    dtype: torch.dtype,
    seed: int,
    trust_remote_code: bool = False,
    quantize: bool = False,
) -> Loaded:
    """The base as a language model. Where a masked model's checkpoint lacks the head, it is new, by ``seed`` alone.

    ``quantize``: the base is quantised to NF4 but for its head. Raises MachineError where the files are damaged, or of
    a model type or checkpoint that cannot do this.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    model, lacking = _from_pretrained(
        AutoModelForCausalLM if objective == "causal" else AutoModelForMaskedLM,
        files,
        dtype=dtype,
        seed=seed,
        trust_remote_code=trust_remote_code,
        skip_quantising=["lm_head", "cls"] if quantize else None,
    )
    if objective == "causal" and lacking:
        fix = f"It lacks {', '.join(sorted(lacking)[:3])}. Name a base that was trained to predict text."
        raise MachineError(f"{files.name} is no whole language model", [Problem("", "base", fix)])
    _set_pad_token(model, pad_token_id)
    head = _missing_modules(model, lacking)
    lacks_bias = any(name.endswith("bias") and not _is_within(name, head) for name in lacking)
    return Loaded(model, head, files.revision, "CAUSAL_LM" if objective == "causal" else None, lacks_bias)


def _from_pretrained(
    kind: Any,
    files: BaseFiles,
    *,
    dtype: torch.dtype,
    seed: int,
    trust_remote_code: bool,
    skip_quantising: Sequence[str] | None,
    **settings: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of the weights that its checkpoint lacks, which are new and depend on ``seed`` alone."""
    import torch

    files.weights()
    if skip_quantising is not None:
        settings["quantization_config"] = _nf4(list(skip_quantising))
    torch.manual_seed(seed)
    try:
        model, info = kind.from_pretrained(
            files.folder,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **settings,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MachineError(f"{files.name} cannot be loaded", [Problem("", "base", _first_line(error))]) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        fix = "Its weights are damaged. Fetch the model again."
        raise MachineError(f"{files.name} cannot be loaded", [Problem("", "base", f"{error}. {fix}")]) from error
    model.name_or_path = files.address  # PEFT writes it into the adapter's configuration
    return model, [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]


def _set_pad_token(model: PreTrainedModel, pad_token_id: int) -> None:
    model.config.get_text_config().pad_token_id = pad_token_id
    model.config.pad_token_id = pad_token_id


def with_new_adapter(loaded: Loaded, adapter: Adapter) -> PreTrainedModel:
    """Puts a fresh adapter on a base; what its head is gets trained whole. Raises RecipeError where PEFT refuses it."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers.pytorch_utils import Conv1D

    model = loaded.model
    if adapter.quantize:
        _check_blocks(model)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    inside = [name for name, _ in model.named_modules() if _is_within(name, loaded.head)]
    config: PeftConfig = adapter.peft_config(
        loaded.task_type, loaded.head, inside, transposed=transposed, biases=loaded.lacks_bias
    )
    config.revision = loaded.revision
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        fix = "Name the modules to adapt under adapter.targets."
        raise RecipeError(
            "the adapter does not fit the base", [Problem("", "adapter", f"{_first_line(error)} {fix}")]
        ) from error


def with_saved_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The adapter in ``folder`` (plain PEFT) on a base classifier, for inference."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder)


def _head_modules(model: PreTrainedModel, lacking: Sequence[str]) -> tuple[str, ...]:
    """The largest modules all of whose parameters the checkpoint lacks, and the classifier itself in any case."""
    known = {"classifier", "score"} & {name for name, _ in model.named_children()}
    own = [name for name, _ in model.named_parameters() if name.split(".")[0] in known]
    return _missing_modules(model, [*lacking, *own])


def _missing_modules(model: PreTrainedModel, lacking: Sequence[str]) -> tuple[str, ...]:
    """The largest modules all of whose parameters stand in ``lacking``."""
    missing = set(lacking)
    whole = [
        name
        for name, module in model.named_modules()
        if name and (own := [f"{name}.{inner}" for inner, _ in module.named_parameters()]) and missing.issuperset(own)
    ]
    return tuple(name for name in whole if not _is_within(name, [other for other in whole if other != name]))


def _is_within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _nf4(skip: list[str]) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=skip,
    )


def _check_blocks(model: PreTrainedModel) -> None:
    """Raises MachineError where a quantised layer's shape is no multiple of bitsandbytes' block."""
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit) and (module.in_features % _BLOCK or module.out_features % _BLOCK):
            shape = f"{module.in_features} x {module.out_features}"
            raise MachineError(
                "the base cannot be quantised to 4 bits",
                [
                    Problem(
                        "",
                        "adapter.quantize",
                        f"{name} is {shape}; sizes must be multiples of {_BLOCK}. Use a lora preset.",
                    )
                ],
            )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def inference_mode(model: PreTrainedModel) -> None:
    """Switches dropout off. Modules quantised to 4 bits stay in train mode.

    They hold no dropout; and on processors with avx512_bf16 bitsandbytes repacks them for good at the first forward in
    eval mode, after which no gradient passes them.
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes"):
            module.train()
