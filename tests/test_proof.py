"""A fresh process scores a model from disk as this one does. Whole runs prove theirs in tests/test_pretrain.py."""

import random

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ftkit.proof import FreshProcess, HeldOutRows
from ftkit.tasks.language import score
from ftkit.tasks.windows import IGNORED
from tests.conftest import pico_config


def test_it_scores_the_tokens_that_have_a_label(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pico_config("llama")).eval()
    model.save_pretrained(tmp_path / "model")
    chance = random.Random(0)
    rows = [[chance.randrange(4, 64) for _ in range(length)] for length in (20, 6, 33)]
    labels = [[*[IGNORED] * (len(row) - 4), *row[-4:]] for row in rows]
    positions = [(0, 17), (2, 30)]
    given = HeldOutRows(rows, positions, pad_token_id=0, objective="causal", labels=labels)
    afresh = FreshProcess().language(tmp_path / "model", given, trust_remote_code=False)
    found, expected = afresh.scores, score(model, rows, pad_token_id=0, labels=labels, positions=positions)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-6)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert [len(best) for best in found.best] == [4, 4, 4]
    assert [best.tolist() for best in found.best] == [best.tolist() for best in expected.best]
    assert afresh.peak_rss_mb > 0
