"""The merges of runs: into which base, how far from the adapter, whose adapter it is, and merging a run again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit import __version__
from ftkit.console import Console
from ftkit.errors import DataError, GateNotMet, NotProved, RecipeError
from ftkit.models.fingerprint import check_base, read_fingerprint
from ftkit.models.locate import BaseFiles
from ftkit.recipe.load import load
from ftkit.remerge import merge_run
from ftkit.rundir import RunDir
from tests.conftest import sentences, write_csv
from tests.conversations import carried_out, read, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = Console(quiet=True, results=False)
LABELS = {
    "task": "{type: classify, labels: [bad, good]}",
    "data": "{train: train.csv, valid: valid.csv, test: test.csv}",
    "train": "{epochs: 8, batch_size: 8, learning_rate: 5e-3, precision: float32, seed: 7, best_by: log_loss}",
}
QLORA = "{type: lora, r: 8, alpha: 16, quantize: nf4}"
FOUR_BITS = {
    "adapter": QLORA,
    "train": "{epochs: 4, batch_size: 8, learning_rate: 1e-2, precision: float32, seed: 7}",
    "eval": "{metrics: [perplexity]}",
}


def labelled(folder: Path, base: Path, **sections: str) -> Path:
    """A recipe that learns labels, with its rows."""
    for name, count, seed in (("train", 48, 1), ("valid", 40, 2), ("test", 40, 3)):
        write_csv(folder / f"{name}.csv", sentences(count, seed))
    return write_recipe(folder, base, **{**LABELS, **sections})


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestTheRecipe:
    @pytest.mark.parametrize(
        ("adapter", "merge", "data", "key", "message"),
        [
            ("lora", "{into: full}", None, "into", "is for a base in 4 bits (adapter.quantize). Remove it."),
            ("loftq", "{into: full}", None, "into",
             "a LoftQ adapter holds what 4 bits lose, so it fits them alone. Write dequantised."),
            ("loftq", "{into: auto}", None, "into",
             "a LoftQ adapter holds what 4 bits lose, so it fits them alone. Write dequantised."),
            ("qlora", "{into: auto}", "{train: train.csv, valid: 0%, test: test.csv}", "into",
             "auto needs validation rows, and data.valid is 0%. Write a larger share, full or dequantised."),
            ("qlora", "{into: dequantized}", None, "into",
             "got 'dequantized'. Did you mean dequantised? Choices: auto, dequantised, full."),
            ("lora", "{tolerance: 1}", None, "tolerance", "got 1. Write a number of at least 0 and below 1."),
            ("lora", "{tolerance: .nan}", None, "tolerance", "got .nan. Write a number of at least 0 and below 1."),
            ("lora", "{to: full}", None, "to", "unknown key. Did you mean into? Keys here: into, tolerance."),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, tmp_path, adapter, merge, data, key, message):
        more = {} if data is None else {"data": data}
        keys = {**LABELS, "train": "{epochs: 1}", "adapter": adapter, "merge": merge}
        path = write_recipe(tmp_path, "a/base", **{**keys, **more})
        with pytest.raises(RecipeError) as caught:
            load(path)
        assert [(problem.subject, problem.message) for problem in caught.value.problems] == [(f"merge.{key}", message)]
        assert caught.value.exit_code == 2

    def test_a_model_from_scratch_has_nothing_to_merge_in_any_form(self, tmp_path):
        scratch = {"base": "{init: llama, layers: 1, hidden: 64, vocab: 512}", "task": "{type: pretrain}"}
        text = {**scratch, "name": "x", "data": "{train: {docstrings: [json]}}", "merge": "{tolerance: 0.1}"}
        path = tmp_path / "recipe.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in text.items()), encoding="utf-8")
        with pytest.raises(RecipeError, match="a model from scratch has no adapter to merge"):
            load(path)

    @pytest.mark.parametrize(
        ("merge", "truth", "into", "tolerance"),
        [("true", True, "full", 0.005), ("false", False, "full", 0.005), ("{into: auto}", True, "auto", 0.005),
         ("{tolerance: 0.02}", True, "full", 0.02), ("{}", True, "full", 0.005)],
    )  # fmt: skip
    def test_short_and_long_form(self, tmp_path, merge, truth, into, tolerance):
        recipe = load(write_recipe(tmp_path, "a/base", **{**LABELS, "adapter": "qlora", "merge": merge})).recipe
        assert (bool(recipe.merge), recipe.merging.into, recipe.merging.tolerance) == (truth, into, tolerance)


@pytest.fixture(scope="module")
def quantised(pico, tmp_path_factory, one_thread) -> Path:
    """A run on a base in 4 bits that chooses by the validation rows what to merge into."""
    folder = tmp_path_factory.mktemp("quantised")
    path = labelled(folder, pico("bert"), adapter=QLORA, merge="{into: auto}")
    return carried_out(path, folder / "run")


def with_adapter(folder: Path, base: Path, *, four_bits: bool):
    """The run's adapter on its base, by plain transformers and peft: in float32, as its 4 bits stand or as stored."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    kept = ["classifier", "pooler"]
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": kept}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **nf4)
    more = {"quantization_config": config} if four_bits else {}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32, **more)
    return PeftModel.from_pretrained(model.dequantize(torch.float32) if four_bits else model, folder / "adapter").eval()


def log_loss(model, folder: Path, file: Path) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    rows = [line.rpartition(",") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    batch = tokenizer([text for text, _, _ in rows], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        found = model(**batch).logits.log_softmax(-1)
    return -float(
        np.mean([float(row[["bad", "good"].index(label)]) for row, (*_, label) in zip(found, rows, strict=True)])
    )


class TestABaseInFourBits:
    def test_the_validation_rows_choose_what_is_merged_into(self, quantised, pico):
        """Both figures are those that plain peft gives, and the better base is merged into."""
        proof = read(quantised, "merge.json")
        base, file = pico("bert"), quantised.parent / "valid.csv"
        figures = {
            name: log_loss(with_adapter(quantised, base, four_bits=bits), quantised, file)
            for name, bits in (("full", False), ("dequantised", True))
        }
        assert abs(figures["full"] - figures["dequantised"]) > 1e-5
        chosen = dict(proof["chosen_by"])
        assert chosen.pop("metric") == "log_loss"
        assert chosen == pytest.approx(figures, abs=1e-6)
        assert proof["into"] == min(figures, key=figures.get)
        assert proof["passed"]

    def test_the_merged_model_is_compared_with_what_was_measured(self, quantised):
        proof, models = read(quantised, "merge.json"), read(quantised, "eval.json")["models"]
        against = proof["quantised"]
        assert against["metric"] == proof["metric"] == "f1"
        assert against["adapter"] == models["adapter"]["metrics"]["f1"]
        assert against["merged"] == models["merged"]["metrics"]["f1"]
        assert 0 <= against["argmax_agreement"] <= 1

    def test_plan_card_and_report_tell_it(self, quantised):
        proof = read(quantised, "merge.json")
        decided = {each["key"]: each for each in read(quantised, "plan.json")["decisions"]}
        assert decided["merge.into"] == {
            "key": "merge.into",
            "value": "auto",
            "why": "the better of full and dequantised on the validation rows is merged",
        }
        named = {"full": "the base in full precision", "dequantised": "the dequantised base"}
        into = f"{named[proof['into']]} (validation log loss "
        card, page = ((quantised / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
        assert f"It was merged into {into}" in card
        assert "compared with the base in 4 bits, the largest logit difference is " in card
        assert into in page
        assert "Compared with the adapter on the base in 4 bits" in page

    def test_merged_into_the_dequantised_base_it_is_what_was_measured(self, decoder, tmp_path):
        """And so it is when it is merged again, to the byte."""
        from transformers import AutoModelForCausalLM

        path = write_recipe(tmp_path, decoder("llama"), **FOUR_BITS, merge="{into: dequantised}")
        folder = carried_out(path, tmp_path / "run")
        proof, models = read(folder, "merge.json"), read(folder, "eval.json")["models"]
        assert (proof["into"], "chosen_by" in proof) == ("dequantised", False)
        found = proof["quantised"]
        assert found["adapter"] == pytest.approx(models["adapter"]["metrics"]["perplexity"])
        assert found["merged"] == pytest.approx(models["merged"]["metrics"]["perplexity"])
        assert found["merged"] == pytest.approx(found["adapter"], rel=1e-4)
        assert found["max_abs_logit_diff"] < 1e-3
        config = AutoModelForCausalLM.from_pretrained(folder / "merged").config
        assert not hasattr(config, "quantization_config")
        again = merge_run(RunDir(folder), tmp_path / "again", QUIET)
        assert again["quantised"] == pytest.approx(found)
        weights = "model.safetensors"
        assert (tmp_path / "again" / weights).read_bytes() == (folder / "merged" / weights).read_bytes()

    def test_a_metric_that_falls_by_more_than_tolerated_refuses_the_name(self, decoder, tmp_path):
        """The adapter was trained on the 4 bits, and is worse on full weights; what is tolerated decides."""
        path = write_recipe(tmp_path, decoder("llama"), **FOUR_BITS, merge="{tolerance: 0}")
        with pytest.raises(NotProved) as caught:
            carried_out(path, tmp_path / "run")
        proof = read(tmp_path / "run", "merge.json")
        assert caught.value.exit_code == 7
        assert str(caught.value) == (
            "error: the merged model is not shown to be the trained one\n"
            f"  metric_diff   got {proof['metric_diff']:.6g}, tolerated 0. The adapter is kept."
        )
        assert proof["into"] == "full"
        found = proof["quantised"]
        assert proof["metric_diff"] == pytest.approx(found["merged"] / found["adapter"] - 1)
        assert proof["metric_diff"] > 1e-4
        assert found["max_abs_logit_diff"] > 1e-3
        assert not (tmp_path / "run" / "merged").exists()


@pytest.fixture(scope="module")
def unmerged(pico, tmp_path_factory, one_thread) -> Path:
    """A run whose recipe says merge: false, with a base of its own beside it."""
    folder = tmp_path_factory.mktemp("unmerged")
    shutil.copytree(pico("bert"), folder / "base")
    path = labelled(folder, folder / "base", adapter="{type: lora, r: 4}", gate="{accuracy: {min: 0.1}}", merge="false")
    return carried_out(path, folder / "run")


@pytest.fixture
def copied(unmerged, tmp_path, monkeypatch) -> Path:
    """A copy of all of it, and of its paths, for a test to change."""
    shutil.copytree(unmerged.parent, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        if path.suffix in (".json", ".yaml"):
            path.write_text(path.read_text("utf-8").replace(str(unmerged.parent), str(tmp_path / "copy")), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "copy" / "run"


def move(folder: Path) -> None:
    """Makes another model of the one in a folder, with the same shapes, as training it would."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({name: weight + 0.25 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})


class TestWhoseAdapterItIs:
    def test_a_training_notes_its_base_beside_the_adapter(self, unmerged):
        noted = json.loads((unmerged / "adapter" / "ftkit.json").read_text("utf-8"))
        assert noted == {
            "ftkit": __version__,
            "base": "base",
            "revision": None,
            "base_sha256": read(unmerged, "plan.json")["base"]["sha256"],
            "init": "default",
        }

    def test_other_weights_of_the_same_shapes_are_refused_where_the_adapter_is_used(self, copied):
        from ftkit.models.hardware import settle_machine
        from ftkit.predict import load_predictor

        machine = settle_machine()
        before, (answer,) = (
            read(copied, "plan.json")["base"]["sha256"],
            load_predictor(RunDir(copied), machine).predict(["the film was great"]),
        )
        assert answer["prediction"] == ["good"]
        base = copied.parent / "base"
        os.utime(base / "model.safetensors")
        load_predictor(RunDir(copied), machine)
        move(base)
        now = BaseFiles("base", "folder", base, None).sha256()
        with pytest.raises(DataError) as caught:
            load_predictor(RunDir(copied), machine)
        assert caught.value.exit_code == 3
        assert str(caught.value) == (
            f"error: {copied / 'adapter'} belongs to another base\n"
            f"  base   {base} has weights with SHA-256 {now[:12]}…, the adapter was trained on base with {before[:12]}…. "
            "Give it that base, or train again on this one."
        )

    def test_an_adapter_without_a_note_is_taken_at_its_word_and_a_damaged_note_is_not(self, copied):
        base = BaseFiles("base", "folder", copied.parent / "base", None)
        note = copied / "adapter" / "ftkit.json"
        note.write_text('{"ftkit": "0.1"', encoding="utf-8")
        with pytest.raises(DataError, match="cannot be read"):
            check_base(copied / "adapter", base)
        note.unlink()
        assert read_fingerprint(copied / "adapter") is None
        check_base(copied / "adapter", base)


class TestARunIsMergedAgain:
    def test_one_that_was_not_merged_is_merged_and_proved(self, copied):
        """From its own copy of the recipe: the one that it was made from has changed since."""
        recipe = copied.parent / "recipe.yaml"
        recipe.write_text(recipe.read_text("utf-8").replace("epochs: 8", "epochs: 1"), encoding="utf-8")
        (copied / "error.txt").write_text("error: as a failed merge leaves it", encoding="utf-8")
        before, reported = everything(copied), read(copied, "eval.json")
        proof = merge_run(RunDir(copied), None, QUIET)
        now = everything(copied)
        same = {"recipe.yaml", "plan.json", "train.json", "train.jsonl", "predictions.jsonl"}
        assert {name: now[name] for name in before if name in same or name.startswith("adapter/")} == {
            name: text for name, text in before.items() if name in same or name.startswith("adapter/")
        }
        assert proof == read(copied, "merge.json")
        assert (proof["passed"], proof["method"], proof["rows"]) == (True, "lora", 40)
        found = read(copied, "eval.json")
        assert found["models"].pop("merged")["metrics"] == pytest.approx(reported["models"]["adapter"]["metrics"])
        assert found == reported
        listed = read(copied, "manifest.json")
        assert "merged/model.safetensors" in listed
        assert {name for name in now if not Path(name).name.startswith(".")} == {*listed, "manifest.json"}
        assert "The merged model is the trained one" in (copied / "README.md").read_text("utf-8")
        assert not (copied / "error.txt").exists()
        assert not [path for path in copied.iterdir() if path.name.startswith(".merging")]

    def test_into_a_folder_of_its_own_it_leaves_the_run_as_it_is(self, copied, tmp_path):
        from transformers import AutoModelForSequenceClassification

        before = everything(copied)
        proof = merge_run(RunDir(copied), tmp_path / "some" / "where", QUIET)
        after = everything(copied)
        after.pop(".lock", None)
        assert after == {name: text for name, text in before.items() if name != ".lock"}
        assert read(tmp_path / "some" / "where", "merge.json") == proof
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "some" / "where")
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert [path.name for path in (tmp_path / "some").iterdir()] == ["where"]

    def test_what_is_not_proved_leaves_the_merged_model_of_before(self, copied, monkeypatch):
        from ftkit.proof import FreshProcess

        (copied / "merged").mkdir()
        (copied / "merged" / "model.safetensors").write_text("of before", encoding="utf-8")
        honest = FreshProcess.logits

        def spoiled(self, folder, rows, **options):
            move(folder)
            return honest(self, folder, rows, **options)

        monkeypatch.setattr(FreshProcess, "logits", spoiled)
        before = everything(copied)
        with pytest.raises(NotProved) as caught:
            merge_run(RunDir(copied), None, QUIET)
        assert str(caught.value).endswith("The merged model of before stays.")
        assert {**everything(copied), ".lock": b""} == {**before, ".lock": b""}

    def test_a_gate_that_is_not_met_merges_nothing(self, copied):
        report = read(copied, "eval.json")
        report["gate"] = {
            "passed": False,
            "reasons": [{"metric": "accuracy", "need": "at least 1", "got": "0.9", "passed": False}],
            "undecided": [],
        }
        (copied / "eval.json").write_text(json.dumps(report), encoding="utf-8")
        with pytest.raises(GateNotMet) as caught:
            merge_run(RunDir(copied), None, QUIET)
        assert caught.value.exit_code == 5
        assert str(caught.value) == (
            "error: the gate is not met\n"
            "  accuracy   needs at least 1; got 0.9.\n"
            f"  Not merged. The adapter and the report are kept in {copied}."
        )

    def test_data_that_has_moved_or_changed_is_told(self, copied):
        test = copied.parent / "test.csv"
        write_csv(test, sentences(40, 5))
        with pytest.raises(DataError) as caught:
            merge_run(RunDir(copied), None, QUIET)
        assert str(caught.value) == (
            f"error: the test rows of {copied} are not those it was measured on\n"
            "  data   They have changed since, so nothing can be proved on them. Put them back as they were."
        )
        test.unlink()
        with pytest.raises(DataError) as caught:
            merge_run(RunDir(copied), None, QUIET)
        assert caught.value.exit_code == 3
        first, second, third = str(caught.value).splitlines()
        assert first == f"error: the data of {copied} cannot be read again"
        assert f"there is no test.csv in {copied.parent}" in second
        assert third == (
            "  data   The run read its data from where it was started, with: "
            f"ftkit run {copied.parent / 'recipe.yaml'}. Put it back, or start there."
        )
        assert not (copied / "merged").exists()

    def test_another_base_is_refused(self, copied):
        move(copied.parent / "base")
        with pytest.raises(DataError, match="belongs to another base"):
            merge_run(RunDir(copied), None, QUIET)

    def test_what_cannot_be_merged_is_told(self, copied, tmp_path):
        def refused(out: Path | None = None) -> str:
            with pytest.raises(RecipeError) as caught:
                merge_run(RunDir(copied), out, QUIET)
            return str(caught.value).removeprefix("error: ")

        assert refused(copied.parent) == (
            f"{copied.parent} is not empty\n  --out   Choose a folder of its own for the model."
        )
        shutil.move(copied / "adapter", copied / "model")
        assert refused() == (
            f"{copied} has no adapter to merge\n"
            "  RUN   A model from scratch is whole as it is. Name a run with an adapter."
        )
        (copied / "eval.json").unlink()
        assert refused() == (
            f"{copied} was not evaluated\n"
            f"  RUN   Go on with it first: ftkit run {copied / 'recipe.yaml'} --out {copied} --resume"
        )
