"""In what number format a machine trains a model, and what is set before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftkit.models.hardware import Machine, training_dtype
from ftkit.models.locate import BaseFiles

PLAIN = Machine("a processor", 2, 2, 8.0, None, None, bfloat16=False)
HALF = Machine("a processor", 2, 2, 8.0, None, None, bfloat16=True)
AMD = Machine("AMD EPYC 9R14", 2, 2, 8.0, None, None, bfloat16=True)
GPU = Machine("a processor", 2, 2, 8.0, "a GPU", 8.0, bfloat16=True)
SET = """
import json, os
from ftkit.models.hardware import settle_environment
settle_environment()
names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
print(json.dumps({name: os.environ[name] for name in names}))
"""

FLUSHED = """
import torch
from ftkit.models.hardware import settle_machine
settle_machine()
torch.set_num_threads(4)
tiny = torch.full((2**20,), 2e-38)
print(int(torch.count_nonzero((tiny * 0.25).view(torch.int32))), int(torch.count_nonzero(tiny * 0.75)))
"""


def test_subnormal_numbers_are_0_in_all_threads():
    """A fresh process, as threads take it over where they begin; a normal number of nearly that size stays."""
    done = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(2**20)]


@pytest.mark.parametrize(
    ("precision", "machine", "width", "found"),
    [
        ("auto", PLAIN, 4096, torch.float32),
        ("auto", HALF, 4096, torch.bfloat16),
        ("auto", HALF, 384, torch.bfloat16),
        ("auto", HALF, 383, torch.float32),
        ("auto", AMD, 128, torch.bfloat16),
        ("auto", AMD, 127, torch.float32),
        ("auto", HALF, None, torch.bfloat16),  # a model that does not tell is none of the narrow ones that do
        ("auto", GPU, 64, torch.bfloat16),
        ("bfloat16", HALF, 64, torch.bfloat16),
        ("bfloat16", PLAIN, 4096, torch.bfloat16),
        ("float32", GPU, 4096, torch.float32),
    ],
)
def test_the_number_format_of_a_training(precision, machine, width, found):
    assert training_dtype(precision, machine, width) == found


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 576}, 576),
        ({"n_embd": 768}, 768),
        ({"dim": 64}, 64),
        ({"d_model": 512}, 512),
        ({"text_config": {"hidden_size": 96}, "vision_config": {"hidden_size": 1024}}, 96),
        ({"model_type": "unknown"}, None),
    ],
)
def test_how_wide_a_model_is(config, width, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert BaseFiles("a base", "folder", tmp_path, None).width == width


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE", "CUDA_VISIBLE_DEVICES": "1"}])
def test_what_the_user_has_set_stays(own):
    usual = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "0"}
    given = {name: value for name, value in os.environ.items() if name not in usual} | own
    done = subprocess.run([sys.executable, "-c", SET], env=given, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == usual | own
