"""Report, card and summary of models that answer: task sft, and classifiers whose labels are words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftkit import card, files
from ftkit.cli import lists
from ftkit.records import ClassScore, Comparison, EvalReport, GateReason, ModelScores, Verdict, as_json
from ftkit.report import answers, facts, html, replies, tables, untrusted, wording
from ftkit.report.story import Story
from ftkit.rundir import RunDir
from tests.conftest import pico_config
from tests.test_card import code_blocks, table_rows
from tests.test_report import TRAIN, Page, printed, train_log

HOSTILE = "<script>alert(1)</script> {{ 7*7 }} rtl \u202eevil </blockquote> <mark>"
ROWS = 250
TEMPLATE = (
    "{% for turn in messages %}<|im_start|> {{ turn['role'] }} {{ turn['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
MERGE = {
    "method": "lora", "dtype": "float32", "unit": "row", "max_abs_logit_diff": 2.1e-6, "argmax_agreement": 1.0,
    "metric_diff": 0.0, "tolerance": {"max_abs_logit_diff": 0.001}, "passed": True, "rows": ROWS, "peak_rss_mb": 611,
    "seconds": 1.4, "bytes_read": 1, "bytes_written": 1,
}  # fmt: skip
ANSWERED = {
    "baseline": {"exact_match": 0.0, "rouge_l": 0.12, "perplexity": 15.2, "ended": 0.4, "length_ratio": 2.5},
    "adapter": {"exact_match": 0.2, "rouge_l": 0.41, "perplexity": 6.1, "ended": 0.98, "length_ratio": 1.02},
}

NO_GATE = Verdict(True)


def scores(values: dict[str, float], labels: tuple[str, ...] = ()) -> ModelScores:
    per_class = tuple(ClassScore(label, 0.8, 0.8, 0.8, 100) for label in labels)
    low_to_high = {name: (value * 0.9, value * 1.1) for name, value in values.items()}
    return ModelScores(dict(values), low_to_high, per_class, ())


def compared(metric: str, difference: float) -> Comparison:
    low, high = sorted((difference * 0.8, difference * 1.2))
    return Comparison("paired_bootstrap", metric, 0.0004, difference, (low, high))


def evaluation(gate: Verdict = NO_GATE, models: dict[str, dict[str, float]] = ANSWERED) -> EvalReport:
    ours, base = models["adapter"], models["baseline"]
    against = [compared(name, ours[name] - base[name]) for name in ours]
    found = {name: scores(values) for name, values in models.items()}
    return EvalReport("sft", "test", ROWS, (), False, "ab" * 32, "", 42, found, {"adapter_vs_baseline": against}, gate)


def plan(**task: Any) -> dict[str, Any]:
    return {
        "name": "answers",
        "command": "ftkit run recipes/answers.yaml",
        "recipe": {"task": {"type": "sft", "prompt": None, "system": None} | task, "merge": True},
        "base": {"ref": "org/lm", "source": "hub", "revision": "4f2c", "licence": "mit"},
        "data": {
            "files": [{"path": "qa.jsonl", "split": "train", "sha256": "cd" * 32, "rows": 1200}],
            "sha256": "ab" * 32,
            "licence": "cc0-1.0",
            "splits": {"train": 1200, "valid": 60, "test": ROWS},
            "tokens": {"train": 120_000, "valid": 6_000, "test": 25_000},
            "empty": 0,
            "lengths": {
                "max_length": 512,
                "longest": 640,
                "histogram": [{"upto": 64 * (i + 1), "count": n} for i, n in enumerate((700, 300, 150, 50))],
                "policy": "drop",
                "too_long": {"train": 3, "valid": 0, "test": 0},
                "cut": {"train": 0, "valid": 0, "test": 0},
            },
            "packing": False,
            "max_new_tokens": 48,
            "template": {"source": "chatml", "sha256": "ef" * 32, "stop": ["<|im_end|>"], "added": []},
            "mask": {
                "rows": 1200, "untrained": 0, "trained_tokens": 30_000, "share": 0.25, "min": 3, "median": 22,
                "mean": 25.0, "max": 90, "stopped": 1200, "recut": 0,
                "samples": [[["<|im_start|>user\n" + "long " * 400, False], ["Paris<|im_end|>", True], ["\n", False]]] * 9,
            },
            "findings": [],
        },
        "seed": 42,
    }  # fmt: skip


def reply(number: int, **changes: Any) -> dict[str, Any]:
    ours, base = (number * 7919 % 101) / 100, (number * 104729 % 97) / 100
    return {
        "id": f"qa.jsonl:{number}",
        "where": f"qa.jsonl line {number}",
        "input": f"question {number} {HOSTILE}",
        "reference": [f"right {number}"],
        "prediction": f"ours {number}",
        "baseline": f"base {number}",
        "ended": number % 50 != 0,
        "baseline_ended": False,
        "tokens": 10,
        "bytes": 40,
        "nll": 10 + number % 13,
        "baseline_nll": 10 + number % 11,
        "scores": {"exact_match": float(ours == 1), "rouge_l": ours},
        "baseline_scores": {"exact_match": 0.0, "rouge_l": base},
        "correct": ours == 1,
    } | changes


def build(
    folder: Path,
    report: EvalReport | None = None,
    *,
    planned: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    merge: dict[str, Any] | None = MERGE,
) -> Story:
    folder.mkdir(parents=True)
    files.write_text(folder / "recipe.yaml", "name: answers\n")
    files.write_json(folder / "plan.json", planned or plan())
    files.write_json(folder / "train.json", as_json(TRAIN))
    files.write_jsonl(folder / "train.jsonl", train_log())
    (folder / "adapter").mkdir()
    files.write_json(folder / "eval.json", as_json(report or evaluation()))
    files.write_jsonl(folder / "predictions.jsonl", rows if rows is not None else [reply(i) for i in range(ROWS)])
    if merge is not None:
        files.write_json(folder / "merge.json", merge)
        (folder / "merged").mkdir()
    return Story.read(folder)


WORDS = {"type": "classify", "words": {"prompt": "the {text}", "say": {"good": " great "}, "template": "model"}}


def words_run(folder: Path, merge: dict[str, Any] | None = MERGE) -> Story:
    labels = ("bad", "good")
    figures = {"accuracy": 0.8, "f1": 0.8, "log_loss": 0.4, "ece": 0.02, "out_of_label": 0.01}
    models = {
        "majority": scores({"accuracy": 0.5, "f1": 0.33}, labels),
        "baseline": scores(figures | {"accuracy": 0.6, "f1": 0.6, "out_of_label": 0.9}, labels),
        "adapter": scores(figures, labels),
        "adapter_generated": scores({"accuracy": 0.79, "f1": 0.79}, labels),
    }
    comparison = {
        "adapter_vs_baseline": [compared("f1", 0.2)],
        "adapter_vs_adapter_generated": [compared("f1", 0.01)],
    }
    report = EvalReport(
        "classify", "test", 200, labels, False, "ab" * 32, "macro", 42, models, comparison, Verdict(True)
    )
    rows = [
        {
            "id": f"test.csv:{row}",
            "input": f"text {row}",
            "reference": ["bad"],
            "prediction": ["good" if row % 5 == 0 else "bad"],
            "scores": {"bad": 0.3, "good": 0.7},
            "baseline": ["bad"],
            "generated": None if row == 7 else "good" if row % 5 == 0 else "bad",
            "said": f"great {HOSTILE}" if row == 0 else "",
            "correct": row % 5 != 0,
        }
        for row in range(200)
    ]
    planned = plan()
    planned["recipe"]["task"] = WORDS
    planned["data"]["labels"] = list(labels)
    return build(folder, report, planned=planned, rows=rows, merge=merge)


@pytest.fixture
def run(tmp_path: Path) -> Story:
    return build(tmp_path / "answers" / "one")


@pytest.fixture
def words(tmp_path: Path) -> Story:
    return words_run(tmp_path / "words" / "one")


@pytest.fixture(params=["run", "words", "likelihood"])
def any_run(request: pytest.FixtureRequest, tmp_path: Path) -> Story:
    if request.param == "likelihood":
        return likelihood_run(tmp_path / "answers" / "nll")
    found: Story = request.getfixturevalue(request.param)
    return found


def likelihood_run(folder: Path) -> Story:
    """Nothing was generated: the recipe asks for perplexity alone."""
    names = ("prediction", "baseline", "ended", "baseline_ended", "scores", "baseline_scores", "correct")
    rows = [reply(i, **dict.fromkeys(names)) for i in range(ROWS)]
    models = {name: {"perplexity": values["perplexity"]} for name, values in ANSWERED.items()}
    return build(folder, evaluation(models=models), rows=rows, merge=None)


def page_of(story: Story) -> str:
    return Page(html.render(story)).text


def test_every_page_is_closed_safe_and_repeatable(any_run: Story) -> None:
    text = html.render(any_run)
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value is not None
            assert value[1:] in page.ids
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
    assert text == html.render(Story.read(any_run.folder))
    assert len(text.encode()) < 300_000
    assert card.render(any_run) == card.render(Story.read(any_run.folder))
    for width in (60, 80):
        assert max(map(len, printed(any_run, width).splitlines())) <= width


def test_rows_are_ranked_by_the_best_metric_of_answers(run: Story) -> None:
    found = run.replies
    assert (run.predictions, run.texts) == (None, None)
    assert found is not None
    assert (found.rows, found.by) == (ROWS, "rouge_l")
    rows = [reply(i) for i in range(ROWS)]
    ours, base = ([row[name]["rouge_l"] for row in rows] for name in ("scores", "baseline_scores"))
    worst = sorted(range(ROWS), key=lambda i: (ours[i], -rows[i]["nll"], i))[: replies.WORST]
    assert [each.id for each in found.worst] == [rows[i]["id"] for i in worst]
    gained = sorted(range(ROWS), key=lambda i: (base[i] - ours[i], i))[: replies.GAINS]
    assert [each.id for each in found.gains] == [rows[i]["id"] for i in gained]
    by_score, by_nll = found.against
    assert (by_score.metric, by_nll.metric) == ("rouge_l", "perplexity")
    pairs = list(zip(ours, base, strict=True))
    assert by_score.better == sum(a > b for a, b in pairs)
    assert by_score.worse == sum(a < b for a, b in pairs)
    assert by_nll.better == sum(row["nll"] < row["baseline_nll"] for row in rows)
    assert by_nll.equal == sum(row["nll"] == row["baseline_nll"] for row in rows)
    assert by_score.rows == by_nll.rows == ROWS


def test_the_metric_of_the_gate_ranks_the_rows_where_they_have_it(tmp_path: Path) -> None:
    def by(name: str, metric: str) -> str:
        gate = Verdict(True, (GateReason(metric, "at least 0.10", "0.2", True),))
        found = build(tmp_path / name, evaluation(gate)).replies
        assert found is not None
        return found.by

    assert by("a", "exact_match") == "exact_match"
    assert by("b", "ended") == "rouge_l"
    assert by("c", "perplexity") == "rouge_l"


def test_the_sample_is_spread_the_same_every_time_and_small(tmp_path: Path) -> None:
    rows = [reply(i, prediction="x" * 9000, input="y" * 9000) for i in range(2000)]
    found = replies.read_replies(iter(rows), None)
    numbers = [int(each.id.split(":")[1]) for each in found.samples]
    assert len(set(numbers)) == replies.SAMPLES
    assert numbers == sorted(numbers)
    assert min(numbers) < 1000 < max(numbers)
    assert found == replies.read_replies(iter(rows), None)
    assert len(found.worst[0].prompt) == len(found.worst[0].prediction or "") == replies.LONGEST_TEXT
    few = replies.read_replies(iter(rows[:3]), None)
    assert [each.id for each in few.samples] == [row["id"] for row in rows[:3]]


def test_figures_that_are_missing_or_not_finite_rank_nothing() -> None:
    bad = [
        {"id": "x", "ended": None},
        reply(1, scores={"rouge_l": float("nan")}, nll=float("inf")),
        reply(2, tokens=0, scores=None),
    ]
    found = replies.read_replies([reply(0), *bad], "rouge_l")
    assert (found.rows, len(found.worst), len(found.samples)) == (4, 1, 4)
    assert all(against.rows == 1 for against in found.against)
    assert replies.read_replies([], None).rows == 0


def test_base_and_trained_model_stand_side_by_side(run: Story) -> None:
    text = page_of(run)
    assert run.replies is not None
    worst = run.replies.worst[0]
    number = worst.id.split(":")[1]
    shown = " ".join(untrusted.visible(HOSTILE).split())
    order = [
        "Row by row What was asked", "Furthest ahead of the base", "Worst rows", f"1. {worst.id} question {number} {shown}",
        f"Right right {number}", "Base ! did not end by itself", f"base {number}", "Trained model", f"ours {number}",
        "ROUGE-L 0.000 (base", "Drawn at random",
    ]  # fmt: skip
    at = 0
    for part in order:
        at = text.index(part, at)
    assert "Row by row, by ROUGE-L: this model does better than the base on" in text
    assert "the reference is likelier to this model than to the base in" in text
    assert answers.against_base(run)[0].replace("-", "\\-") in card.render(run).replace("-", "\\-")


def test_several_references_are_all_shown(tmp_path: Path) -> None:
    text = page_of(build(tmp_path / "a", rows=[reply(1, reference=["one answer", "another answer"])]))
    assert "Any of these is right one answer another answer" in text


def test_without_generated_answers_rows_are_ranked_by_perplexity(tmp_path: Path) -> None:
    told = likelihood_run(tmp_path / "answers" / "two")
    assert told.replies is not None
    assert told.replies.by == "perplexity"
    assert [against.metric for against in told.replies.against] == ["perplexity"]
    hardest = max(range(ROWS), key=lambda i: (i % 13, -i))
    assert told.replies.worst[0].id == f"qa.jsonl:{hardest}"
    text = page_of(told)
    assert "The rows with the worst perplexity" in text
    assert "Trained model" not in text
    assert "Answers are written with" not in text
    assert "share with the references" not in text


def test_what_was_learned_is_marked_and_said(run: Story) -> None:
    text = html.render(run)
    assert text.count("<mark>Paris&lt;|im_end|&gt;</mark>") == answers.SHOWN_ROWS
    assert text.count(" […] ") == answers.SHOWN_ROWS + 1  # and the sentence that explains it
    assert "long " * 40 not in text
    found = dict(facts.learned(run)) | dict(facts.template(run))
    assert found == {
        "Training rows checked": "1,200",
        "Tokens learned": "30,000 (25% of all)",
        "Tokens learned in a row": "least 3, median 22, mean 25, most 90",
        "Rows with nothing to learn": "0",
        "Rows that teach where to stop": "1,200",
        "Chat template": "ChatML",
        "SHA-256 of the template": "ef" * 32,
        "An answer ends at": "<|im_end|>",
        "Longest answer written": "48 tokens",
    }
    for term, value in found.items():
        assert term in text
        assert term in card.render(run)
        assert value.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "a row may have 512" in text
    assert dict(facts.data(run))["Rows left out as too long"] == "train 3, valid 0, test 0"
    assert dict(facts.data(run))["Prompts that lost their beginning"] == "none"
    assert dict(facts.data(run))["Packing"] == "a window holds one row"


def test_hostile_training_rows_do_nothing(tmp_path: Path) -> None:
    planned = plan()
    planned["data"]["mask"]["samples"] = [[[HOSTILE, False], [HOSTILE, True]]]
    text = html.render(build(tmp_path / "a", planned=planned))
    shown = untrusted.visible(HOSTILE).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"{shown}<mark>{shown}</mark>" in text


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ("rouge_l", "The adapter beats the base model: ROUGE-L 0.410 against 0.120 on 250 held-out rows (difference +0.290, 95% 0.232 to 0.348); "),
        ("perplexity", "The adapter beats the base model: Perplexity 6.100 against 15.200 on 250 held-out rows"),
        ("ended", "The adapter beats the base model: Ended by itself 0.980 against 0.400 on 250 held-out rows"),
        ("length_ratio", "The adapter reaches length ratio 1.020 (95% 0.918 to 1.122) on 250 held-out rows, against 2.500 of the base model; the gate is met"),
    ],
)  # fmt: skip
def test_headline_of_each_metric(tmp_path: Path, metric: str, sentence: str) -> None:
    gate = Verdict(True, (GateReason(metric, "at least 0.10", "0.2", True),))
    told = build(tmp_path / "a", evaluation(gate))
    assert wording.headline(told).sentence.startswith(sentence)


def test_no_ratio_is_called_best_better_or_worse(run: Story) -> None:
    assert run.eval is not None
    place = tables.results(run.eval).metrics.index("length_ratio")
    assert not any(row.cells[place].best for row in tables.results(run.eval).rows)
    assert tables.outcome(compared("length_ratio", -1.0)) == "lower"
    assert tables.outcome(compared("length_ratio", 1.0)) == "higher"
    assert "▼ lower" in page_of(run)
    assert "The adapter is below the base model: Length ratio -1.480" in card.render(run)


def test_main_metric_is_the_gate_s_then_perplexity_then_that_of_answers() -> None:
    assert tables.main_metric(evaluation()) == "perplexity"
    gate = Verdict(True, (GateReason("ended", "at least 0.90", "0.98", True),))
    assert tables.main_metric(evaluation(gate)) == "ended"
    assert tables.preferred(("exact_match", "ended", "chrf")) == "chrf"
    assert tables.preferred(("ended", "repetition")) == "ended"
    assert tables.answer_metric(("ended", "perplexity")) is None


def test_ls_shows_the_main_metric(run: Story) -> None:
    row = lists._row(RunDir(run.folder))
    assert (row["metric"], row["score"]) == ("perplexity", 6.1)


def test_summary_compares_by_likelihood_and_by_answers(run: Story) -> None:
    text = " ".join(printed(run, 200).split())
    assert "The adapter beats the base model: Perplexity -9.100" in text
    assert "The adapter beats the base model: ROUGE-L +0.290" in text
    assert "Exact match +0.200" not in text
    assert "the predictions agree on 100% of the tokens" in text


def test_limits_and_notes_of_answers(run: Story, words: Story) -> None:
    overlap = "measure how much they share with the references, not whether they are true"
    assert overlap in page_of(run)
    assert overlap in card.render(run)
    assert overlap not in page_of(words)
    assert "Perplexity is that of the reference answers" in page_of(run)
    assert "The label is chosen among the labels alone." in card.render(words)


def test_label_words_are_no_probe(words: Story) -> None:
    assert words.eval is not None
    assert [row.name for row in tables.results(words.eval).rows] == [
        "Majority class",
        "Base model",
        "Adapter",
        "Adapter, constrained generation",
    ]
    summary = " ".join(printed(words, 200).split())
    for text in (page_of(words), card.render(words), summary):
        assert "probe" not in text.replace(str(words.folder), "").lower()
        assert "beats the base model: F1" in text
    assert "F1 of the base" in page_of(words)
    assert "The adapter beats the adapter by constrained generation: F1 +0.010" in card.render(words)
    assert "is likeliest; with constrained generation" in page_of(words)
    assert "the predictions agree on 100%, and" in summary


def test_what_a_decoder_says_stands_beside_its_errors(words: Story) -> None:
    assert words.predictions is not None
    assert (words.predictions.wrong, words.predictions.generated) == (40, 199)
    text = page_of(words)
    assert "Written instead of chosen by likelihood, the label is the same in 199 rows." in text
    shown = " ".join(untrusted.visible(f"great {HOSTILE}")[:40].split())
    assert f"written freely {shown}" in text
    assert "written freely nothing" in text


@pytest.mark.parametrize(("kind", "metrics"), [("run", list(ANSWERED["adapter"])), ("words", ["accuracy", "f1", "log_loss", "ece", "out_of_label"])])  # fmt: skip
def test_front_matter(kind: str, metrics: list[str], request: pytest.FixtureRequest) -> None:
    _, found, _ = card.render(request.getfixturevalue(kind)).split("---\n", 2)
    assert yaml.safe_load(found) == {
        "base_model": "org/lm",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "metrics": metrics,
        "pipeline_tag": "text-generation",
        "tags": ["ftkit", "peft"],
    }


def test_the_card_has_every_figure_of_the_results(run: Story) -> None:
    rows = [row for row in table_rows(card.render(run)) if row[0] == "Adapter"]
    assert rows[0][1:3] == ["0.200 (0.180 to 0.220)", "0.410 (0.369 to 0.451)"]


def test_the_card_asks_as_the_recipe_does(tmp_path: Path) -> None:
    planned = plan(prompt='Say "{x}"', system="Be brief.")
    for code in code_blocks(card.render(build(tmp_path / "a", planned=planned)), "python"):
        assert '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say \\"{x}\\""}]' in code
        assert '["<|im_end|>"]' in code
        assert "max_new_tokens=48" in code


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found.chat_template = TEMPLATE
    return found


def run_code(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *, vocab: int
) -> tuple[list[str], Any]:
    """What each code of the card prints, with pico models where a run leaves them, and the merged model."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = pico_config("llama")
    config.vocab_size = vocab
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(folder / "base")
    if vocab < len(tokenizer):
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapter = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, adapter)
    model.save_pretrained(folder / "adapter")
    merged = model.merge_and_unload().eval()
    merged.save_pretrained(folder / "merged")
    for place in ("adapter", "merged"):
        tokenizer.save_pretrained(folder / place)
    planned = files.read_json(folder / "plan.json")
    files.write_json(folder / "plan.json", planned | {"base": {"ref": "./base", "folder": str(folder / "base")}})
    monkeypatch.chdir(folder)
    out = []
    for code in code_blocks(card.render(Story.read(folder)), "python"):
        exec(compile(code, "README.md", "exec"), {})
        out.append(capsys.readouterr().out.strip())
    return out, merged


def test_code_in_the_card_gives_the_greedy_answer(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import torch

    planned = plan(prompt="we found the film")
    planned["data"]["max_new_tokens"] = 12
    folder = tmp_path / "run"
    build(folder, planned=planned)
    printed_texts, model = run_code(folder, tokenizer, monkeypatch, capsys, vocab=64)
    ids = tokenizer("<|im_start|> user we found the film <|im_end|> <|im_start|> assistant ", add_special_tokens=False)
    ids = list(ids.input_ids)
    stop, start = tokenizer.convert_tokens_to_ids("<|im_end|>"), len(ids)
    while len(ids) < start + 12 and ids[-1] != stop:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    wanted = tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert wanted
    assert printed_texts == [wanted, wanted]


def test_code_in_the_card_gives_the_likelihood_of_each_label(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import torch

    words_run(tmp_path / "run")
    found, model = run_code(tmp_path / "run", tokenizer, monkeypatch, capsys, vocab=64)
    total = []
    for word in ("bad", "great"):
        prompt = "<|im_start|> user the your text <|im_end|> <|im_start|> assistant "
        begin = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        ids = tokenizer(f"{prompt}{word} <|im_end|>", add_special_tokens=False).input_ids
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total.append(sum(float(chances[at - 1, ids[at]]) for at in range(begin, len(ids))))
    wanted = torch.tensor(total).softmax(0).tolist()
    for text in found:
        scores_by_word = json.loads(text.replace("'", '"'))
        assert list(scores_by_word) == ["bad", "good"]
        assert list(scores_by_word.values()) == pytest.approx(wanted, abs=1e-5)


def test_code_in_the_card_makes_room_for_added_tokens(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    planned = plan()
    planned["data"]["template"]["added"] = ["<|im_start|>", "<|im_end|>"]
    build(tmp_path / "run", planned=planned)
    found, _ = run_code(tmp_path / "run", tokenizer, monkeypatch, capsys, vocab=len(tokenizer) - 2)
    assert len(found) == 2
