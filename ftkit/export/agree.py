"""Whether a merged model gives the logits of base and adapter, in a process with transformers and PEFT alone.

``python -m ftkit.export.agree BASE ADAPTER MERGED`` prints one line of JSON. Both models compute in float32, on the
same random tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import NotProved, Problem

if TYPE_CHECKING:
    import torch

_ROWS, _LENGTH, _SEED = 8, 32, 0
_CLEAR = 2e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest difference of a logit, and the share of places with the same likeliest answer.

    Of a model in float32 those do not count whose two likeliest answers rounding decides between.
    """

    max_abs_logit_diff: float
    argmax_agreement: float
    rows: int
    peak_rss_mb: int


def compare_logits(base: Path, adapter: Path, merged: Path) -> Agreement:
    """Starts the process. Raises NotProved where either model cannot be used."""
    command = [sys.executable, "-m", "ftkit.export.agree", str(base), str(adapter), str(merged)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotProved("the merged model cannot be used from disk", [Problem("", "merge", f"{reason}. Report this.")])
    return Agreement(**json.loads(done.stdout.strip().splitlines()[-1]))


def _main(base: str, adapter: str, merged: str) -> None:
    from ftkit.models.hardware import flush_subnormals, peak_rss_mb, settle_environment

    settle_environment()
    import torch
    import transformers
    from peft import PeftModel

    from ftkit.models.base import quiet_libraries

    flush_subnormals()
    quiet_libraries()
    config = transformers.AutoConfig.from_pretrained(merged)
    kind = getattr(transformers, config.architectures[0])
    own = transformers.AutoConfig.from_pretrained(base)
    if "ForSequenceClassification" in kind.__name__ or "ForTokenClassification" in kind.__name__:
        own.num_labels = config.num_labels
    vocabulary, grown = own.get_text_config().vocab_size, config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(_SEED))
    model = kind.from_pretrained(base, config=own, dtype=torch.float32)
    if grown > vocabulary:
        model.resize_token_embeddings(grown, mean_resizing=False)
    expected = _logits(PeftModel.from_pretrained(model, adapter), ids)
    del model
    found = _logits(kind.from_pretrained(merged, dtype=torch.float32), ids)
    same = expected.argmax(-1) == found.argmax(-1)
    if str(config.dtype) == "torch.float32" and expected.shape[-1] > 1:
        best = expected.topk(2, -1).values
        same = same[best[..., 0] - best[..., 1] > _CLEAR]
    agreement = Agreement(
        max_abs_logit_diff=float((expected - found).abs().max()),
        argmax_agreement=float(same.float().mean()) if same.numel() else 1.0,
        rows=_ROWS,
        peak_rss_mb=peak_rss_mb(),
    )
    sys.stdout.write(json.dumps(asdict(agreement)) + "\n")


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    import torch

    given: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**given).logits
    return found.float()


if __name__ == "__main__":
    _main(*sys.argv[1:])
