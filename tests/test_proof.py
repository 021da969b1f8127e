"""A fresh process scores a model from disk as this one does. Whole runs prove theirs in tests/test_pretrain.py."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ftkit.errors import MachineError
from ftkit.models.placement import Placement
from ftkit.proof import FreshProcess, HeldOutRows
from ftkit.tasks.language import score
from ftkit.tasks.windows import IGNORED
from tests.conftest import pico_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_scores_the_tokens_that_have_a_label(tmp_path, dtype):
    """In the number format that is asked for, which here is not the one on disk."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pico_config("llama")).eval()
    model.save_pretrained(tmp_path / "model")
    chance = random.Random(0)
    rows = [[chance.randrange(4, 64) for _ in range(length)] for length in (20, 6, 33)]
    labels = [[*[IGNORED] * (len(row) - 4), *row[-4:]] for row in rows]
    positions = [(0, 17), (2, 30)]
    given = HeldOutRows(rows, positions, pad_token_id=0, objective="causal", labels=labels)
    placement = Placement("cpu", str(dtype).removeprefix("torch."))
    afresh = FreshProcess().language(tmp_path / "model", given, placement=placement, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype).eval()
    found, expected = afresh.scores, score(model, rows, pad_token_id=0, labels=labels, positions=positions)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-6)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert [len(best) for best in found.best] == [4, 4, 4]
    assert [best.tolist() for best in found.best] == [best.tolist() for best in expected.best]
    assert afresh.peak_rss_mb > 0


OUT_OF_MEMORY = """
import ftkit.proof

def carried_out(task, load, tokenizer):
    import torch
    torch.empty(2**60)

ftkit.proof._carried_out = carried_out
ftkit.proof._main()
"""


def test_memory_that_runs_out_is_told(tmp_path):
    """The process really asks for more than there is; it is no bug, and the adapter is not to blame."""
    process = FreshProcess()
    process.stop()
    process._process = subprocess.Popen(
        [sys.executable, "-c", OUT_OF_MEMORY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    rows = HeldOutRows([[1, 2]], [], pad_token_id=0, objective="causal")
    with pytest.raises(MachineError, match="memory ran out while the merged model was scored") as error:
        process.language(tmp_path, rows, placement=Placement("cpu", "float32"), trust_remote_code=False)
    assert error.value.exit_code == 4
    assert "can't allocate memory" in str(error.value)
    assert "merge: false" in str(error.value)
