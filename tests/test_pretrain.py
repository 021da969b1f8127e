"""Whole pretraining runs on pico models: what lands on disk, what is measured, and what is refused."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import textwrap
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit.console import Console
from ftkit.errors import GateNotMet, NotProved, RecipeError, TrainingFailed
from ftkit.models.scratch import Scratch, build
from ftkit.models.train_tokenizer import train_tokenizer
from ftkit.pipeline import Request, run
from tests.trainings import stopped_midway

QUIET = Console(quiet=True, results=False)
ANIMALS = ["cat", "dog", "hen", "fox", "owl", "cow", "rat", "bee"]
VERBS = ["sees", "hears", "follows", "greets", "meets", "helps"]
PLACES = ["garden", "meadow", "kitchen", "forest", "harbour", "library", "market", "station", "village", "workshop"]
TIMES = ["in the morning", "at noon", "after supper", "on Sunday", "before sunrise", "during the storm"]


@pytest.fixture(autouse=True)
def _library_warnings():
    """The command line silences the libraries' warnings during a run; so do the runs here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def story(number: int, seed: int) -> str:
    """A few sentences, the same animals in each of them: something that can be learned."""
    chance = random.Random(f"{seed}/{number}")
    one, other = chance.sample(ANIMALS, 2)
    lines = [f"The {one} {chance.choice(VERBS)} the {other}." for _ in range(chance.randint(1, 6))]
    return f"Story {number}, in the {chance.choice(PLACES)} {chance.choice(TIMES)}. " + " ".join(lines)


def write_stories(path: Path, count: int, seed: int) -> Path:
    rows = [json.dumps({"text": story(number, seed)}) for number in range(count)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_scratch(folder: Path) -> Path:
    """A recipe of a small model from scratch that is exported as GGUF, and its texts."""
    for name, count, seed in (("train", 80, 1), ("valid", 10, 2), ("test", 20, 3)):
        write_stories(folder / f"{name}.jsonl", count, seed)
    path = folder / "recipe.yaml"
    path.write_text(
        "name: pico\nbase: {init: llama, layers: 1, hidden: 64, vocab: 320, positions: 64}\n"
        "task: {type: pretrain, samples: 0}\n"
        "data: {train: train.jsonl, valid: valid.jsonl, test: test.jsonl}\n"
        "train: {epochs: 1, batch_size: 4, learning_rate: 1e-2, max_length: 64, seed: 7}\nexport: [gguf]\n"
    )
    return path


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pico language models with a byte-level tokenizer of their own: what can be quantised, and what cannot pack."""
    from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    made: dict[str, Path] = {}
    for name in ("llama", "bert", "gpt2", "mamba"):
        folder = made[name] = tmp_path_factory.mktemp(name)
        texts = [story(number, 9) for number in range(200)]
        tokenizer = train_tokenizer(iter(texts), vocab=320, max_length=64, masked=name == "bert")
        special = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
        torch.manual_seed(0)
        if name == "mamba":
            config = MambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=1, state_size=4, **special)
            model = MambaForCausalLM(config)
        elif name == "gpt2":
            shape = {"vocab_size": 320, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
            model = GPT2LMHeadModel(GPT2Config(**shape, **special))
        else:
            scratch = Scratch(init=name, layers=1, hidden=64, vocab=320, positions=64)
            model = build(scratch, tokenizer, seed=0)
        model.save_pretrained(folder)
        if name == "bert":  # as sentence encoders are published: without the head for hidden tokens
            AutoModel.from_pretrained(folder).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return made


@pytest.fixture
def recipe(tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """A function that writes a small pretraining recipe with its stories, and goes to their folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))

    def write(base: str = "llama", **sections: str | None) -> Path:
        for name, count, seed in (("train", 120, 1), ("valid", 20, 2), ("test", 30, 3)):
            write_stories(tmp_path / f"{name}.jsonl", count, seed)
        keys: dict[str, str | None] = {
            "name": "pico",
            "base": str(bases.get(base, base)),
            "task": "{type: pretrain, samples: 2}",
            "data": "{train: train.jsonl, valid: valid.jsonl, test: test.jsonl}",
            "adapter": "{type: lora, r: 8}",
            "train": "{epochs: 2, batch_size: 4, learning_rate: 1e-2, max_length: 64, seed: 7}",
        }
        path = tmp_path / "recipe.yaml"
        lines = [f"{key}: {value}\n" for key, value in (keys | sections).items() if value is not None]
        path.write_text(textwrap.dedent("".join(lines)), encoding="utf-8")
        return path

    return write


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def plain_nll(model, rows: list[list[int]]) -> float:
    """Nats of token ids under a model, by a loop that anyone would write."""
    total = 0.0
    for ids in rows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(logits[at, ids[at + 1]]) for at in range(len(ids) - 1))
    return total


def test_a_base_goes_on_learning_and_is_merged_and_proved(recipe, tmp_path):
    """The merged folder loads with transformers alone, the adapter with peft alone, and both score as reported."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = recipe(gate="{perplexity: {beat: baseline}, bits_per_byte: {max: 9}}")
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    report, plan = read(folder, "eval.json"), read(folder, "plan.json")
    assert set(report["models"]) == {"baseline", "adapter", "merged"}
    assert plan["data"]["packing"] is True
    proof = read(folder, "merge.json")
    assert proof["passed"]
    # Exported, measured and merged are the weights that were scored best, by their hash.
    assert proof["adapter_sha256"] == read(folder, "train.json")["best_sha256"]
    rows = lines(folder, "predictions.jsonl")
    assert len(rows) == report["n"] >= 30
    metrics = report["models"]["adapter"]["metrics"]
    nll, tokens, size = (sum(row[name] for row in rows) for name in ("nll", "tokens", "bytes"))
    assert metrics["perplexity"] == pytest.approx(math.exp(nll / tokens))
    assert metrics["bits_per_byte"] == pytest.approx(nll / math.log(2) / size)
    assert size == sum(len(story(number, 3).encode()) for number in range(30))
    assert metrics["perplexity"] < report["models"]["baseline"]["metrics"]["perplexity"]
    assert [row["prediction"] is None for row in rows].count(False) == 2
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    ids = [[tokenizer.bos_token_id, *tokenizer(story(n, 3), add_special_tokens=False)["input_ids"]] for n in range(30)]
    short = [row for row in ids if len(row) <= 64]
    expected = sum(row["nll"] for row, own in zip(whole(rows), ids, strict=True) if len(own) <= 64)
    base = AutoModelForCausalLM.from_pretrained(plan["base"]["folder"])
    for model in (
        AutoModelForCausalLM.from_pretrained(folder / "merged"),
        PeftModel.from_pretrained(base, folder / "adapter"),
    ):
        assert plain_nll(model.eval(), short) == pytest.approx(expected, rel=1e-4)


def whole(rows: list[dict]) -> list[dict]:
    """The first window of each document."""
    return [row for row in rows if row["id"].endswith("#1")]


def test_a_model_from_scratch_stands_alone_and_can_be_a_base(recipe, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    scratch = "{init: llama, layers: 1, hidden: 64, vocab: 320, positions: 64, weights: gpt2}"
    path = recipe(base=scratch, adapter=None, gate="{perplexity: {max: 300}}")
    folder = run(Request(path, out=tmp_path / "first"), QUIET).folder
    report = read(folder, "eval.json")
    assert set(report["models"]) == {"model"}
    assert report["comparison"] == {}
    assert not (folder / "merged").exists()
    assert not (folder / "adapter").exists()
    assert read(folder, "train.json")["trainable_parameters"] == read(folder, "plan.json")["base"]["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    rows = whole(lines(folder, "predictions.jsonl"))
    ids = [[tokenizer.bos_token_id, *tokenizer(story(n, 3), add_special_tokens=False)["input_ids"]] for n in range(30)]
    short = [number for number, row in enumerate(ids) if len(row) <= 64]
    expected = sum(rows[number]["nll"] for number in short)
    assert plain_nll(model, [ids[number] for number in short]) == pytest.approx(expected, rel=1e-4)
    second = run(Request(recipe(base=str(folder / "model"), merge="false"), out=tmp_path / "second"), QUIET).folder
    models = read(second, "eval.json")["models"]
    assert models["baseline"]["metrics"] == pytest.approx(report["models"]["model"]["metrics"])


def test_hidden_words_are_learned_and_compared_with_token_frequencies(recipe, tmp_path):
    """A base without a head: the new one, its output bias included, is trained, saved, merged and proved."""
    path = recipe(
        "bert",
        task="{type: pretrain, objective: masked, whole_word: true, mask_share: 0.3}",
        train="{epochs: 12, batch_size: 8, learning_rate: 1e-2, max_length: 64}",
        gate="{perplexity: {max: 100}}",
    )
    folder = run(Request(path, out=tmp_path / "out"), QUIET).folder
    report = read(folder, "eval.json")
    assert set(report["comparison"]) == {"adapter_vs_unigram"}
    assert set(report["models"]) == {"unigram", "adapter", "merged"}
    assert set(report["models"]["adapter"]["metrics"]) == {"perplexity"}
    assert read(folder, "plan.json")["data"]["packing"] is False
    assert read(folder, "merge.json")["passed"]
    rows = lines(folder, "predictions.jsonl")
    assert {row["bytes"] for row in rows} == {None}
    # The tokens of a window are those that were hidden: the figures can be made again from the file.
    nll, tokens = (sum(row[name] for row in rows) for name in ("nll", "tokens"))
    assert report["models"]["adapter"]["metrics"]["perplexity"] == pytest.approx(math.exp(nll / tokens))


@pytest.mark.parametrize("adapter", ["qlora", "pissa", "ia3"])
def test_other_methods_go_all_the_way(recipe, tmp_path, adapter):
    """Gradients pass 4-bit weights, PiSSA is saved as plain LoRA, and each is merged into the full-precision base."""
    folder = run(Request(recipe(adapter=adapter), out=tmp_path / "out"), QUIET).folder
    models = read(folder, "eval.json")["models"]
    assert models["adapter"]["metrics"]["perplexity"] < models["baseline"]["metrics"]["perplexity"]
    assert read(folder, "merge.json")["passed"]
    losses = [line["loss"] for line in lines(folder, "train.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_packing_is_refused_where_the_model_would_mix_documents(recipe, tmp_path):
    """Mamba has no attention to keep documents apart: it is trained unpacked unless the recipe insists."""
    adapter = "{type: lora, r: 4, targets: [in_proj]}"
    with pytest.raises(RecipeError) as error:
        run(
            Request(recipe("mamba", adapter=adapter, task="{type: pretrain, packing: true}"), out=tmp_path / "a"), QUIET
        )
    assert "line 3   task.packing   the attention of" in str(error.value)
    assert str(error.value).endswith("lets packed texts see each other. Write false.")
    quick = "{epochs: 0.1, batch_size: 4, max_length: 64}"
    folder = run(
        Request(recipe("mamba", adapter=adapter, train=quick, merge="false"), out=tmp_path / "b"), QUIET
    ).folder
    assert read(folder, "plan.json")["data"]["packing"] is False
    decided = {each["key"]: each for each in read(folder, "plan.json")["decisions"]}
    assert decided["task.packing"]["value"] is False


def test_a_merged_model_that_differs_does_not_get_the_name(recipe, tmp_path, monkeypatch):
    """The fresh process is given a model with some weights moved, as a broken merge would leave it."""
    from safetensors.torch import load_file, save_file

    from ftkit.proof import FreshProcess

    honest = FreshProcess.language

    def spoiled(self, folder, rows, **options):
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["model.layers.0.mlp.down_proj.weight"] *= 1.5
        save_file(weights, file, metadata={"format": "pt"})
        return honest(self, folder, rows, **options)

    monkeypatch.setattr(FreshProcess, "language", spoiled)
    with pytest.raises(NotProved) as error:
        run(Request(recipe(), out=tmp_path / "out"), QUIET)
    assert error.value.exit_code == 7
    assert not (tmp_path / "out" / "merged").exists()
    assert not read(tmp_path / "out", "merge.json")["passed"]


def test_a_gate_that_does_not_hold_merges_nothing(recipe, tmp_path):
    path = recipe(gate="{perplexity: {max: 1.5}}", train="{epochs: 0.1, batch_size: 4, max_length: 64}")
    with pytest.raises(GateNotMet):
        run(Request(path, out=tmp_path / "out"), QUIET)
    assert (tmp_path / "out" / "adapter").exists()
    assert not (tmp_path / "out" / "merged").exists()


def test_a_stopped_run_goes_on_to_the_losses_of_an_undisturbed_one(recipe, tmp_path):
    path = recipe(train="{epochs: 12, batch_size: 4, learning_rate: 1e-3, max_length: 64}", merge="false")
    undisturbed = run(Request(path, out=tmp_path / "whole"), QUIET).folder
    stopped_midway(path, tmp_path / "cut")
    resumed = run(Request(path, out=tmp_path / "cut", resume=True), QUIET).folder
    losses = [
        [line["loss"] for line in lines(folder, "train.jsonl") if "loss" in line] for folder in (undisturbed, resumed)
    ]
    assert len(losses[1]) == len(losses[0])
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)


def test_training_stops_early_and_the_best_model_is_exported(recipe, tmp_path):
    """So high a rate that validation gets worse again: patience ends the run, and the best step is what is measured."""
    train = "{epochs: 30, batch_size: 4, learning_rate: 0.2, schedule: constant, max_length: 64, validations: 2, patience: 3}"
    folder = run(Request(recipe(train=train, merge="false"), out=tmp_path / "out"), QUIET).folder
    summary = read(folder, "train.json")
    scored = [(line["step"], line["valid"]["loss"]) for line in lines(folder, "train.jsonl") if "valid" in line]
    assert summary["stopped_early"]
    assert summary["steps"] < 30 * math.ceil(read(folder, "plan.json")["data"]["windows"]["train"] / 4)
    best_step, best = min(scored, key=lambda pair: pair[1])
    assert (summary["best_step"], summary["best_value"]) == (best_step, best)
    assert len([step for step, _ in scored if step > best_step]) == 3
    # evaluate() has compared the reloaded adapter's validation loss with that step's, or it would have raised.
    assert "stopped early" in (folder / "README.md").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedule", "cosine"), ("schedule", "constant"), ("schedule", "inverse_sqrt"), ("schedule", "wsd"),
        ("warmup", "0.5"),
    ],
)  # fmt: skip
def test_schedules_and_warm_up_shape_the_learning_rate(recipe, tmp_path, key, value):
    keys = {"epochs": "2", "batch_size": "4", "learning_rate": "1e-3", "max_length": "64", "warmup": "0", key: value}
    train = "{" + ", ".join(f"{name}: {each}" for name, each in keys.items()) + "}"
    path = recipe(train=train, task="{type: pretrain, samples: 0}", merge="false")
    rates = [
        line["learning_rate"]
        for line in lines(run(Request(path, out=tmp_path / "out"), QUIET).folder, "train.jsonl")
        if "loss" in line
    ]
    steps = len(rates)
    shares = np.arange(steps) / steps
    match key, value:
        case "warmup", _:
            assert rates[0] < 2e-4
            assert max(range(steps), key=rates.__getitem__) == pytest.approx(steps / 2, abs=1.5)
        case _, "cosine":
            np.testing.assert_allclose(rates, 1e-3 * (1 + np.cos(np.pi * shares)) / 2, atol=1e-4)
        case _, "constant":
            assert set(rates) == {1e-3}
        case _, "inverse_sqrt":
            assert all(later <= earlier for earlier, later in pairwise(rates))
            assert rates[-1] > 0
        case _, "wsd":
            assert rates[: int(steps * 0.7)] == [1e-3] * int(steps * 0.7)
            assert rates[-1] < 5e-4


@pytest.mark.parametrize(
    ("section", "value"),
    [("train", "weight_decay: 0.5"), ("adapter", "dropout: 0.5"), ("train", "learning_rate: 5e-3")],
)
def test_a_key_changes_what_is_trained(recipe, tmp_path, section, value):
    from safetensors.torch import load_file

    quick = "{type: pretrain, samples: 0}"
    plain = {"train": "epochs: 1, batch_size: 4, max_length: 64, seed: 7", "adapter": "type: lora, r: 4"}
    changed = plain | {section: f"{plain[section]}, {value}"}
    found = []
    for name, keys in (("plain", plain), ("changed", changed)):
        sections = {key: f"{{{text}}}" for key, text in keys.items()}
        folder = run(Request(recipe(task=quick, merge="false", **sections), out=tmp_path / name), QUIET).folder
        found.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
    one, other = found
    assert any(not torch.equal(one[name], other[name]) for name in one)
    if value.startswith("weight_decay"):
        norms = [sum(float(weight.norm()) for name, weight in own.items() if "lora_A" in name) for own in found]
        assert norms[1] < norms[0]


def test_a_loss_that_does_not_move_is_said(recipe, tmp_path, capsys):
    path = recipe(train="{epochs: 2, batch_size: 4, learning_rate: 1e-9, max_length: 64}", merge="false")
    folder = run(Request(path, out=tmp_path / "out"), Console(results=False)).folder
    assert read(folder, "train.json")["loss_moved"] is False
    assert "warning: the loss did not move" in capsys.readouterr().err
    assert "did not move" in (folder / "report.html").read_text(encoding="utf-8")


def test_weights_that_are_not_finite_stop_the_run_with_the_batch_written_down(recipe, tmp_path):
    """A rate at which the weights overflow within a few steps."""
    path = recipe(train="{epochs: 3, batch_size: 4, learning_rate: 0.99, max_length: 64, precision: float32}",
                  adapter="{type: lora, r: 8, alpha: 1e30}")  # fmt: skip
    with pytest.raises(TrainingFailed) as error:
        run(Request(path, out=tmp_path / "out"), QUIET)
    assert error.value.exit_code == 6
    assert " at step " in error.value.headline
    batch = lines(tmp_path / "out", "failed_batch.jsonl")
    assert 1 <= len(batch) <= 4
    assert all(row["where"].startswith("train.jsonl line ") for row in batch)
    assert all(row["input_ids"] for row in batch)


def test_a_batch_cut_into_micro_batches_trains_the_same(recipe, tmp_path, monkeypatch):
    """One window at once or four: the losses and the gradients of each step are the same."""
    from ftkit.tasks import batches

    path = recipe(task="{type: pretrain, samples: 0}", merge="false",
                  train="{epochs: 1, batch_size: 4, max_length: 64, precision: float32}")  # fmt: skip
    found = []
    for name, tokens in (("four", 4096), ("one", 64)):
        monkeypatch.setattr(batches, "_NARROW_TRAINED_AT_ONCE", tokens)
        folder = run(Request(path, out=tmp_path / name), QUIET).folder
        steps = [line for line in lines(folder, "train.jsonl") if "loss" in line]
        found.append((read(folder, "train.json")["micro_batch_size"], steps))
    assert [micro for micro, _ in found] == [4, 1]
    for figure in ("loss", "grad_norm"):
        np.testing.assert_allclose(*([step[figure] for step in steps] for _, steps in found), rtol=1e-4)


def test_weights_of_sources_decide_their_share_of_an_epoch(recipe, tmp_path):
    write_stories(tmp_path / "few.jsonl", 20, 5)
    data = "{train: [train.jsonl, few.jsonl], valid: valid.jsonl, test: test.jsonl, weights: [1, 1]}"
    path = recipe(data=data, task="{type: pretrain, packing: false, samples: 0}", merge="false")
    plan = read(run(Request(path, out=tmp_path / "out"), QUIET).folder, "plan.json")
    documents = plan["data"]["splits"]["train"]
    assert plan["data"]["windows"]["train"] > 1.6 * documents
    files = {file["path"]: file["rows"] for file in plan["data"]["files"]}
    assert files == {"train.jsonl": 120, "few.jsonl": 20, "valid.jsonl": 20, "test.jsonl": 30}


def test_predict_goes_on_with_texts_and_fills_gaps(recipe, tmp_path):
    """Through the command line: stdout, JSON and CSV; a text without a gap is refused."""
    run(Request(recipe(merge="false"), out=tmp_path / "causal"), QUIET)
    masked = "{type: pretrain, objective: masked}"
    run(Request(recipe("bert", task=masked, merge="false"), out=tmp_path / "masked"), QUIET)

    def predict(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ftkit", "predict", *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})

    done = predict("causal", "--text", "Story 4. The", "--text", "Story", "--json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["input"] for answer in answers] == ["Story 4. The", "Story"]
    assert all(isinstance(answer["prediction"], str) for answer in answers)
    alone = predict("causal", "--text", "Story", "--json")
    # Padding and company change nothing but, late in so small a model, ties.
    assert json.loads(alone.stdout)["prediction"][:20] == answers[1]["prediction"][:20]
    assert predict("causal", "--text", "a", "--out", "o.csv").returncode == 0
    assert (tmp_path / "o.csv").read_text().startswith("input,prediction\n")
    filled = predict("masked", "--text", "The cat <|mask|> the dog.", "--json")
    assert "<|mask|>" not in json.loads(filled.stdout)["prediction"]
    refused = predict("masked", "--text", "The cat")
    assert refused.returncode == 3
    assert "has none" in refused.stderr


def test_a_run_is_measured_again_and_compared(recipe, tmp_path):
    """On the run's own test file the figures come out as reported; runs of other texts or tasks are not compared."""
    from ftkit.errors import DataError
    from ftkit.measured import compare_runs, evaluate_again
    from ftkit.models.hardware import settle_machine
    from ftkit.rundir import RunDir

    one = run(Request(recipe(merge="false"), out=tmp_path / "one"), QUIET)
    again, _ = evaluate_again(one, "test.jsonl", settle_machine())
    report = read(one.folder, "eval.json")
    for name in ("baseline", "adapter"):
        assert dict(again.models[name].metrics) == pytest.approx(report["models"][name]["metrics"], rel=1e-5)
    assert again.unit == "window"
    with pytest.raises(RecipeError, match="nothing to measure on"):
        evaluate_again(one, None, settle_machine())
    scratch = "{init: llama, layers: 1, hidden: 64, vocab: 384, positions: 64}"
    other = run(Request(recipe(base=scratch, adapter=None), out=tmp_path / "other"), QUIET)
    compared = compare_runs([RunDir(one.folder), RunDir(other.folder)])
    assert compared.unit == "document"  # another tokenizer: bytes are what both have
    name = f"{tmp_path.name}/other"
    assert dict(compared.models[name].metrics) == pytest.approx(
        {"bits_per_byte": read(other.folder, "eval.json")["models"]["model"]["metrics"]["bits_per_byte"]}
    )
    write_stories(tmp_path / "more.jsonl", 30, 8)
    data = "{train: train.jsonl, valid: valid.jsonl, test: more.jsonl}"
    third = run(Request(recipe(data=data, merge="false"), out=tmp_path / "third"), QUIET)
    with pytest.raises(DataError, match="cannot be compared"):
        compare_runs([RunDir(one.folder), RunDir(third.folder)])
