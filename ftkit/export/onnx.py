"""ONNX for classifiers with a head: token ids and their mask in, logits out, any number of rows of any length.

Written by torch's own exporter from a trace of the model, which needs no package beside torch (the newer one needs
onnxscript). A trace keeps what depended on the traced shape as a constant, so the result is run by onnxruntime on rows
of other numbers and lengths, and compared with torch. int8: weights rounded per channel, activations as they come
(dynamic quantisation); of seven bits, as sums of eight overflow on processors without VNNI.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError, MachineError, NotProved, Problem
from ftkit.export.source import Needs, Source
from ftkit.export.tensors import check_space, read_index

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

FILE = "model.onnx"
_INPUTS = ("input_ids", "attention_mask")
_OPSET = 17  # read by onnxruntime since 1.13 (2022)
_LONGEST = 256  # tokens of a compared row
# Rows and tokens of the batches that are compared: others than the traced ones, and one row of one token.
_TRACED = (2, 8)
_COMPARED = ((1, 1), (3, 5), (8, 24), (4, 61), (16, 16), (2, _LONGEST))
_LARGEST = 1e-3  # |logit difference| in float32, as a merge may have
_SHARE = 0.25  # of the range of the logits, that the largest difference of int8 may be


@dataclass(frozen=True, slots=True)
class Onnx:
    """model.onnx with the tokenizer, the configuration and the label names beside it."""

    name: str = "onnx"
    types: tuple[str, ...] = ("float32", "int8")
    needs: Needs = "head"
    reader: str = "onnxruntime"

    def left_out(self, source: Source) -> str:
        return "float32"

    def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
        """Raises MachineError where packages are missing, DataError for a model without a pad token."""
        _check_packages()
        elements = sum(tensor.count for tensor in read_index(source.model).values())
        check_space(folder, elements * (4 if kind == "float32" else 9))  # int8 is made of two float32 files
        model = _load(source)
        source.copy_beside(folder)
        if kind == "float32":
            _trace(model, folder / FILE)
        else:
            _quantise(model, folder)
        return check_onnx(model, folder / FILE, kind)

    def read(self, folder: Path, source: Source) -> OnnxClassifier:
        from transformers import AutoConfig

        return OnnxClassifier(folder / FILE, AutoConfig.from_pretrained(folder, trust_remote_code=source.trusted))


class OnnxClassifier:
    """A model.onnx that is called as transformers' classifier would be, on the processor."""

    def __init__(self, file: Path, config: Any) -> None:
        import onnxruntime as ort
        import torch

        _check_packages()
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.config = config
        self.device = torch.device("cpu")

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """``logits`` [B, K]."""
        import torch
        from transformers.modeling_outputs import SequenceClassifierOutput

        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits,) = self._session.run(["logits"], given)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def check_onnx(model: PreTrainedModel, file: Path, kind: str) -> dict[str, Any]:
    """Compares an exported file with its model on rows of seeded token ids. Raises NotProved where they differ."""
    import numpy as np
    import torch

    exported = OnnxClassifier(file, model.config)
    ours, theirs = [], []
    with torch.inference_mode():
        for ids, mask in _rows(model, _COMPARED):
            ours.append(model(input_ids=ids, attention_mask=mask).logits.double().numpy())
            theirs.append(exported(ids, mask).logits.double().numpy())
    want, have = np.concatenate(ours), np.concatenate(theirs)
    found = _differences(want, have)
    allowed = _LARGEST if kind == "float32" else _SHARE * float(want.max() - want.min())
    if not found["max_abs_logit_diff"] <= allowed:  # so that nan is refused too
        message = f"onnxruntime's logits differ by {found['max_abs_logit_diff']:.3g}; tolerated: {allowed:.3g}. "
        message += "Export safetensors." if kind == "float32" else "Write onnx:float32."
        raise NotProved("the export is not shown to be the model", [Problem("", FILE, message)])
    return {"compared_rows": len(want), "tolerated": allowed, **found}


def _differences(want: Floats, have: Floats) -> dict[str, float]:
    largest = float(abs(want - have).max())
    return {"max_abs_logit_diff": largest, "argmax_agreement": float((want.argmax(1) == have.argmax(1)).mean())}


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        fix = "Run: pip install 'ftkit[onnx]'"
        raise MachineError(f"{' and '.join(missing)} not installed", [Problem("", "onnx", fix)])


def _load(source: Source) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForSequenceClassification

    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        source.model, dtype=torch.float32, trust_remote_code=source.trusted
    )
    model.eval()
    if model.config.get_text_config().pad_token_id is None:
        fix = "Rows of several lengths cannot be told apart. Write pad_token_id into its config.json."
        raise DataError(f"{source.model} has no pad token", [Problem("", "pad_token_id", fix)])
    return model


def _trace(model: PreTrainedModel, file: Path) -> None:
    """Writes the float32 file. The exporter switches training off, and on again for all modules that it is given."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    given = next(_rows(model, [_TRACED]))
    free = {name: {0: "batch", 1: "sequence"} for name in _INPUTS} | {"logits": {0: "batch"}}
    with warnings.catch_warnings():
        # Each names a constant of the trace; whether one of them matters is what the comparison finds.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(), given, str(file), dynamo=False, input_names=[*_INPUTS], output_names=["logits"],
            dynamic_axes=free, opset_version=_OPSET,
        )  # fmt: skip


def _quantise(model: PreTrainedModel, folder: Path) -> None:
    """Writes the int8 file, by way of the float32 one and of one whose constants are folded."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole, folded = folder / "float32.onnx", folder / "folded.onnx"
    _trace(model, whole)
    quant_pre_process(whole, folded, skip_symbolic_shape=True)
    quantize_dynamic(folded, folder / FILE, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    whole.unlink()
    folded.unlink()


def _rows(model: PreTrainedModel, shapes: Sequence[tuple[int, int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of token ids and masks [B, T], the same every time; in each but the first row some padding at the end."""
    import torch

    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or _LONGEST + 2
    most = min(_LONGEST, positions - 2)  # RoBERTa keeps the first two positions for itself
    chance = torch.Generator().manual_seed(0)
    for count, length in shapes:
        length = min(length, most)
        ids = torch.randint(0, text.vocab_size, (count, length), generator=chance)
        ids[ids == text.pad_token_id] = (text.pad_token_id + 1) % text.vocab_size
        mask = torch.ones_like(ids)
        for row in range(1, count):
            mask[row, max(1, length - row) :] = 0
        ids[mask == 0] = text.pad_token_id
        yield ids, mask
