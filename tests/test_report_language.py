"""Report, card and summary of language models, from run folders as each kind of run leaves them."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftkit import card, files
from ftkit.records import Comparison, EvalReport, GateReason, ModelScores, TrainSummary, Verdict, as_json
from ftkit.report import facts, html, numbers, tables, texts, untrusted, wording
from ftkit.report.story import Story
from tests.conftest import pico_config
from tests.test_card import code_blocks, table_rows
from tests.test_report import Page, printed

HOSTILE = "<script>alert(1)</script> {{ 7*7 }} rtl \u202eevil </blockquote>"
PASSED = Verdict(True, (GateReason("perplexity", "to beat the baseline", "12.346 against 15.200", True),))
WINDOWS = 812


def scores(perplexity: float, *, with_bytes: bool = True, interval: bool = True) -> ModelScores:
    values: dict[str, float | None] = {"perplexity": perplexity}
    if with_bytes:
        values["bits_per_byte"] = perplexity / 12
    low_to_high = {name: (value * 0.9, value * 1.1) for name, value in values.items() if value is not None}
    return ModelScores(values, low_to_high if interval else {}, (), ())


def against(difference: float, low: float, high: float) -> list[Comparison]:
    return [Comparison("paired_bootstrap", "perplexity", 0.001, difference, (low, high))]


def evaluation(
    models: dict[str, ModelScores], comparison: dict[str, list[Comparison]], gate: Verdict, n: int = WINDOWS
) -> EvalReport:
    return EvalReport("pretrain", "test", n, (), False, "ab" * 32, "", 42, models, comparison, gate, unit="window")


def plan(objective: str, scratch: bool) -> dict[str, Any]:
    base: dict[str, Any] = {"ref": "org/lm", "source": "hub", "revision": "4f2c", "licence": "mit"}
    if scratch:
        init = {"architecture": "llama", "layers": 6, "hidden": 256}
        base = {"ref": None, "source": "from scratch", "init": init, "parameters": 10_512_384}
    return {
        "ftkit": "0.2.0",
        "name": "wiki",
        "command": "ftkit run recipes/wiki.yaml",
        "created": "2026-11-25T10:00:00Z",
        "recipe": {"name": "wiki", "task": {"type": "pretrain", "objective": objective}, "merge": not scratch},
        "decisions": [{"key": "task.packing", "value": True, "why": "the base's attention keeps documents apart"}],
        "base": base,
        "data": {
            "files": [{"path": "wiki/a.txt", "split": "train", "sha256": "cd" * 32, "rows": 1200}],
            "sha256": "ab" * 32,
            "licence": "cc-by-sa-4.0",
            "splits": {"train": 1200, "valid": 60, "test": 140},
            "tokens": {"train": 1_234_567, "valid": 60_100, "test": 140_000},
            "bytes": {"train": 5_000_001, "valid": 240_000, "test": 560_000},
            "windows": {"train": 2412, "valid": 118, "test": WINDOWS},
            "packing": True,
            "lengths": {
                "max_length": 512,
                "longest": 9001,
                "histogram": [{"upto": 512 * (i + 1), "count": n} for i, n in enumerate((700, 300, 150, 50))],
                "splits": {},
            },
            "cleaning": [
                {"step": "control characters", "changed": 12, "dropped": 0},
                {"step": "exact duplicates", "changed": 0, "dropped": 3417},
            ],
            "findings": [
                {"level": "warning", "code": "overlap", "message": "9 documents overlap", "rows": ["a.txt:7"]}
            ],
        },
        "versions": {"python": "3.11.7"},
        "seed": 42,
    }


def window(number: int, text: str = "some text", *, base: bool = True, with_bytes: bool = True) -> dict[str, Any]:
    tokens = 400 + number % 7
    return {
        "id": f"wiki.txt:{number}#1",
        "where": f"wiki/wiki.txt line 1, window {number}",
        "input": text,
        "tokens": tokens,
        "bytes": 4 * tokens if with_bytes else None,
        "nll": tokens * (2 + number * 7919 % 100 / 100),
        "baseline_nll": tokens * 2.5 if base else None,
        "prompt": None,
        "reference": None,
        "prediction": None,
        "baseline": None,
    }


def train_log() -> list[dict[str, Any]]:
    chance = random.Random(1)
    lines: list[dict[str, Any]] = [{"step": step, "loss": 3 - step / 200 + chance.random() / 9} for step in range(100)]
    valid = [
        {"step": step, "valid": {"loss": 3.1 - step / 200, "perplexity": 21.0}, "best": False} for step in (40, 80)
    ]
    return lines + valid


def build(
    folder: Path,
    report: EvalReport | None,
    *,
    objective: str = "causal",
    scratch: bool = False,
    rows: list[dict[str, Any]] | None = None,
    train: dict[str, Any] | None = None,
    merge: dict[str, Any] | None = None,
) -> Story:
    folder.mkdir(parents=True)
    files.write_text(folder / "recipe.yaml", "name: wiki\n")
    files.write_json(folder / "plan.json", plan(objective, scratch))
    summary = TrainSummary(
        300, 1.0, 2.71, 90.0, 3.0, 1.0, 2412, 1_234_567, 13_000.0, 900, None, 100, 1000, 4, 80, "perplexity", 21.0
    )
    files.write_json(folder / "train.json", as_json(summary) | (train or {}))
    files.write_jsonl(folder / "train.jsonl", train_log())
    (folder / ("model" if scratch else "adapter")).mkdir()
    if report is not None:
        files.write_json(folder / "eval.json", as_json(report))
    files.write_jsonl(folder / "predictions.jsonl", rows if rows is not None else [window(i) for i in range(WINDOWS)])
    if merge is not None:
        files.write_json(folder / "merge.json", merge)
        (folder / "merged").mkdir()
    return Story.read(folder)


MERGE = {
    "method": "lora", "dtype": "float32", "max_abs_logit_diff": 2.1e-6, "argmax_agreement": 1.0, "metric_diff": 0.0,
    "tolerance": {"max_abs_logit_diff": 0.001}, "passed": True, "rows": WINDOWS, "unit": "window", "peak_rss_mb": 611,
    "seconds": 1.4, "bytes_read": 1, "bytes_written": 1,
}  # fmt: skip
SAMPLE = {"prompt": "Once upon", "reference": " a time", "prediction": f" trained {HOSTILE}", "baseline": " based"}


@pytest.fixture
def adapter(tmp_path: Path) -> Story:
    models = {"baseline": scores(15.2), "adapter": scores(12.3456), "merged": scores(12.3456)}
    report = evaluation(models, {"adapter_vs_baseline": against(-2.854, -3.1, -2.6)}, PASSED)
    rows = [window(i, f"text {i} {HOSTILE}") for i in range(WINDOWS)]
    rows[0] |= SAMPLE
    return build(tmp_path / "wiki" / "one", report, rows=rows, merge=MERGE)


@pytest.fixture
def scratch(tmp_path: Path) -> Story:
    report = evaluation({"model": scores(12.3456)}, {}, Verdict(True))
    rows = [window(i, base=False) for i in range(WINDOWS)]
    rows[3] |= SAMPLE | {"baseline": None}
    return build(tmp_path / "wiki" / "two", report, scratch=True, rows=rows)


@pytest.fixture
def masked(tmp_path: Path) -> Story:
    models = {"unigram": scores(22026.5, with_bytes=False), "adapter": scores(9.5, with_bytes=False)}
    report = evaluation(models, {"adapter_vs_unigram": against(-22017, -22300, -21800)}, Verdict(True))
    rows = [window(i, with_bytes=False) for i in range(WINDOWS)]
    return build(tmp_path / "wiki" / "three", report, objective="masked", rows=rows)


@pytest.fixture(params=["adapter", "scratch", "masked", "unmeasured"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Story:
    if request.param == "unmeasured":
        rows = [window(0) | SAMPLE]
        return build(tmp_path / "wiki" / "four", None, rows=rows)
    found: Story = request.getfixturevalue(request.param)
    return found


def page_of(story: Story) -> str:
    return Page(html.render(story)).text


def test_every_page_is_closed_safe_and_repeatable(run: Story) -> None:
    text = html.render(run)
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value is not None
            assert value.startswith("#")
            assert value[1:] in page.ids
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
    assert not re.search(r"url\((?!#)|@import", text)
    assert text == html.render(Story.read(run.folder))
    assert "labels" not in page.ids
    assert "By label" not in page.text


def test_nothing_that_is_measured_is_called_a_row(run: Story) -> None:
    for text in (page_of(run), card.render(run), printed(run, 140)):
        assert not re.search(r"\b[Rr]ows?\b", text)


def test_text_of_the_data_is_shown_and_does_nothing(adapter: Story) -> None:
    page = Page(html.render(adapter))
    shown = " ".join(untrusted.visible(HOSTILE).split())
    assert f"trained {shown}" in page.text
    assert adapter.texts is not None
    number = adapter.texts.worst[0].id.partition(":")[2]
    assert f"text {number} {shown}" in page.text
    assert "<script" not in html.render(adapter)


def test_samples_stand_side_by_side(adapter: Story, scratch: Story) -> None:
    text = page_of(adapter)
    order = ["1. wiki.txt:0#1", "Prompt Once upon", "The base wrote based", "The trained model wrote trained"]
    places = [text.index(part) for part in [*order, "The text says a time", "Hardest texts Of 812 documents"]]
    assert places == sorted(places)
    alone = page_of(scratch)
    assert "The trained model wrote" in alone
    assert "The base wrote" not in alone


def test_the_hardest_texts_are_those_with_most_bits_a_byte(tmp_path: Path) -> None:
    rows = [window(i, "x" * 9000) for i in range(1000)]
    files.write_jsonl(tmp_path / "predictions.jsonl", rows)
    read = Story.read(tmp_path)
    assert read.predictions is None
    assert read.texts is not None
    wanted = sorted(rows, key=lambda row: (-row["nll"] / row["bytes"], rows.index(row)))[: texts.HARDEST]
    assert [hard.id for hard in read.texts.worst] == [row["id"].rpartition("#")[0] for row in wanted]
    assert all(len(hard.text) == texts.LONGEST_TEXT and hard.cut for hard in read.texts.worst)
    assert read.texts.worst[0].perplexity == pytest.approx(2.718281828459045**2.99)
    assert read.texts.worst[0].baseline == pytest.approx(2.718281828459045**2.5)
    assert read.texts.improved == sum(row["nll"] < row["baseline_nll"] for row in rows)


def test_bytes_decide_before_tokens(tmp_path: Path) -> None:
    dense = window(1) | {"tokens": 10, "bytes": 1000, "nll": 50.0}
    wide = window(2) | {"tokens": 100, "bytes": 100, "nll": 100.0}
    for number, change, first in ((0, {}, wide), (1, {"bytes": None}, dense)):
        folder = tmp_path / str(number)
        files.write_jsonl(folder / "predictions.jsonl", [dense | change, wide | change])
        found = Story.read(folder).texts
        assert found is not None
        assert found.worst[0].id == first["id"].rpartition("#")[0]


def test_a_document_s_windows_count_together(tmp_path: Path) -> None:
    """One bad window of a long document does not make it the hardest; its figures are those of all its windows."""
    start = window(1, "the start") | {"tokens": 100, "bytes": 400, "nll": 100.0, "baseline_nll": 200.0}
    rest = start | {"id": "wiki.txt:1#2", "input": "the rest", "nll": 500.0}
    other = window(2) | {"tokens": 100, "bytes": 400, "nll": 400.0}
    files.write_jsonl(tmp_path / "predictions.jsonl", [start, rest, other])
    found = Story.read(tmp_path).texts
    assert found is not None
    assert (found.windows, found.documents) == (3, 2)
    assert [hard.id for hard in found.worst] == ["wiki.txt:2", "wiki.txt:1"]
    long = found.worst[1]
    assert (long.text, long.cut) == ("the start", True)
    assert long.perplexity == pytest.approx(2.718281828459045**3)
    assert long.baseline == pytest.approx(2.718281828459045**2)


def test_lines_without_figures_are_passed_over(tmp_path: Path) -> None:
    rows = [window(0), {"id": "x"}, window(1) | {"nll": None}, window(2) | {"tokens": 0, "nll": 0.0}]
    files.write_jsonl(tmp_path / "predictions.jsonl", rows)
    found = Story.read(tmp_path).texts
    assert found is not None
    assert (found.windows, len(found.worst)) == (2, 1)
    (tmp_path / "predictions.jsonl").write_text("")
    assert Story.read(tmp_path).texts is None


def test_headline_of_each_kind_of_run(adapter: Story, scratch: Story, masked: Story) -> None:
    assert wording.headline(adapter).sentence == (
        "The adapter beats the base model: Perplexity 12.346 against 15.200 on 812 held-out windows "
        "(difference -2.854, 95% -3.100 to -2.600); the gate is met; "
        "the merged model is the trained one (largest logit difference 2.1e-6)."
    )
    assert wording.headline(scratch).sentence == (
        "The model reaches perplexity 12.346 (95% 11.111 to 13.580) on 812 held-out windows, compared with no other "
        "model; the recipe sets no condition."
    )
    assert wording.headline(masked).sentence.startswith(
        "The adapter beats the token frequencies alone: Perplexity 9.500 against 22,026 on 812 held-out windows "
        "(difference -22,017, 95% -22,300 to -21,800)"
    )


def test_a_base_that_was_not_compared_is_still_named(tmp_path: Path) -> None:
    models = {"baseline": scores(15.2, interval=False), "adapter": scores(12.3456, interval=False)}
    told = build(tmp_path / "wiki" / "few", evaluation(models, {"adapter_vs_baseline": []}, Verdict(True), n=4))
    assert wording.headline(told).sentence.startswith(
        "The adapter reaches perplexity 12.346 on 4 held-out windows, against 15.200 of the base model "
        "(the difference was not tested); "
    )
    assert "There are only 4 windows to measure on" in card.render(told)


def test_a_gate_that_failed_says_nothing_of_a_merge_where_there_is_no_base(tmp_path: Path) -> None:
    gate = Verdict(False, (GateReason("perplexity", "at most 10.00", "12.346", False),))
    told = build(tmp_path / "wiki" / "bad", evaluation({"model": scores(12.3456)}, {}, gate), scratch=True)
    found = wording.headline(told)
    assert found.label == "Gate not met"
    assert found.sentence.endswith("the gate is not met (Perplexity: need at most 10.00, got 12.346).")


def test_main_model_and_metric(adapter: Story, scratch: Story) -> None:
    assert adapter.eval is not None
    assert scratch.eval is not None
    assert [tables.main_model(story.eval) for story in (adapter, scratch) if story.eval] == ["adapter", "model"]
    assert tables.main_metric(scratch.eval) == "perplexity"
    swapped = ModelScores({"bits_per_byte": 1.0, "perplexity": 12.0}, {}, (), ())
    assert tables.main_metric(evaluation({"model": swapped}, {}, Verdict(True))) == "perplexity"
    gate = Verdict(True, (GateReason("bits_per_byte", "at most 2.00", "1.000", True),))
    assert tables.main_metric(evaluation({"model": swapped}, {}, gate)) == "bits_per_byte"
    assert tables.ordered_models(adapter.eval) == ["baseline", "adapter", "merged"]


def test_data_is_told_in_documents_tokens_and_bytes_with_its_cleaning(adapter: Story) -> None:
    text = page_of(adapter)
    found = dict(facts.data(adapter))
    assert list(found) == [
        "Documents",
        "Tokens",
        "Bytes of text",
        "Windows",
        "Packing",
        "Licence",
        "SHA-256 of the data",
        "Longest document",
        "A window holds",
    ]
    assert found["Documents"] == "train 1,200, valid 60, test 140"
    assert found["Bytes of text"] == "train 5,000,001, valid 240,000, test 560,000"
    assert found["Packing"] == "documents share a window, and none sees another"
    assert found["A window holds"] == "512 tokens"
    for term, value in found.items():
        assert term in text
        assert value in text
    rows = table_rows(card.render(adapter))
    assert ["control characters", "12", "0"] in rows
    assert ["exact duplicates", "0", "3,417"] in rows
    assert "exact duplicates" in text
    assert "3,417" in text


def test_window_by_window_and_what_perplexity_means(adapter: Story, scratch: Story, masked: Story) -> None:
    assert adapter.texts is not None
    better = numbers.count(adapter.texts.improved)
    line = f"Window by window: the model predicts {better} of 812 windows ("
    assert line in page_of(adapter)
    assert line in card.render(adapter)
    assert "Window by window" not in page_of(scratch)
    assert "better than token frequencies." in page_of(masked)
    assert "Bits per byte does not depend on the tokens." in page_of(adapter)
    assert "Perplexity is that of the hidden tokens" in page_of(masked)


def test_charts_show_the_validation_loss(adapter: Story) -> None:
    text = html.render(adapter)
    assert "validation</text>" in text or ">validation<" in text
    assert "Perplexity on validation windows" in text
    assert "tokens in a document" in text
    assert "a window holds 512" in text


def test_summary_says_what_is_there_and_what_to_do_next(adapter: Story, scratch: Story, masked: Story) -> None:
    text = " ".join(printed(adapter, 200).split())
    assert "test, 812 windows" in text
    assert "The adapter beats the base model: Perplexity -2.854 (95% -3.100 to -2.600), p = 0.0010" in text
    assert (
        "The merged model is the trained one: on 812 windows the largest logit difference is 2.1e-6 (allowed: 0.001), "
        "the predictions agree on 100% of the tokens, and the metric differs by 0."
    ) in text
    assert "adapter/, merged/" in text
    alone = " ".join(printed(scratch, 200).split())
    assert f"{scratch.folder}: model/" in alone
    assert f'next: ftkit predict {scratch.folder} --text "…"' in alone
    assert "The adapter beats the token frequencies alone" in " ".join(printed(masked, 200).split())
    for width in (60, 80):
        assert max(map(len, printed(masked, width).splitlines())) <= width


def test_a_loss_that_did_not_move_and_an_early_end_are_said(tmp_path: Path) -> None:
    report = evaluation({"model": scores(12.0)}, {}, Verdict(True))
    flags = {"loss_moved": False, "stopped_early": True}
    text = card.render(build(tmp_path / "wiki" / "flat", report, scratch=True, train=flags))
    assert "The training loss did not move" in text
    assert "stopped early because the validation figure no longer improved" in text
    fine = card.render(build(tmp_path / "wiki" / "fine", report, scratch=True))
    assert "did not move" not in fine
    assert "stopped early" not in fine


def test_a_run_that_stopped_names_what_it_would_have_made(tmp_path: Path) -> None:
    story = build(tmp_path / "wiki" / "x", None, scratch=True)
    (story.folder / "train.json").unlink()
    files.write_text(story.folder / "error.txt", "error: the loss is not finite\n")
    assert wording.headline(Story.read(story.folder)).sentence.endswith("There is no model and nothing was measured.")


@pytest.mark.parametrize(
    ("kind", "front"),
    [
        ("adapter", {"base_model": "org/lm", "base_model_relation": "adapter", "library_name": "peft", "metrics": ["perplexity", "bits_per_byte"], "pipeline_tag": "text-generation", "tags": ["ftkit", "peft"]}),
        ("scratch", {"library_name": "transformers", "metrics": ["perplexity", "bits_per_byte"], "pipeline_tag": "text-generation", "tags": ["ftkit"]}),
        ("masked", {"base_model": "org/lm", "base_model_relation": "adapter", "library_name": "peft", "metrics": ["perplexity"], "pipeline_tag": "fill-mask", "tags": ["ftkit", "peft"]}),
    ],
)  # fmt: skip
def test_front_matter(kind: str, front: dict[str, Any], request: pytest.FixtureRequest) -> None:
    _, found, _ = card.render(request.getfixturevalue(kind)).split("---\n", 2)
    assert yaml.safe_load(found) == front


def test_code_in_the_card_loads_what_is_there(adapter: Story, scratch: Story, masked: Story) -> None:
    def strings(code: str) -> set[object]:
        return {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}

    first, second = code_blocks(card.render(adapter), "python")
    assert 'AutoModelForCausalLM.from_pretrained("org/lm", revision="4f2c")' in first
    assert "merged" in strings(second)
    (only,) = code_blocks(card.render(scratch), "python")
    assert "model" in strings(only)
    assert "peft" not in only
    (hidden,) = code_blocks(card.render(masked), "python")
    assert "AutoModelForMaskedLM" in hidden
    assert "Fine-tuned from" not in page_of(scratch)
    assert "Trained from scratch" in page_of(scratch)
    assert "Parameters: 10,512,384" in card.render(scratch)


@pytest.mark.parametrize(
    ("shown", "want"),
    [
        (numbers.score(999.9), "999.900"), (numbers.score(12345.6), "12,346"), (numbers.score(1e300), "1e300"),
        (numbers.signed(-12345.6), "-12,346"), (numbers.signed(1234.5), "+1,234"), (numbers.signed(-0.0001), "0.000"),
        (numbers.interval((998.1, 1003.2)), "998.100 to 1,003"), (numbers.rows(1, "window"), "1 window"),
        (numbers.metric_inside("perplexity"), "perplexity"), (numbers.metric_inside("f1"), "F1"),
        (numbers.metric_inside("roc_auc"), "ROC AUC"), (numbers.metric_inside("bits_per_byte"), "bits per byte"),
    ],
)  # fmt: skip
def test_large_numbers_are_written_one_way(shown: str, want: str) -> None:
    assert shown == want


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder, mask_token="[MASK]")


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("kind", ["adapter", "scratch"])
def test_code_in_the_card_runs(
    kind: str, objective: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of pico models in the places where a run leaves them, and nothing else."""
    import peft
    import transformers

    auto = {"causal": transformers.AutoModelForCausalLM, "masked": transformers.AutoModelForMaskedLM}[objective]
    config = pico_config({"causal": "llama", "masked": "bert"}[objective])
    folder = tmp_path / "wiki" / "run"
    name = "adapter" if kind == "adapter" else "model"
    models = {name: scores(12.0, with_bytes=objective == "causal")}
    report = evaluation(models, {}, Verdict(True))
    build(folder, report, objective=objective, scratch=kind == "scratch", merge=MERGE if kind == "adapter" else None)
    for place in ("merged", "base") if kind == "adapter" else ("model",):
        auto.from_config(config).save_pretrained(folder / place)
        tokenizer.save_pretrained(folder / place)
    if kind == "adapter":
        targets = {"causal": ["q_proj"], "masked": ["query"]}[objective]
        peft.get_peft_model(auto.from_config(config), peft.LoraConfig(target_modules=targets)).save_pretrained(
            folder / "adapter"
        )
        tokenizer.save_pretrained(folder / "adapter")
        planned = files.read_json(folder / "plan.json")
        files.write_json(folder / "plan.json", planned | {"base": {"ref": "./base", "folder": str(folder / "base")}})
    monkeypatch.chdir(folder)
    blocks = code_blocks(card.render(Story.read(folder)), "python")
    assert len(blocks) == (2 if kind == "adapter" else 1)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()
