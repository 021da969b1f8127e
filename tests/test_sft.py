"""Whole instruction tunings of pico decoders: what is learned, what is measured, what lands on disk and is refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit.errors import DataError, GateNotMet, MachineError, NotProved, RecipeError, TrainingFailed
from ftkit.files import write_json
from ftkit.plan.make import make_plan
from ftkit.recipe.load import load
from tests.conversations import (
    SOUNDS,
    TEMPLATE,
    asked,
    carried_out,
    lines,
    losses,
    move_weights,
    read,
    spoil,
    write_recipe,
    write_rows,
)
from tests.trainings import stopped_midway

pytestmark = pytest.mark.usefixtures("one_thread")
IGNORED = -100
QUICK = {"eval": "{metrics: [perplexity]}", "merge": "false"}
# Without a start token, and unlike ChatML in every mark.
FILE = TEMPLATE.replace("assistant\\n", "assistant says\\n").replace(
    "message['role'] + '\\n'", "message['role'] + ' says\\n'"
)


def planned(path: Path):
    return make_plan(load(path), weights=True)


class Done:
    """A finished run, and what plain transformers and peft make of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = lines(folder, "predictions.jsonl")
        self.report, self.plan = read(folder, "eval.json"), read(folder, "plan.json")

    def tokenizer(self, name: str):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / name)

    def model(self, name: str):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if name == "merged":
            return AutoModelForCausalLM.from_pretrained(self.folder / "merged", dtype=torch.float32).eval()
        base = AutoModelForCausalLM.from_pretrained(self.plan["base"]["folder"], dtype=torch.float32)
        if len(tokenizer := self.tokenizer("adapter")) > base.get_input_embeddings().num_embeddings:
            base.resize_token_embeddings(len(tokenizer))
        return PeftModel.from_pretrained(base, self.folder / "adapter").eval()


@pytest.fixture(scope="module", params=["the base's template", "chatml with new tokens", "a file"])
def done(request, decoder, tmp_path_factory, one_thread) -> Done:
    folder = tmp_path_factory.mktemp("done")
    name, template = {"the": ("llama", "model"), "chatml": ("gpt2", "model"), "a": ("qwen2", "own.jinja")}[
        request.param.split()[0]
    ]
    (folder / "own.jinja").write_text(FILE, encoding="utf-8")
    path = write_recipe(
        folder,
        decoder(name),
        task=f"{{type: sft, template: {template}}}",
        train="{epochs: 10, batch_size: 8, learning_rate: 1e-2, seed: 7}",
        gate="{perplexity: {beat: baseline}}",
    )
    return Done(carried_out(path, folder / "out"))


def conversation(row: dict) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def template_ids(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]


class TestARun:
    def test_the_figures_can_be_made_again_from_the_file(self, done):
        assert set(done.report["models"]) == {"baseline", "baseline_plain", "adapter", "merged"}
        assert read(done.folder, "merge.json")["passed"]
        assert read(done.folder, "merge.json")["adapter_sha256"] == read(done.folder, "train.json")["best_sha256"]
        assert [row["where"] for row in done.rows] == [f"test.jsonl line {number}" for number in range(1, 17)]
        assert [row["reference"] for row in done.rows] == [[row["completion"]] for row in asked(16, 3)]
        assert [row["input"] for row in done.rows] == [row["prompt"] for row in asked(16, 3)]
        for model, nll, said in (("adapter", "nll", "prediction"), ("baseline", "baseline_nll", "baseline")):
            metrics = done.report["models"][model]["metrics"]
            total, tokens, size = (sum(row[name] for row in done.rows) for name in (nll, "tokens", "bytes"))
            assert metrics["perplexity"] == pytest.approx(math.exp(total / tokens))
            assert metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / size)
            exact = [row[said] == row["reference"][0] for row in done.rows]
            assert metrics["exact_match"] == pytest.approx(np.mean(exact))
        assert [row["correct"] for row in done.rows] == [row["scores"]["exact_match"] == 1 for row in done.rows]
        assert done.report["gate"]["passed"]
        for figures in (done.report["models"][model]["metrics"] for model in ("adapter", "merged")):
            assert figures["perplexity"] < done.report["models"]["baseline"]["metrics"]["perplexity"] / 10
            # The stop token is trained: the base went on to the last token that it was allowed.
            assert figures["ended"] == 1.0
        assert done.report["models"]["baseline"]["metrics"]["ended"] < 0.5

    def test_the_token_ids_of_training_are_those_of_the_template_on_disk(self, done):
        plan = planned(done.folder.parent / "recipe.yaml")
        for name in ("adapter", "merged"):
            tokenizer = done.tokenizer(name)
            for side, rows in (("train", asked(64, 1)), ("test", asked(16, 3))):
                for row, own in zip(rows, plan.sides[side].answers, strict=True):
                    messages = conversation(row)
                    assert own.ids == template_ids(tokenizer, messages)
                    prompt = template_ids(tokenizer, messages[:1], add_generation_prompt=True)
                    assert own.ids[: own.answer] == prompt
                    assert tokenizer.decode(own.ids[own.answer : own.end]) == row["completion"]
                    assert own.ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token == "<|bos|>")
                    trained = [label for label in own.labels if label != IGNORED]
                    assert trained == own.ids[own.answer : own.end + 1]
                    assert trained[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")

    def test_the_base_is_also_asked_in_plain_text(self, done):
        """Without the marks of a template that it may never have seen: the prompt, a line end, the answer."""
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(done.plan["base"]["folder"], dtype=torch.float32).eval()
        tokenizer = done.tokenizer("adapter")
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        nll, tokens = 0.0, 0
        for row in asked(16, 3):
            prompt = tokenizer(f"{row['prompt']}\n", add_special_tokens=False)["input_ids"]
            prompt.insert(0, start)
            answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                found = base(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            nll -= sum(float(found[len(prompt) + at - 1, token]) for at, token in enumerate(answer))
            tokens += len(answer)
        metrics = done.report["models"]["baseline_plain"]["metrics"]
        assert metrics["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-3)

    @pytest.mark.parametrize("name", ["merged", "adapter"])
    def test_transformers_alone_finds_the_same_answers_as_likely(self, done, name):
        model, tokenizer = done.model(name), done.tokenizer(name)
        stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
        most = done.plan["data"]["max_new_tokens"]
        # The merged folder tells by itself where an answer ends.
        ends = {"eos_token_id": stop, "pad_token_id": tokenizer.pad_token_id} if name == "adapter" else {}
        # Weights stored in bfloat16 are rounded when they are merged.
        rounded = name == "merged" and read(done.folder, "merge.json")["dtype"] == "bfloat16"
        for row, reported in zip(asked(16, 3), done.rows, strict=True):
            prompt = template_ids(tokenizer, conversation(row)[:1], add_generation_prompt=True)
            answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
                ids = torch.tensor([prompt])
                made = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, **ends,
                )[0, len(prompt) :].tolist()  # fmt: skip
            nll = -sum(float(logits[len(prompt) + at - 1, token]) for at, token in enumerate(answer))
            assert nll == pytest.approx(reported["nll"], rel=0.05 if rounded else 1e-3, abs=1e-3)
            assert made[-1] == stop
            if not rounded:
                assert tokenizer.decode(made, skip_special_tokens=True).strip() == reported["prediction"]

    def test_an_adapter_that_is_merged_alone_brings_its_end_tokens_along(self, done, tmp_path):
        from ftkit.cli.merge import merge_adapters

        base = done.plan["base"]["folder"]
        merge_adapters([str(done.folder / "adapter")], base, tmp_path / "out", None, None, prove=False, json=True)
        stop = done.tokenizer("adapter").convert_tokens_to_ids("<|im_end|>")
        for folder in (done.folder / "merged", tmp_path / "out"):
            assert stop in read(folder, "generation_config.json")["eos_token_id"]


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What does a cat say?"},
    {"role": "assistant", "content": "meow", "weight": 0},
    {"role": "user", "content": "And a dog?"},
    {"role": "assistant", "content": "woof woof"},
    {"role": "user", "content": "And a cow?"},
    {"role": "assistant", "content": "moo"},
]


@pytest.mark.parametrize(("train_on", "learned"), [("answers", {1, 2}), ("last_answer", {2}), ("all", {1, 2, "rest"})])
def test_the_loss_is_over_the_tokens_that_the_recipe_names(decoder, tmp_path, monkeypatch, train_on, learned):
    """What the trainer's batches hold, found by the marks in the token ids, and the loss of the first step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftkit.sft import train as sft_train

    batches = []

    class Seen(sft_train.Collate):
        def __call__(self, rows):
            batches.append(super().__call__(rows))
            return batches[-1]

    monkeypatch.setattr(sft_train, "Collate", Seen)
    base = decoder("long")
    write_rows(tmp_path / "train.jsonl", [{"messages": MESSAGES}, {"messages": MESSAGES[1:5]}])
    path = write_recipe(
        tmp_path,
        base,
        task=f"{{type: sft, train_on: {train_on}}}",
        train="{epochs: 1, batch_size: 2, precision: float32}",
        **QUICK,
    )
    folder = carried_out(path, tmp_path / "out")
    (batch,) = batches
    tokenizer = AutoTokenizer.from_pretrained(base)
    start, *role = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model, nll = AutoModelForCausalLM.from_pretrained(base).eval(), []
    documents = [row for row in conversations_of(batch) if {*row[0]} != {tokenizer.pad_token_id}]
    assert len(documents) == 2
    for ids, labels in documents:
        turns = [at for at, token in enumerate(ids) if token == start and ids[at + 1 : at + 1 + len(role)] == role]
        expected = [IGNORED] * len(ids)
        if "rest" in learned:
            expected = [IGNORED if token == tokenizer.pad_token_id else token for token in ids]
            expected[0] = IGNORED
        # The row of two answers is a part of the other: its last is the other's second.
        for number, at in enumerate(turns):
            first = at + 1 + len(role)
            own = slice(first, ids.index(stop, first) + 1)
            last = number == len(turns) - 1
            taken = (number in learned and (train_on != "last_answer" or last)) or (train_on == "last_answer" and last)
            expected[own] = ids[own] if taken else [IGNORED] * len(ids[own])
        assert labels == expected
        with torch.no_grad():
            logits = model(torch.tensor([[token for token in ids if token != tokenizer.pad_token_id]])).logits[0]
        scored = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(labels[1 : len(logits)]), reduction="none", ignore_index=IGNORED
        )
        nll += [value for value, label in zip(scored.tolist(), labels[1:], strict=False) if label != IGNORED]
    assert losses(folder)[0] == pytest.approx(np.mean(nll), rel=1e-4)


def conversations_of(batch):
    """Ids and labels of each conversation in a batch, which may stand one after the other in a row."""
    columns = (batch[name].tolist() for name in ("input_ids", "labels", "position_ids"))
    for ids, labels, positions in zip(*columns, strict=True):
        starts = [place for place, position in enumerate(positions) if position == 0]
        for begin, end in pairwise([*starts, len(ids)]):
            yield ids[begin:end], labels[begin:end]


class TestTooLong:
    @pytest.fixture
    def path(self, decoder, tmp_path):
        """Three of ten train rows, and one of four test rows, are too long: for 64 tokens and for the model."""
        long = {"prompt": "In the library, " * 3 + "what does a cat say?", "completion": "meow"}
        answer = {"prompt": "What does a cat say, again and again?", "completion": "meow " * 45 + "at last"}
        train = [*asked(7, 1), long, {**long, "prompt": f"{long['prompt']} Now?"}, answer]
        write_rows(tmp_path / "train.jsonl", train)
        test = {**long, "prompt": "A doctor meets a cat. " * 10 + long["prompt"]}
        write_rows(tmp_path / "test.jsonl", [*asked(3, 3), test])

        def write(policy: str, train: str = "{max_length: 64}") -> Path:
            return write_recipe(tmp_path, decoder("llama"), task=f"{{type: sft, too_long: {policy}}}", train=train)

        return write

    def test_drop_leaves_them_out_and_counts_them(self, path):
        plan = planned(path("drop"))
        lengths = plan.document(None, None)["data"]["lengths"]
        assert lengths["too_long"] == {"train": 3, "valid": 0, "test": 1}
        assert lengths["cut"] == {"train": 0, "valid": 0, "test": 0}
        assert plan.sides["train"].dropped == tuple(f"train.jsonl line {number}" for number in (8, 9, 10))
        assert len(plan.sides["train"]) == 7

    def test_a_prompt_loses_its_beginning_and_an_answer_nothing(self, path):
        plan = planned(path("truncate_prompt"))
        lengths = plan.document(None, None)["data"]["lengths"]
        assert lengths["cut"] == {"train": 2, "valid": 0, "test": 1}
        assert plan.sides["train"].dropped == ("train.jsonl line 10",)
        assert max(plan.sides["train"].answers.lengths) <= 64
        for row in (plan.sides["train"].answers[7], plan.sides["test"].answers[3]):
            text = plan.chat.tokenizer.decode(row.ids)
            assert "what does a cat say?" in text
            assert text.endswith("<|im_start|>assistant\nmeow<|im_end|>\n")

    def test_error_names_the_rows(self, path):
        with pytest.raises(DataError) as error:
            planned(path("error"))
        assert str(error.value).splitlines()[1].strip() == (
            "train.jsonl line 8    66 tokens, and 64 fit. Shorten it, raise train.max_length, or write task.too_long: "
            "drop."
        )

    def test_a_length_of_our_choice_makes_no_error(self, path, tmp_path):
        """Where the recipe leaves train.max_length out, it covers every row that the model takes."""
        write_rows(tmp_path / "test.jsonl", asked(3, 3))
        plan = planned(path("error", train="{}"))
        assert plan.max_length == 96
        assert len(plan.sides["train"]) == 10

    def test_none_is_left(self, path, tmp_path):
        write_rows(tmp_path / "test.jsonl", [{"prompt": "Tell me. " * 50, "completion": "no"}])
        with pytest.raises(DataError) as error:
            planned(path("drop"))
        assert "all 1 rows are too long, such as test.jsonl line 1. Name a base that takes more, or write" in str(
            error.value
        )


def test_rows_without_a_token_to_learn_are_left_out_within_a_share(decoder, tmp_path):
    """As many as the recipe allows."""
    mute = MESSAGES[1:3]
    spoken = [{"messages": conversation(row)} for row in asked(9, 1)]
    write_rows(tmp_path / "train.jsonl", [*spoken, {"messages": mute}])
    task = "{{type: sft, max_untrained: {}}}".format
    assert len(planned(write_recipe(tmp_path, decoder("llama"), task=task("10%"))).sides["train"]) == 9
    with pytest.raises(DataError) as error:
        planned(write_recipe(tmp_path, decoder("llama"), task=task("5%")))
    assert str(error.value).endswith(
        "1 train row of 10 (10%) without a token to learn, such as train.jsonl line 10; at most 5% may be. "
        "Give their answers weight 1, or raise task.max_untrained."
    )


class TestPacking:
    def test_the_loss_is_that_of_the_same_rows_unpacked(self, decoder, tmp_path):
        rows = [{"prompt": f"{animal}?", "completion": sound} for animal, sound in SOUNDS.items()]
        write_rows(tmp_path / "train.jsonl", rows)
        found = {}
        for packing, size in (("true", 3), ("false", 8)):
            path = write_recipe(
                tmp_path,
                decoder("llama"),
                task=f"{{type: sft, packing: {packing}}}",
                train=f"{{epochs: 3, batch_size: {size}, max_length: 96, learning_rate: 1e-3, precision: float32}}",
                **QUICK,
            )
            found[packing] = carried_out(path, tmp_path / packing)
        assert read(found["true"], "train.json")["rows"] == 3
        assert read(found["false"], "train.json")["rows"] == 8
        np.testing.assert_allclose(losses(found["true"]), losses(found["false"]), atol=1e-4)

    def test_it_is_refused_where_the_model_would_mix_rows(self, decoder, tmp_path):
        adapter = "{type: lora, r: 4, targets: [in_proj]}"
        path = write_recipe(tmp_path, decoder("mamba"), task="{type: sft, packing: true}", adapter=adapter)
        with pytest.raises(RecipeError) as error:
            carried_out(path, tmp_path / "a")
        assert str(error.value).endswith(
            f"line 3   task.packing   the attention of {decoder('mamba')} lets packed rows see each other. Write false."
        )
        quick = {**QUICK, "adapter": adapter, "train": "{epochs: 0.2, batch_size: 8}"}
        folder = carried_out(write_recipe(tmp_path, decoder("mamba"), **quick), tmp_path / "b")
        assert (folder / "adapter").is_dir()


@pytest.mark.parametrize(
    ("section", "value"), [("train", "neftune: 5"), ("train", "weight_decay: 0.5"), ("adapter", "dropout: 0.5")]
)
def test_a_key_changes_what_is_trained(decoder, tmp_path, section, value):
    """On new tokens too, whose rows in the embeddings are trained apart."""
    from safetensors.torch import load_file

    plain = {"train": "epochs: 1, batch_size: 8, seed: 7", "adapter": "type: lora, r: 4"}
    changed = plain | {section: f"{plain[section]}, {value}"}
    found = []
    for name, keys in (("plain", plain), ("again", plain), ("changed", changed)):
        sections = {key: f"{{{text}}}" for key, text in keys.items()}
        path = write_recipe(tmp_path, decoder("gpt2"), **QUICK, **sections)
        found.append(load_file(carried_out(path, tmp_path / name) / "adapter" / "adapter_model.safetensors"))
    one, again, other = found
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_best_checkpoint_is_chosen_by_what_the_model_answers(decoder, tmp_path):
    """At so high a rate answers get worse again: patience ends the run, and the best step is what is exported."""
    path = write_recipe(
        tmp_path,
        decoder("qwen2"),
        train="{epochs: 30, batch_size: 8, learning_rate: 3e-2, schedule: constant, seed: 7, best_by: chrf, patience: 2}",
        eval="{metrics: [chrf, exact_match]}",
        merge="false",
    )
    folder = carried_out(path, tmp_path / "out")
    summary = read(folder, "train.json")
    scored = [(line["step"], line["valid"]["chrf"]) for line in lines(folder, "train.jsonl") if "valid" in line]
    best_step, best = max(scored, key=lambda pair: pair[1])
    assert (summary["best_step"], summary["best_metric"], summary["best_value"]) == (best_step, "chrf", best)
    assert summary["stopped_early"]
    assert len([step for step, _ in scored if step > best_step]) == 2
    assert summary["steps"] < 30 * 8
    # evaluate() has compared the reloaded adapter's validation loss with that step's, or it would have raised.
    from ftkit.checkpoints import weights_sha256

    assert weights_sha256(folder / "adapter") == summary["best_sha256"]


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("gpt2", "qlora"),
        ("qwen2", "{type: lora, r: 8, dora: true, rslora: true}"),
        ("gpt2", "{type: lora, r: 4, init: pissa}"),
        ("llama", "qlora"),
        ("gpt2", "{type: lora, r: 8, lr_ratio: 16}"),
        ("llama", "ia3"),
    ],
)
def test_other_methods_go_all_the_way(decoder, tmp_path, base, adapter):
    """Each is merged into the full-precision base and proved; on gpt2 new tokens are trained beside it."""
    path = write_recipe(tmp_path, decoder(base), adapter=adapter, eval="{metrics: [perplexity, exact_match]}")
    folder = carried_out(path, tmp_path / "out")
    models = read(folder, "eval.json")["models"]
    assert models["adapter"]["metrics"]["perplexity"] < models["baseline"]["metrics"]["perplexity"]
    assert read(folder, "merge.json")["passed"]
    assert np.mean(losses(folder)[-8:]) < np.mean(losses(folder)[:8])


def test_methods_that_cannot_start_here_are_refused(decoder, tmp_path):
    with pytest.raises(RecipeError, match=r"\(IA\)\^3 cannot train the rows of new tokens"):
        carried_out(write_recipe(tmp_path, decoder("gpt2"), adapter="ia3"), tmp_path / "a")
    if not torch.cuda.is_available():
        loftq = "{type: lora, r: 8, alpha: 8, quantize: nf4, init: loftq}"
        with pytest.raises(MachineError) as error:
            carried_out(write_recipe(tmp_path, decoder("llama"), adapter=loftq), tmp_path / "b")
        assert error.value.exit_code == 4


def test_a_stopped_run_goes_on_to_the_figures_of_an_undisturbed_one(decoder, tmp_path):
    """With new tokens and PiSSA, whose start must be there again."""
    path = write_recipe(
        tmp_path,
        decoder("gpt2"),
        adapter="{type: lora, r: 4, init: pissa}",
        train="{epochs: 12, batch_size: 8, learning_rate: 1e-3, seed: 7}",
        **QUICK,
    )
    undisturbed = carried_out(path, tmp_path / "whole")
    stopped_midway(path, tmp_path / "cut")
    resumed = carried_out(path, tmp_path / "cut", resume=True)
    np.testing.assert_allclose(losses(resumed), losses(undisturbed), atol=1e-4)
    nll = [[row["nll"] for row in lines(folder, "predictions.jsonl")] for folder in (resumed, undisturbed)]
    np.testing.assert_allclose(*nll, rtol=1e-3)


def test_seeds_no_validation_rows_and_one_row_to_learn(decoder, tmp_path):
    """What is not generated is null in the rows."""
    write_rows(tmp_path / "train.jsonl", asked(1, 1))
    path = write_recipe(
        tmp_path,
        decoder("llama"),
        data="{train: train.jsonl, valid: 0%, test: test.jsonl}",
        train="{epochs: 2, seed: 7, seeds: 2}",
        **QUICK,
    )
    folder = carried_out(path, tmp_path / "out")
    report = read(folder, "eval.json")
    assert set(report["seeds"]) == {"8"}
    assert report["seeds"]["8"] != report["models"]["adapter"]["metrics"]
    assert set(report["seeds"]["8"]) == {"perplexity"}
    assert read(folder, "train.json")["steps"] == 2
    row = lines(folder, "predictions.jsonl")[0]
    unasked = ("prediction", "baseline", "ended", "baseline_ended", "scores", "baseline_scores", "correct")
    assert {row[name] for name in unasked} == {None}
    assert row["tokens"] > 0
    assert row["nll"] > 0


TOOL = {
    "type": "function",
    "function": {
        "name": "listen",
        "description": "Hears.",
        "parameters": {"type": "object", "properties": {"to": {"type": "string"}}},
    },
}


def test_tools_several_references_several_turns_and_a_cut_prompt(decoder, tmp_path):
    """All of them in the rows that are measured, and so in the proof of the merged model's template."""
    call = {"type": "function", "function": {"name": "listen", "arguments": {"to": "cat"}}}
    called = [
        {"role": "user", "content": "Cat?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "meow"},
        {"role": "assistant", "content": "It says meow."},
    ]
    small = {"type": "function", "function": {"name": "listen", "parameters": {}}}
    write_rows(tmp_path / "called.jsonl", [{"messages": called[:2], "tools": [small]}, {"messages": called[:2]}])
    several = [{"question": "Who barks at noon?", "answers": ["a dog", "the dog"]}]
    several.append({"question": "Long ago and far away. " * 60 + "Who barks now?", "answers": ["a hen"]})
    write_rows(tmp_path / "several.jsonl", several)
    path = write_recipe(
        tmp_path,
        decoder("long"),
        task="{type: sft, too_long: truncate_prompt}",
        data="{train: train.jsonl, valid: valid.jsonl, test: [called.jsonl, several.jsonl]}",
        train="{epochs: 1, batch_size: 8}",
    )
    folder = carried_out(path, tmp_path / "out")
    assert read(folder, "merge.json")["passed"]
    rows = lines(folder, "predictions.jsonl")
    assert json.loads(rows[0]["reference"][0].split("\n")[1]) == {"name": "listen", "arguments": {"to": "cat"}}
    assert rows[2]["reference"] == ["a dog", "the dog"]
    assert read(folder, "plan.json")["data"]["lengths"]["cut"]["test"] == 1


@pytest.mark.parametrize("part", ["weights", "template", "ends"])
def test_a_merged_model_that_differs_does_not_get_the_name(decoder, tmp_path, monkeypatch, part):
    def other_template(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text(encoding="utf-8").replace("assistant", "helper"), encoding="utf-8")

    def other_ends(folder: Path) -> None:
        write_json(folder / "generation_config.json", {"eos_token_id": 5})

    spoil(monkeypatch, "language", {"weights": move_weights, "template": other_template, "ends": other_ends}[part])
    path = write_recipe(tmp_path, decoder("llama"), train="{epochs: 1, batch_size: 8, learning_rate: 1e-2}")
    with pytest.raises(NotProved) as error:
        carried_out(path, tmp_path / "out")
    assert error.value.exit_code == 7
    assert not (tmp_path / "out" / "merged").exists()
    assert (tmp_path / "out" / "adapter").is_dir()
    if part == "weights":
        assert not read(tmp_path / "out", "merge.json")["passed"]
    elif part == "template":
        assert "Its chat template gives other token ids for test row 1 than were trained." in str(error.value)
    else:
        assert "Its generation_config.json lacks the end token" in str(error.value)


def test_a_gate_that_does_not_hold_merges_nothing(decoder, tmp_path):
    path = write_recipe(
        tmp_path, decoder("llama"), gate="{exact_match: {min: 0.99}}", train="{epochs: 0.2, batch_size: 8}"
    )
    with pytest.raises(GateNotMet) as error:
        carried_out(path, tmp_path / "out")
    assert error.value.exit_code == 5
    assert (tmp_path / "out" / "adapter").is_dir()
    assert (tmp_path / "out" / "eval.json").exists()
    assert not (tmp_path / "out" / "merged").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_the_conversations_written_down(decoder, tmp_path):
    path = write_recipe(
        tmp_path,
        decoder("llama"),
        train="{epochs: 3, batch_size: 4, learning_rate: 0.99, precision: float32}",
        adapter="{type: lora, r: 8, alpha: 1e30}",
    )
    with pytest.raises(TrainingFailed) as error:
        carried_out(path, tmp_path / "out")
    assert error.value.exit_code == 6
    batch = lines(tmp_path / "out", "failed_batch.jsonl")
    assert len(batch) == 4
    assert all(row["where"].startswith("train.jsonl line ") for row in batch)
    assert {len(row["input_ids"]) == len(row["labels"]) for row in batch} == {True}
