"""Exports of models and runs: what stands on disk equals the model, is scored on the run's rows, or does not get its name."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ftkit.cli.export import export_model
from ftkit.console import Console
from ftkit.errors import DataError, MachineError, NotProved, RecipeError
from ftkit.export import onnx
from ftkit.export.convert import Safetensors, check_converted
from ftkit.export.formats import FORMATS, exporting, parse
from ftkit.export.source import Source
from ftkit.export.tensors import read_index
from ftkit.ladder.rungs import export_run, fall_of
from ftkit.models.hardware import settle_machine
from ftkit.remerge import merge_run
from ftkit.report import rungs
from ftkit.report.story import Story
from ftkit.rundir import RunDir
from tests.conftest import FAMILIES, pico_config, sentences, write_csv
from tests.conversations import carried_out, lines, read, write_recipe

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
QUIET = Console(quiet=True, results=False)


@pytest.fixture(scope="module")
def classified(pico, tmp_path_factory, one_thread) -> Path:
    """A finished run of a classifier with a head, with an export that its recipe asks for."""
    folder = tmp_path_factory.mktemp("classified")
    for name, count, seed in (("train", 96, 1), ("valid", 24, 2), ("test", 60, 3)):
        write_csv(folder / f"{name}.csv", sentences(count, seed))
    path = write_recipe(
        folder,
        pico("bert"),
        task="{type: classify, labels: [bad, good]}",
        data="{train: train.csv, valid: valid.csv, test: test.csv}",
        adapter="{type: lora, r: 8, alpha: 32}",
        train="{epochs: 8, batch_size: 8, learning_rate: 2e-3, seed: 7}",
        export="[safetensors:float16, onnx]",
    )
    return carried_out(path, folder / "out")


@pytest.fixture(scope="module")
def no_llama_cpp():
    """As where llama.cpp is not installed: GGUF files are read by transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "llama_cpp", None)
        yield


@pytest.fixture(scope="module")
def answering(decoder, tmp_path_factory, one_thread, no_llama_cpp) -> Path:
    """A finished run of a decoder that answers."""
    folder = tmp_path_factory.mktemp("answering")
    export = '["safetensors:bfloat16", "gguf:f32", "gguf:q8_0", ollama, lora-gguf]'
    path = write_recipe(
        folder, decoder("llama"), train="{epochs: 4, batch_size: 8, learning_rate: 1e-2, seed: 7}", export=export
    )
    return carried_out(path, folder / "out")


@pytest.fixture
def run(classified, tmp_path) -> RunDir:
    """A copy of the finished run that a test may spoil."""
    return RunDir(Path(shutil.copytree(classified, tmp_path / "run")))


@pytest.fixture
def model(classified, tmp_path) -> Path:
    return Path(shutil.copytree(classified / "merged", tmp_path / "model"))


def exported(target: str, source: Source, out: Path) -> Path:
    with exporting(parse(target), source, out):
        pass
    return out


def change(folder: Path, name: str, value: float) -> None:
    """One number of a tensor in a folder's weights."""
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def measured(report: dict[str, Any], name: str) -> dict[str, float]:
    return {metric: value for metric, value in report["models"][name]["metrics"].items() if value is not None}


class TestSafetensors:
    @pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
    def test_every_number_is_the_rounding_of_its_source(self, model, tmp_path, kind):
        out = exported(f"safetensors:{kind}", Source(model), tmp_path / "out")
        before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(after[name], tensor.to(getattr(torch, kind)))

    def test_the_folder_is_complete_and_loads_with_transformers_alone(self, model, tmp_path):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        out = exported("safetensors:bfloat16", Source(model), tmp_path / "out")
        names = {file.name for file in out.iterdir()}
        assert names == {file.name for file in model.iterdir()} | {"export.json"}
        loaded = AutoModelForSequenceClassification.from_pretrained(out)
        assert loaded.dtype == torch.bfloat16
        assert loaded.config.id2label == {0: "bad", 1: "good"}
        assert AutoTokenizer.from_pretrained(out)("the film")["input_ids"] == [
            *AutoTokenizer.from_pretrained(model)("the film")["input_ids"]
        ]
        assert read(out, "labels.json") == read(model, "labels.json")

    def test_left_out_the_type_is_the_stored_one_and_nothing_is_rounded(self, model, tmp_path):
        assert parse("safetensors").settled(Source(model)).name == "safetensors:float32"
        half = exported("safetensors:bfloat16", Source(model), tmp_path / "half")
        again = exported("safetensors", Source(half), tmp_path / "again")
        assert (again / "model.safetensors").read_bytes() == (half / "model.safetensors").read_bytes()
        assert read(again, "export.json")["rounded"] == 0

    def test_large_tensors_scalars_and_whole_numbers(self, tmp_path):
        """Cut into pieces, or not cut at all."""
        folder = tmp_path / "model"
        folder.mkdir()
        weights = {
            "long": torch.randn(3_000_000),
            "wide": torch.randn(3, 900_000, dtype=torch.float64),
            "scalar": torch.tensor(0.1),
            "counts": torch.arange(5),
            "empty": torch.zeros(0, 4),
        }
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text('{"torch_dtype": "float32"}')
        out = exported("safetensors:float16", Source(folder), tmp_path / "out")
        found = load_file(out / "model.safetensors")
        for name, tensor in weights.items():
            want = tensor if name == "counts" else tensor.to(torch.float16)
            assert found[name].dtype == want.dtype
            assert torch.equal(found[name], want)
        assert read(out, "config.json") == {"torch_dtype": "float16"}

    def test_a_number_that_is_too_large_is_named_and_the_previous_export_stays(self, model, tmp_path):
        out = exported("safetensors:float16", Source(model), tmp_path / "out")
        before = (out / "model.safetensors").read_bytes()
        change(model, "classifier.weight", 1e5)
        with pytest.raises(DataError) as error:
            exported("safetensors:float16", Source(model), out)
        assert str(error.value) == (
            "error: the weights do not fit into float16\n"
            "  classifier.weight   holds 100000, and float16 ends at 65504. Write float32."
        )
        assert (out / "model.safetensors").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        exported("safetensors:bfloat16", Source(model), tmp_path / "other")

    def test_infinity_that_stood_there_before_is_kept(self, model, tmp_path):
        change(model, "classifier.weight", float("inf"))
        out = exported("safetensors:float16", Source(model), tmp_path / "out")
        assert torch.isinf(load_file(out / "model.safetensors")["classifier.weight"]).sum() == 1

    @pytest.mark.parametrize("kind", ["float32", "float16"])
    def test_one_bit_on_disk_is_found(self, model, tmp_path, kind):
        out = exported(f"safetensors:{kind}", Source(model), tmp_path / "out")
        file = out / "model.safetensors"
        written = bytearray(file.read_bytes())
        written[-1] ^= 1
        file.write_bytes(written)
        with pytest.raises(NotProved) as error:
            check_converted(read_index(model), out, kind)
        assert "has other numbers on disk than the source's, rounded. Report this." in str(error.value)


class TestOnnx:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_gives_torch_s_logits_at_any_length(self, tmp_path, tokenizer_folder, family):
        """Rows and lengths other than those that are compared at the export, padded to each other."""
        import onnxruntime
        from transformers import AutoModelForSequenceClassification

        folder = tmp_path / "model"
        shutil.copytree(tokenizer_folder, folder)
        config = pico_config(family)
        config.num_labels, config.pad_token_id = 3, 0
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.save_pretrained(folder)
        out = exported("onnx", Source(folder), tmp_path / "out")
        session = onnxruntime.InferenceSession(str(out / "model.onnx"))
        for count, length in ((1, 3), (5, 33), (7, 9)):
            ids = torch.randint(4, 60, (count, length))
            mask = torch.ones_like(ids)
            for row in range(1, count):
                mask[row, length - row % length :] = 0
            ids[mask == 0] = 0
            (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            with torch.no_grad():
                want = model(input_ids=ids, attention_mask=mask).logits.numpy()
            np.testing.assert_allclose(found, want, atol=1e-5)

    def test_int8_is_small_and_near(self, model, tmp_path):
        whole = exported("onnx:float32", Source(model), tmp_path / "whole")
        out = exported("onnx:int8", Source(model), tmp_path / "out")
        assert {file.name for file in out.iterdir()} == {file.name for file in whole.iterdir()}
        found = read(out, "export.json")
        assert 0 < found["max_abs_logit_diff"] <= found["tolerated"]
        assert (out / "model.onnx").stat().st_size < (whole / "model.onnx").stat().st_size / 2

    @pytest.mark.parametrize(("kind", "fix"), [("float32", "Export safetensors."), ("int8", "Write onnx:float32.")])
    def test_another_model_in_the_file_is_not_proved(self, model, tmp_path, kind, fix):
        out = exported(f"onnx:{kind}", Source(model), tmp_path / "out")
        from transformers import AutoModelForSequenceClassification

        other = AutoModelForSequenceClassification.from_pretrained(model).eval()
        with torch.no_grad():
            other.classifier.bias += torch.tensor([50.0, -50.0])
        with pytest.raises(NotProved) as error:
            onnx.check_onnx(other, out / "model.onnx", kind)
        assert str(error.value).endswith(fix)

    def test_missing_packages_are_named(self, model, tmp_path, monkeypatch):
        import importlib.util

        honest = importlib.util.find_spec
        monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnx" else honest(name))
        with pytest.raises(MachineError) as error:
            exported("onnx", Source(model), tmp_path / "out")
        assert str(error.value) == "error: onnx not installed\n  onnx   Run: pip install 'ftkit[onnx]'"

    def test_a_model_without_a_pad_token_is_refused(self, model, tmp_path):
        config = read(model, "config.json")
        (model / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
        with pytest.raises(DataError) as error:
            exported("onnx", Source(model), tmp_path / "out")
        assert "Write pad_token_id into its config.json." in str(error.value)
        assert not (tmp_path / "out").exists()


class TestTargets:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("ggfu", "got 'ggfu', and there is no format 'ggfu'. Did you mean gguf? Write one of: safetensors, gguf, ollama, "
             "onnx, lora-gguf."),
            ("onnx:int4", "got 'onnx:int4', and onnx has no type 'int4'. Did you mean int8? Write one of: float32, int8."),
            ("safetensors:bf16", "got 'safetensors:bf16', and safetensors has no type 'bf16'. Did you mean bfloat16? Write "
             "one of: float32, float16, bfloat16."),
            ("onnx:", "got 'onnx:', and onnx has no type ''. Write one of: float32, int8."),
        ],
    )  # fmt: skip
    def test_what_is_unknown(self, text, says):
        with pytest.raises(ValueError, match="Write one of") as error:
            parse(text)
        assert str(error.value) == says

    def test_capitals_of_a_type_do_not_matter(self):
        assert parse("gguf:Q4_K_M").name == "gguf:q4_k_m"

    @pytest.mark.parametrize("each", FORMATS, ids=lambda each: each.name)
    def test_every_type_can_be_asked_for(self, each):
        assert [parse(f"{each.name}:{kind}").folder for kind in each.types] == [
            f"{each.name}-{kind}" for kind in each.types
        ]

    def test_a_model_that_does_not_fit(self, model, tmp_path):
        with pytest.raises(RecipeError) as error:
            exported("gguf", Source(model), tmp_path / "out")
        assert str(error.value) == (
            f"error: no gguf of this model\n  --to   It is for a decoder, which predicts the next token, and {model} is "
            "BertForSequenceClassification. Write safetensors or onnx."
        )

    def test_only_an_export_is_replaced(self, model, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letters.txt").write_text("keep")
        (tmp_path / "file").write_text("keep")
        for place, says in (
            (
                tmp_path / "mine",
                "is not empty\n  --out   It holds no earlier export. Name a folder that is not there yet.",
            ),
            (tmp_path / "file", "is a file\n  --out   An export is a folder. Name a folder that is not there yet."),
            (model, "holds the model itself\n  --out   Name a folder that is not there yet."),
            (tmp_path, "holds the model itself\n  --out   Name a folder that is not there yet."),
        ):
            with pytest.raises(RecipeError) as error:
                exported("safetensors", Source(model), place)
            assert str(error.value) == f"error: {place} {says}"
        assert (tmp_path / "mine" / "letters.txt").exists()
        (tmp_path / "empty").mkdir()
        exported("safetensors", Source(model), tmp_path / "empty")
        exported("safetensors:float16", Source(model), tmp_path / "empty")
        assert read(tmp_path / "empty", "export.json")["type"] == "float16"

    @pytest.mark.parametrize("target", ["safetensors:float16", "onnx"])
    def test_a_disk_without_room_is_told_before_the_first_byte(self, model, tmp_path, monkeypatch, target):
        nothing = type(shutil.disk_usage("/"))(1, 1, 0)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: nothing)
        with pytest.raises(MachineError, match="no space left"):
            exported(target, Source(model), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


class TestLadder:
    def test_the_recipe_s_exports_stand_in_the_run(self, classified):
        report = read(classified, "eval.json")
        assert [*report["exports"]] == ["merged", "safetensors:float16", "onnx:float32"]
        assert report["exports"]["onnx:float32"]["reader"] == "onnxruntime"
        assert report["exports"]["safetensors:float16"]["exact"] is False
        for facts in report["exports"].values():
            assert facts["rows"] == 60
            assert facts["seconds"] > 0
            folder = classified / facts["path"]
            assert facts["bytes"] == pytest.approx(sum(file.stat().st_size for file in folder.iterdir()), abs=1000)
        manifest = read(classified, "manifest.json")
        assert "export/onnx-float32/model.onnx" in manifest

    def test_a_merged_model_that_was_changed_since_is_not_exported(self, run):
        """Not even after another export: the manifest keeps the hash that the proof was made for."""
        export_model(str(run.folder), "safetensors:float16", None, json=False)
        change(run.merged, "classifier.weight", 1.0)
        before = run.manifest.read_bytes()
        with pytest.raises(NotProved, match=r"merged/model\.safetensors has changed since the run ended"):
            export_model(str(run.folder), "safetensors", None, json=False)
        assert not (run.folder / "export" / "safetensors-float32").exists()
        assert run.manifest.read_bytes() == before

    def test_a_second_merge_makes_the_exports_of_the_recipe_again(self, run):
        before = read(run.folder, "eval.json")
        change(run.folder / "export" / "safetensors-float16", "classifier.weight", 1.0)
        merge_run(run, None, QUIET)
        after = read(run.folder, "eval.json")
        assert [*after["exports"]] == [*before["exports"]] == ["merged", "safetensors:float16", "onnx:float32"]
        assert {name: measured(after, name) for name in after["models"]} == {
            name: pytest.approx(measured(before, name)) for name in before["models"]
        }
        assert run.unchanged(run.folder / "export")

    @pytest.mark.parametrize("name", ["safetensors:float16", "onnx:float32"])
    def test_figures_are_those_of_an_independent_computation(self, classified, name):
        """With transformers and onnxruntime alone, row by row, and scikit-learn."""
        import onnxruntime
        from sklearn.metrics import accuracy_score, f1_score
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        report, rows = read(classified, "eval.json"), lines(classified, "predictions.jsonl")
        folder = classified / report["exports"][name]["path"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        merged = AutoModelForSequenceClassification.from_pretrained(classified / "merged", dtype=torch.float32).eval()
        if name == "onnx:float32":
            session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        else:
            half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        logits, before = [], []
        for row in rows:
            batch = tokenizer(row["input"], return_tensors="pt")
            given = {key: batch[key] for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                before.append(merged(**given).logits[0].numpy())
                if name == "onnx:float32":
                    logits.append(session.run(None, {key: value.numpy() for key, value in given.items()})[0][0])
                else:
                    logits.append(half(**given).logits[0].numpy())
        said = [("bad", "good")[int(each.argmax())] for each in logits]
        right = [row["reference"][0] for row in rows]
        found = report["models"][name]
        assert found["metrics"]["accuracy"] == pytest.approx(accuracy_score(right, said))
        assert found["metrics"]["f1"] == pytest.approx(f1_score(right, said, average="macro"))
        assert set(found["ci95"]) == set(report["models"]["merged"]["ci95"])
        facts = report["exports"][name]
        largest = np.abs(np.array(logits) - np.array(before)).max()
        assert facts["max_abs_logit_diff"] == pytest.approx(largest, abs=1e-5)
        same = np.mean([one.argmax() == other.argmax() for one, other in zip(logits, before, strict=True)])
        assert facts["argmax_agreement"] == pytest.approx(same)

    def test_the_report_shows_the_rungs(self, classified):
        story = Story.read(classified)
        shown = rungs.rungs(story.eval)
        assert [rung.name for rung in shown] == [
            "Majority class", "Linear probe on the frozen base", "Adapter", "Merged model", "safetensors:float16", "onnx:float32",
        ]  # fmt: skip
        assert shown[0].size == shown[0].speed == "–"
        assert "KiB" in shown[-1].size
        for page in ((classified / "README.md").read_text(), (classified / "report.html").read_text()):
            assert "onnx:float32" in page.replace("\\", "")
            assert shown[-1].size in page
            assert "Read and timed by transformers: Merged model, safetensors:float16; onnxruntime" in page.replace(
                "\\", ""
            )
        assert story.exports == ("onnx-float32", "safetensors-float16")

    def test_an_export_by_hand_joins_them(self, run, capsys):
        export_model(str(run.folder), "onnx:int8", None, json=True)
        told = json.loads(capsys.readouterr().out)
        assert told["export"] == "onnx:int8"
        report = read(run.folder, "eval.json")
        assert {*report["exports"]} == {"merged", "safetensors:float16", "onnx:float32", "onnx:int8"}
        assert report["exports"]["onnx:int8"]["bytes"] < report["exports"]["onnx:float32"]["bytes"] / 2
        assert "export/onnx-int8/model.onnx" in read(run.folder, "manifest.json")
        assert "onnx:int8" in (run.folder / "report.html").read_text()

    def test_the_command_prints_the_table_and_the_place(self, run, capsys):
        export_model(str(run.folder), "safetensors", None, json=False)
        out = capsys.readouterr().out
        assert "Merged model" in out
        assert out.splitlines()[-1] == f"safetensors:float32: {run.folder}/export/safetensors-float32"

    def test_an_export_that_scores_otherwise_is_not_proved_and_the_previous_one_stays(self, run):
        """The numbers on disk change between the comparison of tensors and the scoring."""
        target, kept = parse("safetensors:float32"), run.folder / "export" / "safetensors-float32"
        export_run(run, [target], settle_machine(), QUIET)
        before = (kept / "model.safetensors").read_bytes()
        report = (run.folder / "eval.json").read_bytes()

        class Spoiled:
            name, types, needs, reader = "safetensors", ("float32",), "model", "transformers"

            def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
                found = Safetensors().write(source, folder, kind)
                weights = load_file(folder / "model.safetensors")
                weights["classifier.bias"] += torch.tensor([50.0, -50.0])
                save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
                return found

            def read(self, folder: Path, source: Source) -> None:
                return None

        with pytest.raises(NotProved) as error:
            export_run(run, [replace(target, format=Spoiled())], settle_machine(), QUIET)
        assert error.value.headline == "safetensors:float32 is not shown to be the model"
        told = [(problem.subject, problem.message) for problem in error.value.problems]
        assert [subject for subject, _ in told] == ["f1", "max_abs_logit_diff", "argmax_agreement"]
        assert told[0][1].endswith("; tolerated: 0.005. Report this.")
        assert told[1][1] == "got 50, tolerated 0.001. Report this."
        assert (kept / "model.safetensors").read_bytes() == before
        assert (run.folder / "eval.json").read_bytes() == report

    def test_a_quantised_export_that_is_worse_is_told_and_kept(self, run, capsys):
        class Worse:
            name, types, needs, reader = "onnx", ("int8",), "head", "onnxruntime"

            def write(self, source: Source, folder: Path, kind: str) -> dict[str, Any]:
                return onnx.Onnx().write(source, folder, kind)

            def read(self, folder: Path, source: Source) -> Any:
                honest = onnx.Onnx().read(folder, source)

                def backwards(**given: Any) -> Any:
                    found = honest(**given)
                    found.logits = -found.logits
                    return found

                backwards.config, backwards.device = honest.config, honest.device
                return backwards

        done = export_run(run, [replace(parse("onnx:int8"), format=Worse())], settle_machine(), Console(quiet=True))
        facts = done.report.exports["onnx:int8"]
        assert facts.metric == "f1"
        assert facts.metric_fall > 0.5
        assert (run.folder / "export" / "onnx-int8" / "model.onnx").exists()
        (told,) = rungs.fallen(done.report)
        assert told.startswith("onnx:int8 is worse than the model it was made from: F1 0.")
        assert "warning: onnx:int8 is worse than the model it was made from: F1 0." in capsys.readouterr().err

    def test_how_a_fall_is_counted(self):
        assert fall_of("f1", 0.9, 0.8) == pytest.approx(0.1)
        assert fall_of("perplexity", 50.0, 51.0) == pytest.approx(0.02)
        assert fall_of("log_loss", 0.5, 0.4) == pytest.approx(-0.1)
        assert fall_of("bleu", 40.0, 39.0) == pytest.approx(0.01)
        assert fall_of("f1", 0.9, None) == 1
        assert fall_of("f1", None, None) == 0


class TestRuns:
    def test_what_keeps_a_run_from_being_exported(self, run):
        def refused() -> str:
            with pytest.raises(RecipeError) as error:
                export_model(str(run.folder), "safetensors", None, json=False)
            return str(error.value)

        report = read(run.folder, "eval.json")
        shutil.rmtree(run.folder / "merged")
        assert refused() == (
            f"error: {run.folder} is not merged, so there is nothing to export\n  RUN   Merge it first: ftkit merge {run.folder}"
        )
        failed = {"metric": "f1", "need": "at least 1", "got": "0.5", "passed": False}
        gate = {"passed": False, "reasons": [failed], "undecided": []}
        (run.folder / "eval.json").write_text(json.dumps(report | {"gate": gate}))
        assert refused() == (
            f"error: {run.folder} did not meet its gate, so there is nothing to export\n"
            "  RUN   f1 needs at least 1. Train longer, or change the recipe's gate."
        )
        (run.folder / "eval.json").unlink()
        assert "was not evaluated, so there is nothing to export" in refused()

    def test_an_adapter_and_an_unknown_format_are_refused(self, run, tmp_path):
        with pytest.raises(RecipeError) as error:
            export_model(str(run.folder / "adapter"), "onnx", None, json=False)
        assert f"Merge it first: ftkit merge {run.folder}/adapter --base BASE --out DIR" in str(error.value)
        with pytest.raises(RecipeError, match="no such export"):
            export_model(str(run.folder), "onxx", None, json=False)
        with pytest.raises(RecipeError, match=f"no run {tmp_path}/nothing"):
            export_model(f"{tmp_path}/nothing", "onnx", None, json=False)

    def test_a_bare_folder_is_exported_beside_it(self, model, capsys):
        export_model(str(model), "safetensors:float16", None, json=False)
        place = model.with_name("model-safetensors-float16")
        assert capsys.readouterr().out.startswith(f"{place}: safetensors:float16, ")
        assert (place / "model.safetensors").exists()

    def test_rows_that_are_gone_are_told_and_the_export_stands_without_figures(self, answering, tmp_path, capsys):
        run = RunDir(Path(shutil.copytree(answering, tmp_path / "run")))
        plan = read(run.folder, "plan.json")
        plan["command"] = f"ftkit run {tmp_path}/elsewhere/recipe.yaml"
        run.plan.write_text(json.dumps(plan))
        done = export_run(run, [parse("safetensors:bfloat16")], settle_machine(), Console(quiet=True))
        assert done.report.exports["safetensors:bfloat16"].seconds is None
        assert "safetensors:bfloat16" not in done.report.models
        assert "warning: exports are not scored, as the run's own rows cannot be read: " in capsys.readouterr().err
        shown = [rung for rung in rungs.rungs(done.report) if rung.name == "safetensors:bfloat16"]
        assert [rung.score for rung in shown] == ["–"]


class TestLanguageModels:
    def test_every_rung_of_a_decoder_that_answers(self, answering):
        """Each format that the recipe asks for, by the reader that the facts name."""
        report = read(answering, "eval.json")
        exports = report["exports"]
        assert [*exports] == ["merged", "safetensors:bfloat16", "gguf:f32", "gguf:q8_0", "ollama:f32", "lora-gguf:f32"]
        for name in ("gguf:f32", "ollama:f32"):
            assert exports[name]["exact"]
            assert exports[name]["reader"] == "transformers"
            assert exports[name]["max_abs_logit_diff"] < 1e-4
            assert measured(report, name) == pytest.approx(measured(report, "merged"), rel=1e-4)
        assert 0 < exports["gguf:q8_0"]["max_abs_logit_diff"]
        assert exports["gguf:q8_0"]["bytes"] < exports["gguf:f32"]["bytes"] / 2
        assert exports["lora-gguf:f32"]["seconds"] is None
        assert "lora-gguf:f32" not in report["models"]
        made = {path.relative_to(answering / "export").as_posix() for path in (answering / "export").glob("*/*")}
        assert made >= {
            "gguf-q8_0/model.gguf",
            "ollama-f32/Modelfile",
            "ollama-f32/model.gguf",
            "lora-gguf-f32/adapter.gguf",
        }

    def test_perplexity_is_that_of_the_file_by_transformers_alone(self, answering):
        """Nats of the answers, row by row, with the chat template of the run."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(answering / "merged")
        model = AutoModelForCausalLM.from_pretrained(
            answering / "export" / "gguf-q8_0", gguf_file="model.gguf", dtype=torch.float32
        ).eval()
        nats = tokens = 0.0
        for row, given in zip(
            lines(answering, "predictions.jsonl"), lines(answering.parent, "test.jsonl"), strict=True
        ):
            asked = [{"role": "user", "content": given["prompt"]}]
            answered = [*asked, {"role": "assistant", "content": given["completion"]}]
            options = {"tokenize": True, "return_dict": False}
            start = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options))
            ids = tokenizer.apply_chat_template(answered, **options)[: start + row["tokens"]]
            with torch.no_grad():
                shares = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(float(shares[at - 1, ids[at]]) for at in range(start, len(ids)))
            tokens += row["tokens"]
        found = read(answering, "eval.json")["models"]["gguf:q8_0"]["metrics"]["perplexity"]
        assert np.exp(nats / tokens) == pytest.approx(found, rel=1e-4)

    def test_without_llama_cpp_who_scores_is_said_once(self, answering, tmp_path, capsys):
        run = RunDir(Path(shutil.copytree(answering, tmp_path / "run")))
        export_run(run, [parse("gguf:q8_0"), parse("gguf:f16")], settle_machine(), Console(quiet=False))
        told = " ".join(capsys.readouterr().err.split())
        said = "GGUF files are scored by transformers: llama.cpp's own rounding and speed are not measured."
        assert told.count(f"{said} To have llama.cpp score them: pip install 'ftkit[llama]'") == 1

    def test_label_words(self, decoder, tmp_path, no_llama_cpp):
        from tests.test_words import TRAIN, write

        path = write(tmp_path, decoder("gpt2"), train=TRAIN(2), export='["gguf:f16", safetensors]')
        folder = carried_out(path, tmp_path / "out")
        report = read(folder, "eval.json")
        assert report["models"]["safetensors:float32"]["metrics"] == report["models"]["merged"]["metrics"]
        assert report["exports"]["safetensors:float32"]["max_abs_logit_diff"] == 0
        assert "log_loss" in report["models"]["gguf:f16"]["metrics"]
        assert (folder / "export" / "safetensors-float32" / "labels.json").exists()

    def test_a_model_from_scratch(self, tmp_path):
        """Its model/ is exported, and scored on its own windows."""
        from tests.test_pretrain import write_scratch

        folder = carried_out(write_scratch(tmp_path), tmp_path / "out")
        report = read(folder, "eval.json")
        assert [*report["exports"]] == ["model", "gguf:f32"]
        assert report["exports"]["gguf:f32"]["max_abs_logit_diff"] < 1e-4
        assert measured(report, "gguf:f32") == pytest.approx(measured(report, "model"), rel=1e-5)
