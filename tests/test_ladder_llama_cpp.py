"""llama.cpp as the reader of GGUF exports: it scores and answers on the run's own token ids, and makes the small types.

Needs llama-cpp-python, which builds llama.cpp when it is installed: a quarter of an hour.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ftkit
from ftkit.console import Console
from ftkit.errors import MachineError, NotProved
from ftkit.export.formats import parse
from ftkit.export.gguf import check_gguf, write_gguf
from ftkit.export.gguf.quantise import QUANTISED, quantiser
from ftkit.export.gguf_formats import Gguf, Ollama
from ftkit.export.llama_cpp import LlamaCpp, version
from ftkit.ladder.rungs import export_run
from ftkit.models.hardware import settle_machine
from ftkit.rundir import RunDir
from ftkit.tasks.generation import generate
from ftkit.tasks.language import score
from ftkit.tasks.windows import IGNORED
from tests.conversations import carried_out, read, write_recipe
from tests.test_pretrain import write_scratch
from tests.test_words import TRAIN, write

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]
TINY_LM = Path(ftkit.__file__).parent / "tiny_lm"
STOP = 3  # of tiny-lm


@pytest.fixture(scope="module")
def original():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY_LM, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(TINY_LM, out, "F32")
    return out


@pytest.fixture(scope="module")
def answering(decoder, tmp_path_factory, one_thread) -> Path:
    """A finished run of a decoder that answers, with the exports that its recipe asks for."""
    folder = tmp_path_factory.mktemp("answering")
    export = '["gguf:f32", "ollama:f32", "gguf:q8_0"]'
    path = write_recipe(
        folder, decoder("llama"), train="{epochs: 4, batch_size: 8, learning_rate: 1e-2, seed: 7}", export=export
    )
    return carried_out(path, folder / "out")


def some_rows(*lengths: int) -> list[list[int]]:
    chance = np.random.default_rng(0)
    return [[1, *chance.integers(5, 4096, length - 1).tolist()] for length in lengths]


def test_an_exact_file_has_the_scores_and_answers_of_the_merged_model(answering):
    report = read(answering, "eval.json")
    merged = report["models"]["merged"]["metrics"]
    for name in ("gguf:f32", "ollama:f32"):
        facts, metrics = report["exports"][name], report["models"][name]["metrics"]
        assert facts["reader"] == f"llama.cpp {version()}"
        assert facts["rows"] == 16
        assert facts["max_abs_logit_diff"] < 1e-3
        assert facts["argmax_agreement"] == 1
        assert metrics["exact_match"] == merged["exact_match"]
        assert metrics["chrf"] == merged["chrf"]
        assert metrics["perplexity"] == pytest.approx(merged["perplexity"], rel=1e-4)


def test_a_quantised_file_is_scored_with_the_rounding_of_llama_cpp(answering):
    """Which rounds what the weights are multiplied with too, as transformers, which reads the same file, does not."""
    from transformers import AutoModelForCausalLM

    from ftkit.ladder.scoring import own_rows
    from ftkit.trained import Trained

    report = read(answering, "eval.json")
    assert report["exports"]["gguf:q8_0"]["reader"] == f"llama.cpp {version()}"
    rows = own_rows(Trained(RunDir(answering), answering / "merged", read(answering, "plan.json")))
    model = AutoModelForCausalLM.from_pretrained(
        answering / "export" / "gguf-q8_0", gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    by_transformers = rows.score(model, lambda _: None).scores.metrics["perplexity"]
    by_llama = report["models"]["gguf:q8_0"]["metrics"]["perplexity"]
    assert by_llama == pytest.approx(by_transformers, rel=2e-2)
    assert by_llama != pytest.approx(by_transformers, rel=1e-6)


def test_small_types_are_made_by_the_library_and_scored(answering, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))  # without llama-quantize
    run = RunDir(Path(shutil.copytree(answering, tmp_path / "run")))
    done = export_run(run, [parse("gguf:q4_k_m")], settle_machine(), Console(quiet=True))
    facts = done.report.exports["gguf:q4_k_m"]
    assert facts.reader == f"llama.cpp {version()}"
    assert facts.metric_fall is not None
    assert facts.bytes < done.report.exports["gguf:f32"].bytes / 2
    notes = read(run.folder / "export" / "gguf-q4_k_m", "export.json")["notes"]
    assert notes[-1] == "Q4_K_M was made by llama-cpp-python."
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "llama_" not in printed.err


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_type_that_is_offered_can_be_made(kind, tmp_path, monkeypatch):
    from gguf import GGUFReader

    monkeypatch.setenv("PATH", str(tmp_path))
    write_gguf(TINY_LM, tmp_path / "model.gguf", kind)
    check_gguf(TINY_LM, tmp_path / "model.gguf")
    held = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kind.removesuffix("_S").removesuffix("_M").removesuffix("_L") in held


def test_what_llama_cpp_says_of_a_failure_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"no such thing")
    with pytest.raises(MachineError) as error:
        quantiser("Q4_0").run(tmp_path / "model.gguf", "Q4_0")
    assert error.value.headline == "llama-cpp-python failed"
    (told,) = error.value.problems
    assert told.message.startswith("It ended with 1: llama_model_quantize: failed to quantize: ")
    assert told.message.endswith(" Try it by hand, or write Q8_0.")


def test_a_language_model_from_scratch_has_its_perplexity(tmp_path):
    report = read(carried_out(write_scratch(tmp_path), tmp_path / "out"), "eval.json")
    assert report["exports"]["gguf:f32"]["reader"] == f"llama.cpp {version()}"
    own, theirs = (report["models"][name]["metrics"]["perplexity"] for name in ("model", "gguf:f32"))
    assert theirs == pytest.approx(own, rel=1e-3)


def test_label_words_have_the_probabilities_of_the_merged_model(decoder, tmp_path):
    path = write(tmp_path, decoder("gpt2"), train=TRAIN(2), export='["gguf:f32"]')
    report = read(carried_out(path, tmp_path / "out"), "eval.json")
    assert report["exports"]["gguf:f32"]["reader"] == f"llama.cpp {version()}"
    own, theirs = (report["models"][name]["metrics"]["log_loss"] for name in ("merged", "gguf:f32"))
    assert theirs == pytest.approx(own, rel=1e-4)


def test_an_exact_file_of_sixteen_bits_is_kept_though_its_logits_are_rounded(decoder, tmp_path):
    """llama.cpp rounds what it multiplies bfloat16 with, so float32's limit cannot hold."""
    export = '["gguf:bf16", "gguf:f32"]'
    path = write_recipe(
        tmp_path, decoder("qwen2"), train="{epochs: 1, batch_size: 8, learning_rate: 1e-2, seed: 7}", export=export
    )
    exports = read(carried_out(path, tmp_path / "out"), "eval.json")["exports"]
    assert exports["gguf:bf16"]["exact"]
    assert exports["gguf:f32"]["exact"]
    assert exports["gguf:f32"]["max_abs_logit_diff"] < 1e-3 < exports["gguf:bf16"]["max_abs_logit_diff"]


class TestModel:
    def test_scores_are_those_of_transformers(self, original, file):
        """Of rows of many lengths, one of them longer than what is read at once, in a context that grows."""
        rows = some_rows(3, 40, 600, 100, 511)
        labels = [[*[IGNORED] * (len(row) // 2), *row[len(row) // 2 :]] for row in rows]
        positions = [(0, 1), (2, 0), (2, 598), (4, 300)]
        for goals in (None, labels):
            ours, theirs = (
                score(model, rows, pad_token_id=0, labels=goals, positions=positions)
                for model in (original, LlamaCpp(file))
            )
            np.testing.assert_allclose(theirs.nll, ours.nll, rtol=1e-5)
            np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-3)
            np.testing.assert_allclose(np.concatenate(theirs.margins), np.concatenate(ours.margins), atol=1e-3)
            assert [*map(len, theirs.best)] == [*map(len, ours.best)]

    def test_answers_are_those_of_transformers_whatever_else_is_asked(self, original, file):
        rows = [row[:length] for row, length in zip(some_rows(*[60] * 12), range(4, 52, 4), strict=True)]
        settings = {"max_new_tokens": 40, "limit": 64, "stop_ids": [STOP], "pad_token_id": 0}
        model = LlamaCpp(file)
        answers = generate(model, rows, **settings)
        assert answers == generate(original, rows, **settings)
        assert answers == [answer for row in rows for answer in generate(model, [row], **settings)]
        assert {len(answer.ids) for answer in answers if not answer.ended} <= set(range(13, 41))

    def test_an_answer_ends_at_the_stop_tokens_it_is_given(self, original, file):
        (prompt,) = some_rows(9)
        settings = {"max_new_tokens": 12, "limit": 64, "pad_token_id": 0}
        (whole,) = generate(LlamaCpp(file), [prompt], stop_ids=[], **settings)
        assert len(whole.ids) == 12
        stop = whole.ids[5]
        (cut,) = generate(LlamaCpp(file), [prompt], stop_ids=[stop], **settings)
        assert cut.ended
        assert cut.ids == whole.ids[: whole.ids.index(stop)]

    def test_the_same_twice(self, file):
        rows = some_rows(30, 20)
        model = LlamaCpp(file)
        first, second = (score(model, rows, pad_token_id=0, positions=[(1, 7)]) for _ in range(2))
        assert (first.nll == second.nll).all()
        assert (first.logits == second.logits).all()

    def test_a_file_that_is_cut_off_is_not_proved(self, file, tmp_path, capfd):
        cut = tmp_path / "model.gguf"
        cut.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(NotProved) as error:
            LlamaCpp(cut)
        (told,) = error.value.problems
        assert told.subject == "model.gguf"
        assert told.message.startswith("llama.cpp cannot read it: ")
        assert "is not within the file bounds" in told.message
        assert told.message.endswith(". Report this.")
        assert "".join(capfd.readouterr()) == ""

    def test_a_token_that_the_file_does_not_have(self, file):
        with pytest.raises(NotProved, match=r"llama\.cpp cannot read 2 tokens from position 0 on: .*4096"):
            LlamaCpp(file)(input_ids=torch.tensor([[1, 4096]]))


def test_both_formats_name_the_reader():
    assert Gguf().reader == Ollama().reader == f"llama.cpp {version()}"
