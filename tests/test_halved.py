"""Whole runs with the decoder held, and scored, in bfloat16, as a GPU's memory asks for; here on a processor.

Adapter and merged model are then compared in the arithmetic in which the adapter was measured, beside what rounding
makes of an adapter that PEFT merges in memory. A merge that is not the adapter's must show all the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftkit.console import Console
from ftkit.errors import NotProved
from ftkit.models.hardware import Machine
from ftkit.remerge import merge_run
from ftkit.rundir import RunDir
from tests.conversations import asked, carried_out, move_weights, read, spoil, write_recipe, write_rows
from tests.test_words import write as write_words

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _halved(monkeypatch):
    monkeypatch.setattr(Machine, "halves", True)


def check(folder: Path) -> dict:
    """The merged model was proved in bfloat16, and its figures are the adapter's but for rounding."""
    proof, models = read(folder, "merge.json"), read(folder, "eval.json")["models"]
    assert proof["passed"]
    assert proof["computed"] == f"bfloat16 on {'a GPU' if torch.cuda.is_available() else 'the processor'}"
    assert 0 < proof["rms_logit_diff"] < 1.5 * proof["rounding"]["rms_logit_diff"]
    assert (folder / "merged").is_dir()
    assert "merged" in models
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert proof["computed"] in page
    assert "rounding alone, with the adapter merged in memory" in page
    return proof


@pytest.mark.parametrize(
    ("base", "stored", "adapter"),
    [
        ("llama", "float32", "{type: lora, r: 8}"),
        ("gpt2", "float32", "{type: lora, r: 8}"),
        ("qwen2", "bfloat16", "{type: lora, r: 8, dora: true, rslora: true}"),
        ("llama", "float32", "{type: lora, r: 4, init: pissa}"),
        ("llama", "float32", "ia3"),
        ("gpt2", "float32", "qlora"),
    ],
)
def test_adapters_are_merged_and_proved(decoder, tmp_path, base, stored, adapter):
    path = write_recipe(tmp_path, decoder(base), adapter=adapter, eval="{metrics: [perplexity, exact_match]}")
    folder = carried_out(path, tmp_path / "out")
    assert check(folder)["dtype"] == stored
    models = read(folder, "eval.json")["models"]
    assert models["merged"]["metrics"]["perplexity"] < models["baseline"]["metrics"]["perplexity"]


def test_it_is_exported_measured_again_and_used(decoder, tmp_path):
    path = write_recipe(
        tmp_path,
        decoder("qwen2"),
        eval="{metrics: [perplexity, exact_match]}",
        export='[safetensors, "safetensors:float32", "gguf:q8_0"]',
    )
    folder = carried_out(path, tmp_path / "out")
    made = {"merged", "safetensors:bfloat16", "safetensors:float32", "gguf:q8_0"}
    assert set(read(folder, "eval.json")["exports"]) == made
    before = read(folder, "eval.json")["models"]["merged"]["metrics"]
    again = RunDir(folder)
    merge_run(again, None, Console(quiet=True, results=False))
    assert check(folder)
    assert read(folder, "eval.json")["models"]["merged"]["metrics"] == before


def test_label_words(decoder, tmp_path):
    path = write_words(tmp_path, decoder("llama"))
    folder = carried_out(path, tmp_path / "out")
    check(folder)


def test_a_text_is_learned(decoder, tmp_path):
    for name, count, seed in (("train", 64, 1), ("valid", 16, 2), ("test", 16, 3)):
        rows = [{"text": f"{row['prompt']} {row['completion']}"} for row in asked(count, seed)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    path = write_recipe(tmp_path, decoder("llama"), task="{type: pretrain}")
    check(carried_out(path, tmp_path / "out"))


@pytest.mark.parametrize("into", ["full", "dequantised", "auto"])
def test_a_base_in_four_bits_is_merged_into_either(decoder, tmp_path, into):
    path = write_recipe(
        tmp_path, decoder("llama"), adapter="qlora", eval="{metrics: [perplexity]}", merge=f"{{into: {into}}}"
    )
    folder = carried_out(path, tmp_path / "out")
    proof = read(folder, "merge.json")
    assert proof["passed"]
    assert proof["into"] in ("full", "dequantised")


@pytest.mark.parametrize("task", ["answers", "words"])
def test_a_merge_that_is_not_the_adapters_is_refused(decoder, tmp_path, monkeypatch, task):
    spoil(monkeypatch, "language" if task == "answers" else "label_scores", move_weights)
    if task == "answers":
        path = write_recipe(tmp_path, decoder("llama"), eval="{metrics: [perplexity]}", merge="{tolerance: 0.99}")
    else:
        path = write_words(tmp_path, decoder("llama"), merge="{tolerance: 0.99}")
    with pytest.raises(NotProved, match="rms_logit_diff"):
        carried_out(path, tmp_path / "out")
    assert not (tmp_path / "out" / "merged").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ["{type: lora, r: 8}", "qlora"])
def test_on_a_gpu_itself(decoder, tmp_path, adapter):
    path = write_recipe(tmp_path, decoder("llama"), adapter=adapter, eval="{metrics: [perplexity, exact_match]}")
    folder = carried_out(path, tmp_path / "out")
    assert read(folder, "merge.json")["computed"] == "bfloat16 on a GPU"
    assert read(folder, "train.json")["peak_gpu_mb"] > 0
