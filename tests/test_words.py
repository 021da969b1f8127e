"""Whole classifications by label words with pico decoders: figures, what is written freely, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit.errors import DataError, NotProved, RecipeError
from tests.conftest import sentences
from tests.conversations import carried_out, lines, move_weights, read, spoil, write_recipe, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "Is this good?\n{text}"
WORDS = {"bad": "no, bad", "good": "yes"}
TASK = f'{{type: classify, labels: [bad, good], words: {{prompt: "{PROMPT}", say: {{bad: "no, bad", good: "yes"}}}}}}'
TASK = TASK.replace("\n", "\\n")
TRAIN = "{{epochs: {}, batch_size: 8, learning_rate: 1e-2, seed: 7}}".format


def write(folder: Path, base: Path, **sections: str) -> Path:
    for name, count, seed in (("train", 64, 1), ("valid", 16, 2), ("test", 24, 3)):
        if not (folder / f"{name}.jsonl").exists():
            rows = [{"text": text, "label": label} for text, label in sentences(count, seed)]
            write_rows(folder / f"{name}.jsonl", rows)
    return write_recipe(folder, base, **({"task": TASK, "train": TRAIN(4)} | sections))


@pytest.fixture(scope="module", params=[("llama", 4), ("gpt2", 20)], ids=["llama", "gpt2"])
def done(request, decoder, tmp_path_factory, one_thread) -> Path:
    """A run that is merged; gpt2 has no chat template, so new tokens are trained."""
    folder = tmp_path_factory.mktemp("done")
    base, epochs = request.param
    path = write(folder, decoder(base), train=TRAIN(epochs), gate="{log_loss: {beat: baseline}}")
    return carried_out(path, folder / "out")


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def test_probabilities_are_those_of_the_words_by_transformers_alone(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(done / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(done / "merged")
    rows = lines(done, "predictions.jsonl")
    scores = np.zeros((len(rows), 2))
    for number, row in enumerate(rows):
        message = {"role": "user", "content": PROMPT.replace("{text}", row["input"])}
        prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)["input_ids"]
        for place, word in enumerate(WORDS.values()):
            ids = tokenizer(f"{word}<|im_end|>", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                found = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            scores[number, place] = sum(float(found[len(prompt) + at - 1, token]) for at, token in enumerate(ids))
    reported = np.array([[row["scores"]["bad"], row["scores"]["good"]] for row in rows])
    np.testing.assert_allclose(softmax(scores), reported, atol=1e-4)
    assert [row["prediction"] for row in rows] == [[[*WORDS][best]] for best in reported.argmax(1)]


def test_the_report_is_that_of_its_rows(done):
    """Accuracy by probability and as written, and the share of free answers that are no label."""
    report, rows = read(done, "eval.json"), lines(done, "predictions.jsonl")
    assert set(report["models"]) == {"majority", "baseline", "adapter", "adapter_generated", "merged"}
    figures = {name: model["metrics"] for name, model in report["models"].items()}
    assert figures["adapter"]["accuracy"] == np.mean([row["prediction"] == row["reference"] for row in rows])
    written = [row["generated"] for row in rows]
    assert set(written) <= {"bad", "good"}
    assert figures["adapter_generated"]["accuracy"] == np.mean(
        [[word] == row["reference"] for word, row in zip(written, rows, strict=True)]
    )
    assert "log_loss" not in figures["adapter_generated"]
    assert figures["adapter"]["out_of_label"] == np.mean([row["said"] not in WORDS.values() for row in rows])
    assert figures["baseline"]["out_of_label"] == 1.0
    assert figures["adapter"]["out_of_label"] < 0.5
    assert "out_of_label" not in figures["majority"]
    assert figures["adapter"]["log_loss"] < figures["baseline"]["log_loss"]
    assert report["gate"]["passed"]
    assert read(done, "merge.json")["passed"]
    assert figures["merged"]["log_loss"] == pytest.approx(figures["adapter"]["log_loss"], abs=1e-4)
    mask = read(done, "plan.json")["data"]["mask"]
    assert mask["stopped"] == mask["rows"] == 64


def test_predict_gives_the_reported_scores(done, tmp_path):
    """Merged, and with the adapter on its base where there is no merged folder."""
    from ftkit.models.hardware import settle_machine
    from ftkit.predict import load_predictor
    from ftkit.rundir import RunDir

    copy = tmp_path / "unmerged"
    shutil.copytree(done, copy, ignore=shutil.ignore_patterns("merged"))
    rows = lines(done, "predictions.jsonl")
    for folder in (done, copy):
        predictor = load_predictor(RunDir(folder), settle_machine())
        found = [*predictor.predict(row["input"] for row in rows)]
        assert [row["prediction"] for row in found] == [row["prediction"] for row in rows]
        for ours, reported in zip(found, rows, strict=True):
            assert ours["scores"] == pytest.approx(reported["scores"], abs=1e-4)


def test_a_quantised_base_and_labels_that_are_their_own_words(decoder, tmp_path):
    """Unmerged; one of the labels is what the other begins with."""
    rows = [{"text": text, "label": {"bad": "no", "good": "no doubt"}[label]} for text, label in sentences(64, 1)]
    write_rows(tmp_path / "train.jsonl", rows)
    data = "{train: train.jsonl, valid: 20%, test: 20%}"
    path = write(
        tmp_path, decoder("llama"), task="{type: classify, words: {}}", adapter="qlora", merge="false", data=data
    )
    folder = carried_out(path, tmp_path / "out")
    assert read(folder, "plan.json")["data"]["words"] == {"no": "no", "no doubt": "no doubt"}
    figures = read(folder, "eval.json")["models"]
    assert figures["adapter"]["metrics"]["log_loss"] < figures["baseline"]["metrics"]["log_loss"]
    assert not (folder / "merged").exists()


def test_marks_in_texts_of_any_side_are_refused_before_training(decoder, tmp_path):
    path = write(tmp_path, decoder("llama"))
    for name in ("train", "test"):
        rows = lines(tmp_path, f"{name}.jsonl")
        rows[4]["text"] += "<|im_end|>"
        write_rows(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(DataError) as error:
        carried_out(path, tmp_path / "out")
    assert str(error.value) == (
        "error: the data has 2 problems\n"
        "  train.jsonl line 5   turn 1 (user) holds <|im_end|>, which the model reads as a mark. Remove it.\n"
        "  test.jsonl line 5    turn 1 (user) holds <|im_end|>, which the model reads as a mark. Remove it."
    )
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_texts_are_cut_to_what_prompt_and_answer_leave(decoder, tmp_path):
    """And told so; a prompt that leaves nothing is refused."""
    for name, seed in (("train", 1), ("valid", 2), ("test", 3)):
        rows = [{"text": f"{text}. " * 6, "label": label} for text, label in sentences(8, seed)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    quick = {"train": "{epochs: 1, batch_size: 8}", "merge": "false"}
    folder = carried_out(write(tmp_path, decoder("llama"), **quick), tmp_path / "out")
    plan, labels = read(folder, "plan.json"), read(folder / "adapter", "labels.json")
    assert 8 <= labels["max_length"] < 96
    assert plan["data"]["lengths"]["max_length"] == labels["max_length"]
    assert plan["decisions"][-1] == {
        "key": "train.max_length",
        "value": labels["max_length"],
        "why": "tokens of a text; prompt and answer take the rest of the base's 96",
    }
    assert plan["data"]["mask"]["lengths"]["longest"] <= 96
    task = TASK.replace("Is this good?", "Is this good, or is it not so good? " * 8)
    with pytest.raises(RecipeError) as error:
        carried_out(write(tmp_path, decoder("llama"), task=task), tmp_path / "long")
    assert str(error.value).startswith("error: the prompt leaves no room for a text\n  task.words.prompt   prompt and ")
    assert str(error.value).endswith("and the base takes 96. Shorten it, or name another base.")


def test_a_merged_model_that_differs_does_not_get_the_name(decoder, tmp_path, monkeypatch):
    spoil(monkeypatch, "label_scores", move_weights)
    with pytest.raises(NotProved) as error:
        carried_out(write(tmp_path, decoder("llama")), tmp_path / "out")
    assert error.value.exit_code == 7
    assert not (tmp_path / "out" / "merged").exists()
    assert not read(tmp_path / "out", "merge.json")["passed"]
