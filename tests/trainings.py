"""A small training of a pico model through the real trainers, for the tests of what its keys do and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftkit.console import Console
from ftkit.models.adapters import Lora
from ftkit.models.base import inference_mode, load_language_model, with_new_adapter
from ftkit.models.hardware import Machine, training_dtype
from ftkit.models.locate import BaseFiles
from ftkit.rundir import RunDir, read_log
from ftkit.tasks.language import Collate, score
from ftkit.tasks.section import Train
from ftkit.train import Job, train
from tests.conftest import pico_config

CPU = Machine("a processor", 2, 2, 8.0, None, None, bfloat16=False)
QUIET = Console(quiet=True, results=False)
ROWS = [[2, *(4 + (start + step * place) % 60 for place in range(12)), 3] for start in range(8) for step in (1, 7)]
QUICK = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0, "precision": "float32", "seed": 3}


@contextmanager
def quiet() -> Iterator[None]:
    """The command line silences the libraries' warnings during a run; so do the trainings here. One thread is faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(before)


def make_base(folder: Path, tokenizer_folder: Path) -> BaseFiles:
    config = pico_config("llama")
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return BaseFiles("pico", "folder", folder, None)


def load(base: BaseFiles, *, vocab: int | None = None, quantize: bool = False, seed: int = 3):
    return load_language_model(
        base, "causal", pad_token_id=0, dtype=torch.float32, seed=seed, vocab=vocab, quantize=quantize,
        compute=torch.bfloat16,
    )  # fmt: skip


def loss_of(model) -> dict[str, float]:
    inference_mode(model)
    found = score(model, ROWS[:4], pad_token_id=0)
    return {"loss": float(found.nll.sum() / (4 * 13))}


def run(base, folder: Path, *, adapter=None, vocab=None, console=QUIET, machine=CPU, watch=None, complete=None, **keys):
    """Trains, and returns the log and the adapter's folder. ``watch``: is given the model before it is trained."""
    adapter = adapter or Lora(r=4, alpha=8)

    def build():
        loaded = load(base, vocab=vocab, quantize=adapter.quantize is not None)
        loaded.model.to(machine.device)
        model = with_new_adapter(loaded, adapter)
        if watch:
            watch(model)
        return model

    job = Job(
        build=build,
        adapted=True,
        rows=[{"input_ids": row, "labels": row, "position_ids": [*range(len(row))]} for row in ROWS],
        lengths=[len(row) for row in ROWS],
        places=lambda row: f"line {row + 1}",
        mixed=False,
        collate=lambda _: Collate(0, None),
        loss=None,
        validate=loss_of,
        best_by="loss",
        lowest=True,
        section=Train(**QUICK | keys),
        dtype=training_dtype(keys.get("precision", "float32"), machine, None),
        tokenizer=AutoTokenizer.from_pretrained(base.folder),
        lr_ratio=adapter.lr_ratio,
        tokens_at_once=None,
        converted=adapter.init == "pissa",
        complete=complete or (lambda folder: None),
    )
    directory = RunDir(folder)
    folder.mkdir(exist_ok=True)
    train(job, directory, seed=3, machine=machine, console=console)
    return read_log(directory.train_log), directory.adapter


def losses(log) -> list[float]:
    return [row["loss"] for row in log if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stopped_midway(recipe: Path, out: Path) -> str:
    """Runs a recipe in a process of its own, stopped by SIGTERM when ten steps are logged; what it said."""
    command = [sys.executable, "-m", "ftkit", "run", str(recipe), "--out", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    log = out / "train.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text(encoding="utf-8").count("grad_norm") < 10):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    return errors
