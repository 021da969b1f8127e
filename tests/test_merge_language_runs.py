"""Merges of runs of language models: a pretraining run merged again, which base is chosen, and exports that follow."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ftkit.console import Console
from ftkit.errors import RecipeError
from ftkit.remerge import merge_run
from ftkit.report import numbers
from ftkit.rundir import RunDir
from tests.conversations import asked, carried_out, read, write_recipe, write_rows
from tests.test_merge_runs import everything

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
QUIET = Console(quiet=True, results=False)
SIDES = (("train", 64, 1), ("valid", 16, 2), ("test", 16, 3))
PRETRAIN = {"task": "{type: pretrain, samples: 0}", "eval": "{metrics: [perplexity]}"}
FOUR_BITS = {
    "adapter": "{type: lora, r: 8, alpha: 16, quantize: nf4}",
    "train": "{epochs: 4, batch_size: 8, learning_rate: 1e-2, precision: float32, seed: 7}",
    "eval": "{metrics: [perplexity]}",
    "merge": "{into: auto, tolerance: 0.1}",
}


def texts(folder: Path, base: Path, **sections: str) -> Path:
    """A recipe that goes on with a base on short texts."""
    for name, count, seed in SIDES:
        rows = [{"text": f"{row['prompt']} It says {row['completion']}."} for row in asked(count, seed)]
        write_rows(folder / f"{name}.jsonl", rows)
    return write_recipe(folder, base, **{**PRETRAIN, **sections})


def ids_of(tokenizer, row: dict[str, str]) -> tuple[list[int], int]:
    """The tokens of a validation row, and where those begin that count."""
    if "text" in row:
        return [tokenizer.bos_token_id, *tokenizer(row["text"], add_special_tokens=False)["input_ids"]], 1
    question = [{"role": "user", "content": row["prompt"]}]
    options = {"tokenize": True, "return_dict": False}
    start = len(tokenizer.apply_chat_template(question, add_generation_prompt=True, **options))
    answer = {"role": "assistant", "content": row["completion"]}
    ids = tokenizer.apply_chat_template([*question, answer], **options)
    return ids[: len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id)], start  # the end token is not scored


def loss(model, tokenizer, file: Path) -> float:
    """Nats a token, row by row."""
    nats = tokens = 0.0
    for line in file.read_text("utf-8").splitlines():
        ids, start = ids_of(tokenizer, json.loads(line))
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(found[at - 1, ids[at]]) for at in range(start, len(ids)))
        tokens += len(ids) - start
    return nats / tokens


def with_adapter(run: Path, base: Path, into: str):
    """The run's adapter on its base by plain transformers and peft: as stored, or as its 4 bits stand in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **nf4)
    more = {"quantization_config": config} if into == "dequantised" else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **more)
    model = model.dequantize(torch.float32) if into == "dequantised" else model
    return PeftModel.from_pretrained(model, run / "adapter").eval()


@pytest.fixture(scope="module", params=["pretrain", "sft"])
def chosen(request, decoder, tmp_path_factory, one_thread) -> Path:
    """A run on a base in 4 bits that chooses by the validation rows what to merge into."""
    folder = tmp_path_factory.mktemp(request.param)
    write = texts if request.param == "pretrain" else write_recipe
    return carried_out(write(folder, decoder("llama"), **FOUR_BITS), folder / "run")


class TestTheBaseIsChosen:
    def test_by_the_validation_rows(self, chosen, decoder):
        """Both figures are those of plain peft on the same rows, and the better base is merged into."""
        from transformers import AutoTokenizer

        tokenizer, proof = AutoTokenizer.from_pretrained(chosen / "adapter"), read(chosen, "merge.json")
        figures = {
            into: loss(with_adapter(chosen, decoder("llama"), into), tokenizer, chosen.parent / "valid.jsonl")
            for into in ("full", "dequantised")
        }
        assert abs(figures["full"] - figures["dequantised"]) > 1e-5
        by = dict(proof["chosen_by"])
        assert by.pop("metric") == "loss"
        assert by == pytest.approx(figures, abs=2e-6)
        assert proof["into"] == min(figures, key=figures.get)

    def test_the_merged_weights_are_those_of_that_base(self, chosen, decoder):
        from transformers import AutoModelForCausalLM

        into = read(chosen, "merge.json")["into"]
        expected = with_adapter(chosen, decoder("llama"), into).merge_and_unload().state_dict()
        found = AutoModelForCausalLM.from_pretrained(chosen / "merged", dtype=torch.float32).state_dict()
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)

    def test_what_was_measured_is_compared_with(self, chosen):
        proof, models = read(chosen, "merge.json"), read(chosen, "eval.json")["models"]
        against = proof["quantised"]
        assert against["metric"] == proof["metric"] == "perplexity"
        assert against["adapter"] == pytest.approx(models["adapter"]["metrics"]["perplexity"])
        assert against["merged"] == pytest.approx(models["merged"]["metrics"]["perplexity"])
        assert proof["metric_diff"] == pytest.approx(against["merged"] / against["adapter"] - 1, abs=1e-9)
        assert 0 <= against["argmax_agreement"] <= 1
        assert (proof["passed"], proof["tolerance"]["metric_diff"]) == (True, 0.1)

    def test_card_and_report_tell_it(self, chosen):
        proof = read(chosen, "merge.json")
        named = {"full": "the base in full precision", "dequantised": "the dequantised base"}
        other = next(name for name in named if name != proof["into"])
        card, page = ((chosen / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
        better, worse = (numbers.score(proof["chosen_by"][name]) for name in (proof["into"], other))
        into = f"{named[proof['into']]} (validation loss {better} against {worse} on {named[other]})"
        assert f"It was merged into {into}; compared with the base in 4 bits, the largest logit difference is " in card
        assert into in page
        assert "Compared with the adapter on the base in 4 bits" in page


@pytest.fixture(scope="module")
def unmerged(decoder, tmp_path_factory, one_thread) -> Path:
    """A pretraining run that was not merged, with an export that needs no merged model."""
    folder = tmp_path_factory.mktemp("unmerged")
    more = {"adapter": "{type: lora, r: 4}", "merge": "false", "export": "[lora-gguf]"}
    return carried_out(texts(folder, decoder("llama"), **more), folder / "run")


@pytest.fixture
def run(unmerged, tmp_path) -> RunDir:
    return RunDir(Path(shutil.copytree(unmerged, tmp_path / "run")))


def perplexity(folder: Path, file: Path) -> float:
    """Of a merged model, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return math.exp(loss(model.eval(), tokenizer, file))


class TestAPretrainingRunIsMergedAgain:
    """The merged model finds the test texts as likely as the adapter does."""

    def test_in_place_the_run_tells_it_and_makes_its_exports(self, run, unmerged):
        before = read(run.folder, "eval.json")
        assert [*before["exports"]] == ["lora-gguf:f32"]
        earlier = (run.folder / "export" / "lora-gguf-f32" / "adapter.gguf").stat().st_ino
        (run.folder / ".merging.abcdefgh" / "merged").mkdir(parents=True)  # what a killed merge leaves
        proof = merge_run(run, None, QUIET)
        assert (proof["passed"], proof["metric"], proof["rows"]) == (True, "perplexity", 16)
        assert proof["metric_diff"] < 1e-4
        assert proof["max_abs_logit_diff"] < 1e-3
        assert "quantised" not in proof
        after, reported = read(run.folder, "eval.json"), before["models"]["adapter"]["metrics"]["perplexity"]
        assert after["models"].pop("merged")["metrics"]["perplexity"] == pytest.approx(reported, rel=1e-5)
        assert perplexity(run.merged, unmerged.parent / "test.jsonl") == pytest.approx(reported, rel=1e-4)
        assert after["models"] == before["models"]
        assert after["exports"] == before["exports"]
        assert (run.folder / "export" / "lora-gguf-f32" / "adapter.gguf").stat().st_ino != earlier
        assert {name for name in everything(run.folder) if not Path(name).name.startswith(".")} == {
            *read(run.folder, "manifest.json"), "manifest.json",
        }  # fmt: skip
        assert run.unchanged(run.merged)
        assert "The merged model is the trained one" in (run.folder / "README.md").read_text("utf-8")
        assert not [*run.folder.glob(".merging.*")]

    def test_elsewhere_the_run_stays_as_it_was(self, run, unmerged, tmp_path):
        before, out = everything(run.folder), tmp_path / "made" / "elsewhere"
        # What a killed merge of this run leaves there, and what another run, which may be at work, has there.
        own = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:8]
        left, others = (out.parent / f".elsewhere.merging.{name}.abcdefgh" for name in (own, "01234567"))
        for folder in (left, others):
            (folder / "merged").mkdir(parents=True)
        proof = merge_run(run, out, QUIET)
        assert everything(run.folder) == before
        assert {path.name for path in out.parent.iterdir()} == {"elsewhere", others.name}
        assert read(out, "merge.json") == proof
        assert (proof["passed"], proof["metric"]) == (True, "perplexity")
        reported = read(run.folder, "eval.json")["models"]["adapter"]["metrics"]["perplexity"]
        assert perplexity(out, unmerged.parent / "test.jsonl") == pytest.approx(reported, rel=1e-4)


@pytest.fixture(scope="module")
def merged(decoder, tmp_path_factory, one_thread) -> Path:
    """A run that answers, with an export of its merged model in the recipe."""
    folder = tmp_path_factory.mktemp("merged")
    path = write_recipe(folder, decoder("llama"), eval="{metrics: [perplexity]}", export='["safetensors:float16"]')
    return carried_out(path, folder / "run")


class TestExportsFollow:
    @pytest.fixture
    def run(self, merged, tmp_path) -> RunDir:
        return RunDir(Path(shutil.copytree(merged, tmp_path / "run")))

    def said(self, run: RunDir, capsys) -> Iterator[str]:
        merge_run(run, None, Console())
        return (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))

    def test_of_the_recipe_again_and_of_others_a_word(self, run, capsys):
        from ftkit.cli.export import export_model

        export_model(str(run.folder), "safetensors:bfloat16", None, json=False)
        before = read(run.folder, "eval.json")
        assert [*before["exports"]] == ["merged", "safetensors:float16", "safetensors:bfloat16"]
        capsys.readouterr()
        assert [*self.said(run, capsys)] == [
            "warning: safetensors:bfloat16: exports of the model that was merged before. Make them again: ftkit export"
        ]
        after = read(run.folder, "eval.json")
        assert [*after["exports"]] == ["merged", "safetensors:float16"]
        assert after["models"]["safetensors:float16"] == before["models"]["safetensors:float16"]
        assert "safetensors:bfloat16" not in after["models"]
        assert "safetensors:float16" in (run.folder / "report.html").read_text("utf-8")
        assert run.unchanged(run.folder / "export" / "safetensors-float16")

    def test_one_that_cannot_be_made_leaves_the_merged_model(self, run, capsys):
        """A file of the user's own stands where the export would."""
        shutil.rmtree(run.folder / "export" / "safetensors-float16")
        (run.folder / "export" / "safetensors-float16").write_text("mine")
        weights = run.merged / "model.safetensors"
        weights.unlink()
        with pytest.raises(RecipeError, match="is a file"):
            merge_run(run, None, Console())
        assert weights.exists()
        assert read(run.folder, "merge.json")["passed"]
        assert run.unchanged(run.merged)
        assert "exports of the model that was merged before" in capsys.readouterr().err
        assert read(run.folder, "eval.json")["exports"] == {}
