"""Whole runs on a pico model: what lands on disk, what the exit code is, and what survives an interruption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit.console import Console
from ftkit.errors import GateNotMet, MachineError, NotProved, RecipeError, TrainingFailed
from ftkit.pipeline import Request, run
from ftkit.recipe.presets import shipped
from tests.conftest import sentences, write_csv
from tests.trainings import stopped_midway

QUIET = Console(quiet=True, results=False)


@pytest.fixture(autouse=True)
def _library_warnings():
    """The command line silences the libraries' warnings during a run; so do the runs here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    """A figure of every step that train.jsonl holds."""
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_a_run_ends_merged_and_proved(recipe, tmp_path):
    """The merged folder loads with transformers alone, the adapter with peft alone, and both score as reported."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = recipe(gate="{accuracy: {min: 0.1}}")
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    made = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    assert made >= {
        "README.md", "report.html", "recipe.yaml", "plan.json", "train.jsonl", "train.json", "adapter",
        "predictions.jsonl", "eval.json", "merge.json", "merged", "manifest.json",
    }  # fmt: skip
    assert not (folder / "checkpoints").exists()
    assert (folder / "recipe.yaml").read_bytes() == path.read_bytes()
    report = json.loads((folder / "eval.json").read_text())
    assert set(report["models"]) == {"majority", "baseline", "adapter", "merged"}
    assert report["n"] == 60
    proof = json.loads((folder / "merge.json").read_text())
    assert proof["passed"]
    assert proof["max_abs_logit_diff"] < 1e-3
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    accuracy = sum(row["prediction"] == row["reference"] for row in rows) / len(rows)
    assert accuracy == pytest.approx(report["models"]["adapter"]["metrics"]["accuracy"])

    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(folder / "merged").eval()
    base = AutoModelForSequenceClassification.from_pretrained(json_base(path), num_labels=2)
    adapter = PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert merged.config.id2label == {0: "bad", 1: "good"}
    batch = tokenizer([row["input"] for row in rows], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    expected = np.array([[row["scores"]["bad"], row["scores"]["good"]] for row in rows])
    for model in (merged, adapter):
        with torch.no_grad():
            found = model(**batch).logits.softmax(-1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def json_base(path: Path) -> str:
    return next(line.removeprefix("base: ") for line in path.read_text().splitlines() if line.startswith("base: "))


def test_a_gate_that_does_not_hold_keeps_the_adapter_and_merges_nothing(recipe, tmp_path):
    path = recipe(gate="{f1: {min: 1.0, beat: baseline}}", train="{epochs: 0.1, batch_size: 8, learning_rate: 1e-6}")
    with pytest.raises(GateNotMet) as error:
        run(Request(path, out=tmp_path / "out"), QUIET)
    assert "f1" in str(error.value)
    assert error.value.exit_code == 5
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "merged").exists()
    assert not (tmp_path / "out" / "merge.json").exists()


def test_a_merged_model_that_differs_does_not_get_the_name(recipe, tmp_path, monkeypatch):
    """The fresh process is given a model with one weight moved, as a broken merge would leave it."""
    from safetensors.torch import load_file, save_file

    from ftkit.proof import FreshProcess

    honest = FreshProcess.logits

    def spoiled(self, folder, rows, **options):
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["classifier.bias"] += 0.5 * (np.arange(2) - 0.5)
        save_file(weights, file, metadata={"format": "pt"})
        return honest(self, folder, rows, **options)

    monkeypatch.setattr(FreshProcess, "logits", spoiled)
    with pytest.raises(NotProved) as error:
        run(Request(recipe(), out=tmp_path / "out"), QUIET)
    assert error.value.exit_code == 7
    assert not (tmp_path / "out" / "merged").exists()
    assert not json.loads((tmp_path / "out" / "merge.json").read_text())["passed"]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".merged")] == []


def test_more_than_two_labels_and_many_labels_a_row(recipe, tmp_path):
    rows = [(text, label if number % 3 else f"{label}|long") for number, (text, label) in enumerate(sentences(96, 1))]
    path = recipe(task="{type: classify, multi_label: true}", eval="{threshold: tune}")
    write_csv(tmp_path / "train.csv", rows)
    for name, seed in (("valid", 2), ("test", 3)):
        rows = [(text, label if n % 3 else f"{label}|long") for n, (text, label) in enumerate(sentences(60, seed))]
        write_csv(tmp_path / f"{name}.csv", rows)
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    report = json.loads((folder / "eval.json").read_text())
    assert report["labels"] == ["bad", "good", "long"]
    assert len(report["thresholds"]) == 3
    assert "mcc" not in report["models"]["adapter"]["metrics"]


# Each shipped preset on another family.
FAMILY = {
    "lora": "modernbert", "dora": "llama", "rslora": "gpt2", "pissa": "roberta", "loraplus": "deberta", "ia3": "qwen2",
    "qlora": "bert", "loftq": "llama",
}  # fmt: skip
PRESETS = [pytest.param(name, marks=[pytest.mark.gpu] if name == "loftq" else [])
           for name in sorted(path.stem for path in shipped().glob("*.yaml"))]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_goes_all_the_way(recipe, tmp_path, preset):
    """Trained, measured, merged into the full-precision base and proved; the presets are found from any folder."""
    path = recipe(FAMILY[preset], adapter=preset, train="{epochs: 1, batch_size: 8, learning_rate: 1e-3, seed: 7}")
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    proof = json.loads((folder / "merge.json").read_text())
    assert proof["passed"]
    assert proof["dtype"] == "float32"
    if preset == "qlora":
        assert proof["quantised"]["max_abs_logit_diff"] > proof["max_abs_logit_diff"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_loftq_without_a_gpu_ends_before_anything_is_loaded(recipe, tmp_path):
    with pytest.raises(MachineError) as error:
        run(Request(recipe("llama", adapter="loftq"), out=tmp_path / "out"), QUIET)
    assert error.value.exit_code == 4
    assert "LoftQ decomposes weights on a CUDA device" in (tmp_path / "out" / "error.txt").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "plan.json").exists()


def test_an_existing_run_is_not_overwritten(recipe, tmp_path):
    path = recipe(merge="false")
    run(Request(path, out=tmp_path / "out"), QUIET)
    before = (tmp_path / "out" / "eval.json").read_bytes()
    with pytest.raises(RecipeError) as error:
        run(Request(path, out=tmp_path / "out"), QUIET)
    assert str(error.value) == (
        f"error: {tmp_path / 'out'} holds a run already\n"
        "  --out   Add --resume to go on with it, or choose another folder."
    )
    assert (tmp_path / "out" / "eval.json").read_bytes() == before


def test_a_stopped_run_goes_on_to_the_losses_of_an_undisturbed_one(recipe, tmp_path):
    """SIGTERM in the middle of training: exit 130, a checkpoint, and the same loss at every step afterwards."""
    path = recipe(train="{epochs: 15, batch_size: 8, learning_rate: 1e-3}", merge="false")
    undisturbed = run(Request(path, out=tmp_path / "whole"), QUIET).folder
    errors = stopped_midway(path, tmp_path / "cut")
    assert "--resume" in errors
    assert len(logged(tmp_path / "cut", "loss")) < 180
    resumed = run(Request(path, out=tmp_path / "cut", resume=True), QUIET).folder
    whole, cut = logged(undisturbed, "loss"), logged(resumed, "loss")
    assert [step for step, _ in cut] == list(range(1, 181))
    np.testing.assert_allclose([loss for _, loss in cut], [loss for _, loss in whole], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "modernbert"])  # the ones without dropout, whose steps are comparable
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(recipe, tmp_path, monkeypatch, capsys, family):
    """A loss that refuses more than one row at once, as a full GPU would: losses and gradients stay those of 8 rows.

    transformers' own loss fails this: it averages each micro-batch, and 8 of 1 row then have 8 times the gradient.
    """
    from ftkit.tasks import classify

    real = classify.loss_function

    def small(**settings):
        loss = real(**settings)

        def refuse(outputs, labels, num_items_in_batch=None):
            if len(labels) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss(outputs, labels, num_items_in_batch)

        return refuse

    train = "{epochs: 1, batch_size: 8, learning_rate: 1e-3, seed: 7, precision: float32}"
    path = recipe(
        family, merge="false", train=train, task="{type: classify, label_smoothing: 0.1, class_weights: balanced}"
    )
    whole = run(Request(path, out=tmp_path / "whole"), QUIET).folder
    monkeypatch.setattr(classify, "loss_function", small)
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    assert json.loads((folder / "train.json").read_text())["micro_batch_size"] == 1
    for name in ("loss", "grad_norm"):
        one, eight = logged(folder, name), logged(whole, name)
        assert [step for step, _ in one] == list(range(1, 13))
        np.testing.assert_allclose([value for _, value in one], [value for _, value in eight], rtol=1e-3)
    assert [line for line in capsys.readouterr().err.splitlines() if "memory" in line] == [
        f"warning: memory ran out; {rows} rows at a time from here on, still 8 a step" for rows in (4, 2, 1)
    ]


def test_memory_that_runs_out_after_training_is_told_and_the_adapter_stays(recipe, tmp_path, monkeypatch):
    from ftkit.tasks import classify

    real = classify.score

    def score(model, rows, **settings):
        if (tmp_path / "out" / "train.json").exists():
            torch.empty(2**60)
        return real(model, rows, **settings)

    path = recipe()
    with monkeypatch.context() as patch:
        patch.setattr(classify, "score", score)
        with pytest.raises(MachineError, match="memory ran out") as error:
            run(Request(path, out=tmp_path / "out"), QUIET)
    assert error.value.exit_code == 4
    assert "can't allocate memory" in str(error.value)
    assert (tmp_path / "out" / "error.txt").read_text() == f"{error.value}\n"
    before = (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    run(Request(path, out=tmp_path / "out", resume=True), QUIET)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / "merged").exists()


class Spoil(torch.autograd.Function):
    """Passes logits on and spoils their gradient."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_names_step_and_rows(recipe, tmp_path, monkeypatch, what):
    """The logits of the third step, or their gradient, are spoilt on the way into the loss."""
    from ftkit.tasks import classify

    calls = []
    real = classify.loss_function

    def broken(**settings):
        loss = real(**settings)

        def at_the_third_step(outputs, labels, num_items_in_batch=None):
            calls.append(len(labels))
            logits = outputs["logits"]
            if len(calls) == 3:
                logits = logits * float("nan") if what == "loss" else Spoil.apply(logits)
            return loss({"logits": logits}, labels, num_items_in_batch)

        return at_the_third_step

    monkeypatch.setattr(classify, "loss_function", broken)
    with pytest.raises(TrainingFailed) as error:
        run(Request(recipe(), out=tmp_path / "out"), QUIET)
    assert error.value.exit_code == 6
    assert error.value.headline == f"the {what} is nan at step 3"
    places = error.value.problems[-1].message.removeprefix("of that step: ").split(", ")
    assert len(places) == 8
    assert all(place.startswith("train.csv line ") for place in places)
    assert (tmp_path / "out" / "error.txt").read_text() == f"{error.value}\n"
    assert not (tmp_path / "out" / "adapter").exists()


def test_the_best_checkpoint_is_the_one_exported(recipe, tmp_path):
    """The learning rate is high enough for validation to get worse again; the adapter scores as it did at its best."""
    path = recipe(train="{epochs: 6, batch_size: 8, learning_rate: 3e-2, schedule: constant, seed: 1}", merge="false")
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    summary = json.loads((folder / "train.json").read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    scored = {row["step"]: row["valid"]["f1"] for row in rows if "valid" in row}
    assert summary["best_value"] == max(scored.values())
    assert summary["best_step"] < summary["steps"]
    assert summary["best_step"] == min(step for step, value in scored.items() if value == max(scored.values()))
    # evaluate() has compared the reloaded adapter's validation loss with the one of that step, or it would have raised.
    assert [row["step"] for row in rows if row.get("best")][-1] == summary["best_step"]


def test_one_writer_at_a_time_and_a_dead_one_s_lock_is_taken_over(recipe, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ftkit.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    path = recipe(merge="false", train="{epochs: 0.1, batch_size: 8}")
    with pytest.raises(RecipeError) as error:
        run(Request(path, out=tmp_path / "out"), QUIET)
    assert error.value.headline == f"{tmp_path / 'out'} is in use"
    assert f"process {holder.pid} on " in error.value.problems[0].message
    holder.kill()
    holder.communicate()
    assert (run(Request(path, out=tmp_path / "out"), QUIET).folder / "eval.json").exists()


def test_other_seeds_show_the_spread_and_change_nothing_else(recipe, tmp_path):
    """The first seed's adapter is the one measured and merged, byte for byte what it is without the others."""
    train = "{epochs: 1, batch_size: 8, learning_rate: 1e-3, seed: 7"
    alone = run(Request(recipe(train=train + "}", merge="false"), out=tmp_path / "alone"), QUIET).folder
    path = recipe(train=train + ", seeds: 3}", merge="false", eval="{metrics: [accuracy, log_loss]}")
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    weights = "adapter/adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (alone / weights).read_bytes()
    report = json.loads((folder / "eval.json").read_text())
    assert set(report["seeds"]) == {"8", "9"}
    assert all(set(metrics) == {"accuracy", "log_loss"} for metrics in report["seeds"].values())
    losses = {report["models"]["adapter"]["metrics"]["log_loss"], *(m["log_loss"] for m in report["seeds"].values())}
    assert len(losses) == 3
    assert all((folder / "seeds" / seed / weights).exists() for seed in ("8", "9"))
    assert "lowest to highest" in (folder / "report.html").read_text(encoding="utf-8")
    assert "lowest to highest" in (folder / "README.md").read_text(encoding="utf-8")
    assert not list(folder.rglob("checkpoints"))


def test_a_figure_that_the_validation_rows_leave_undefined_chooses_no_checkpoint(recipe, tmp_path):
    path = recipe(train="{epochs: 1, batch_size: 32, best_by: roc_auc}")
    write_csv(tmp_path / "valid.csv", [row for row in sentences(24, 2) if row[1] == "good"])
    with pytest.raises(TrainingFailed, match="no checkpoint can be chosen") as caught:
        run(Request(path, out=tmp_path / "out"), QUIET)
    (problem,) = [problem for problem in caught.value.problems if problem.subject == "train.best_by"]
    message = "roc_auc is undefined on the validation rows. Write another figure, or a larger data.valid."
    assert problem.message == message
