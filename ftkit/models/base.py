"""Loads a base model, with a classification head or as a language model, its tokenizer, and an adapter on top of it.

Everything is loaded through the public classes of transformers and peft; the real module tree decides what is head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import MachineError, Problem, RecipeError
from ftkit.models.hardware import Machine, training_dtype
from ftkit.models.locate import BaseFiles
from ftkit.models.lora_linear import train_with_fewer_operations
from ftkit.models.modules import bare, embeddings, head_modules, is_within, missing_modules, named, outer_modules
from ftkit.models.placement import device_map
from ftkit.models.quantise import check_blocks, is_four_bit, nf4, start_from_loss

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.models.adapters import Adapter

GENERATION = "generation_config.json"  # settings for generation, the tokens that end it among them


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model in memory. ``head``: the full names of the modules the base's checkpoint lacks, to be trained whole.

    ``revision``: the commit of the base on the hub, where it came from there. ``task_type``: what PEFT calls the task.
    ``lacks_bias``: the checkpoint also lacks a bias in a module that it has otherwise, as that of a tied output.
    ``grown``: tokens whose embeddings the checkpoint lacks; ``folder``: where the base's files are.
    """

    model: PreTrainedModel
    head: tuple[str, ...]
    revision: str | None
    task_type: Literal["SEQ_CLS", "CAUSAL_LM"] | None
    lacks_bias: bool = False
    grown: range = range(0)
    folder: Path | None = None


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
    compute: torch.dtype | None = None,
) -> Loaded:
    """The base with a new head whose random weights depend on ``seed`` alone.

    ``skip_quantising`` not None: the base is quantised to NF4 but for these modules, which must hold the head, and
    multiplies in ``compute`` (None: ``dtype``).
    Raises MachineError where the files are damaged or of a model type without a classification head.
    """
    from transformers import AutoModelForSequenceClassification

    model, lacking = _from_pretrained(
        AutoModelForSequenceClassification,
        files,
        dtype=dtype,
        seed=seed,
        trust_remote_code=trust_remote_code,
        quantization=None if skip_quantising is None else nf4(skip_quantising, compute or dtype),
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
    )
    _set_pad_token(model, pad_token_id)
    return Loaded(model, head_modules(model, lacking), files.revision, "SEQ_CLS", folder=files.folder)


def load_language_model(
    files: BaseFiles,
    objective: Literal["causal", "masked"],
    *,
    pad_token_id: int,
    dtype: torch.dtype,
    seed: int,
    trust_remote_code: bool = False,
    quantize: bool = False,
    compute: torch.dtype | None = None,
    whole: Sequence[str] = (),
    vocab: int | None = None,
    **placing: Any,
) -> Loaded:
    """The base as a language model. Where a masked model's checkpoint lacks the head, it is new, by ``seed`` alone.

    ``quantize``: the base is quantised to NF4 but for its head and the modules whose names end with one of ``whole``,
    and multiplies in ``compute`` (None: ``dtype``). ``vocab``: tokens of the tokenizer; where the base has fewer its
    embeddings grow by as many, near the mean of the others. ``placing``: of ``placement.device_map``.

    Raises MachineError where the files are damaged, or of a model type or checkpoint that cannot do this, RecipeError
    for one of ``whole`` that names no module.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

    kind = AutoModelForCausalLM if objective == "causal" else AutoModelForMaskedLM
    quantization = None
    if quantize:
        tree = bare(kind, files.folder, trust_remote_code=trust_remote_code)
        quantization = nf4([*outer_modules(tree), *named(tree, whole)], compute or dtype)
    model, lacking = _from_pretrained(
        kind, files, dtype=dtype, seed=seed, trust_remote_code=trust_remote_code, quantization=quantization, **placing
    )
    # BERT and its kin load as a causal model too, and would see the very tokens that they are to predict.
    encoder = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING and getattr(model.config, "is_decoder", True) is False
    if objective == "causal" and encoder:
        fix = "It sees the tokens that it would be trained to predict. Name a decoder, such as a Llama or a Qwen."
        raise MachineError(f"{files.name} is an encoder", [Problem("", "base", fix)])
    if objective == "causal" and lacking:
        fix = f"It lacks {', '.join(sorted(lacking)[:3])}. Name a base that was trained to predict text."
        raise MachineError(f"{files.name} is no whole language model", [Problem("", "base", fix)])
    _set_pad_token(model, pad_token_id)
    head = missing_modules(model, lacking)
    lacks_bias = any(name.endswith("bias") and not is_within(name, head) for name in lacking)
    grown = _grow(model, vocab or 0, seed)
    task_type: Literal["CAUSAL_LM"] | None = "CAUSAL_LM" if objective == "causal" else None
    return Loaded(model, head, files.revision, task_type, lacks_bias, grown, files.folder)


def load_adaptable(
    files: BaseFiles,
    objective: Literal["causal", "masked"],
    adapter: Adapter,
    *,
    pad_token_id: int,
    precision: str,
    machine: Machine,
    seed: int,
    trust_remote_code: bool,
    quantize: bool,
    vocab: int | None = None,
) -> Loaded:
    """The base as ``load_language_model`` loads it, on the machine's device, with its weights held as the adapter asks.

    ``precision`` is train.precision; ``quantize``: in 4 bits, where the adapter is trained on such a base.
    """
    # Only a base that was trained on in 4 bits can be larger than the memory there is.
    placing = device_map(machine.device, files.weights()) if adapter.quantize and not quantize else {}
    loaded = load_language_model(
        files,
        objective,
        pad_token_id=pad_token_id,
        dtype=weights_dtype(precision, machine, adapter, causal=objective == "causal"),
        seed=seed,
        trust_remote_code=trust_remote_code,
        quantize=quantize and adapter.quantize is not None,
        compute=training_dtype(precision, machine, files.width),
        whole=adapter.modules_to_save or (),
        vocab=vocab,
        **placing,
    )
    if not placing:
        loaded.model.to(machine.device)
    return loaded


def weights_dtype(precision: str, machine: Machine, adapter: Adapter | None, *, causal: bool = True) -> torch.dtype:
    """How the base's weights are held: a decoder's in bfloat16 on a GPU that computes in it, all others in float32.

    Float32 is also a model of which modules are trained whole: small steps get lost in bfloat16. What quantising leaves
    as it is (embeddings, norms, head) is held as an unquantised decoder is: in float32 the embeddings of a 7B model
    alone would take 4 GB.
    """
    import torch

    frozen = adapter is not None and not adapter.modules_to_save
    halved = frozen and causal and machine.halves
    return training_dtype(precision, machine, None) if halved else torch.float32


def _from_pretrained(
    kind: Any,
    files: BaseFiles,
    *,
    dtype: torch.dtype,
    seed: int,
    trust_remote_code: bool,
    quantization: Any,
    **settings: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of the weights that its checkpoint lacks, which are new and depend on ``seed`` alone."""
    import torch

    files.weights()
    if quantization is not None:
        settings["quantization_config"] = quantization
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


def _grow(model: PreTrainedModel, vocab: int, seed: int) -> range:
    """Adds embeddings up to ``vocab`` tokens, by ``seed`` alone; never takes any away. Returns the added tokens."""
    import torch

    before: int = model.get_input_embeddings().num_embeddings
    if vocab <= before:
        return range(0)
    torch.manual_seed(seed)
    model.resize_token_embeddings(vocab, mean_resizing=True)
    return range(before, vocab)


def with_new_adapter(loaded: Loaded, adapter: Adapter, *, new_tokens: Sequence[int] = ()) -> PreTrainedModel:
    """Puts a fresh adapter on a base; what its head is gets trained whole, of embeddings the rows of ``new_tokens``.

    So are those of the tokens by which the base has grown: nothing that is not the base's own may be lost when the
    adapter is saved. Raises RecipeError where the adapter does not fit the base.
    """
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    model = loaded.model
    chosen = named(model, adapter.modules_to_save or ())
    whole = [*loaded.head, *(name for name in chosen if not is_within(name, loaded.head))]
    rows = _rows(model, whole, sorted({*new_tokens, *loaded.grown}))
    tied = _tied(model, whole)
    whole += [name for name in tied if name not in whole]
    if adapter.quantize:
        check_blocks(model)
    config: PeftConfig = adapter.peft_config(
        loaded.task_type,
        whole,
        [name for name, _ in model.named_modules() if is_within(name, whole)],
        transposed=any(issubclass(getattr(module, "source_cls", type(module)), Conv1D) for module in model.modules()),
        biases=loaded.lacks_bias,
        rows=rows,
        tied=bool(tied),
    )
    config.revision = loaded.revision
    train_with_fewer_operations(model, config)
    try:
        adapted: PreTrainedModel = get_peft_model(model, config)
    except ValueError as error:
        fix = "Name the modules to adapt under adapter.targets."
        raise RecipeError(
            "the adapter does not fit the base", [Problem("", "adapter", f"{_first_line(error)} {fix}")]
        ) from error
    if rows and (head := model.get_output_embeddings()) is not None:
        head.register_parameter("bias", None)  # TRL asks for it, and PEFT's wrapper around the weight has none
    if tied:
        # PEFT takes the tied output out of the list, and where the embedding is not called embed_tokens unties the two
        # when it reads the adapter again.
        config.modules_to_save = whole
    if adapter.init == "loftq":
        assert loaded.folder is not None
        start_from_loss(adapted, loaded.folder)
    return adapted


def _tied(model: PreTrainedModel, whole: Sequence[str]) -> tuple[str, ...]:
    """The two names of an embedding that is the output too, where one of them is among ``whole``: both are trained."""
    given, output, tied = embeddings(model)
    return (given, str(output)) if tied and {given, output} & {*whole} else ()


def _rows(model: PreTrainedModel, whole: Sequence[str], tokens: Sequence[int]) -> dict[str, Sequence[int]]:
    """The embeddings that are not trained whole, with the ``tokens`` whose rows are trained."""
    if not tokens:
        return {}
    given, output, tied = embeddings(model)
    if output is not None and model.get_output_embeddings().bias is not None:
        # peft 0.21.2 multiplies by the weight alone where rows of it are trained.
        fix = f"{output} has a bias, with which PEFT cannot train new tokens. Use a template without new tokens."
        raise RecipeError("the adapter does not fit the base", [Problem("", "task.template", fix)])
    if tied:
        return {} if {given, output} & {*whole} else {given: tokens}
    return {name: tokens for name in (given, output) if name is not None and name not in whole}


def with_saved_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The adapter in ``folder`` (plain PEFT) on its base, for inference.

    Rows of new tokens are written into the embeddings: PEFT would copy the whole matrices for each token generated.
    """
    from peft import PeftModel

    adapted: PreTrainedModel = PeftModel.from_pretrained(model, folder)
    for layer in _token_layers(adapted):
        layer.merge()
    return adapted


def merged_into_base(model: PreTrainedModel) -> PreTrainedModel:
    """The base with the adapter merged into its weights. Raises ValueError where a weight is not finite."""
    for layer in _token_layers(model):
        layer.unmerge()  # merged with all others, or PEFT warns
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def _token_layers(model: PreTrainedModel) -> list[Any]:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def inference_mode(model: PreTrainedModel) -> None:
    """Switches dropout off. Modules quantised to 4 bits stay in train mode.

    They hold no dropout; and on processors with avx512_bf16 bitsandbytes repacks them for good at the first forward in
    eval mode, after which no gradient passes them.
    """
    model.eval()
    for module in filter(is_four_bit, model.modules()):
        module.train()
