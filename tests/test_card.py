"""The card of a run: valid Markdown whatever the data holds, with figures and code that are right."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from ftkit import card, files
from ftkit.records import ClassScore, Comparison, EvalReport, GateReason, ModelScores, Verdict, as_json
from ftkit.report.story import Story

HOSTILE = (
    "a|b\nc",
    "`tick` **bold** _em_",
    "<script>alert(1)</script>",
    "[x](http://evil.example) ![y](z)",
    "# head\u202e",
)


def scores(f1: float, labels: tuple[str, ...]) -> ModelScores:
    per_class = tuple(ClassScore(label, f1, f1, f1, 200) for label in labels)
    return ModelScores(
        {"accuracy": f1, "f1": f1}, {"f1": (f1 - 0.03, f1 + 0.03), "accuracy": (f1 - 0.03, f1 + 0.03)}, per_class, ()
    )


def build(
    folder: Path,
    labels: tuple[str, ...] = ("negative", "positive"),
    *,
    name: str = "sentiment",
    base: str = "sentence-transformers/all-MiniLM-L6-v2",
    recipe: str = "name: sentiment\n\n\n# end\n",
    evaluated: bool = True,
    multi_label: bool = False,
) -> Story:
    folder.mkdir(exist_ok=True)
    splits = {"train": 2000, "test": 400}
    plan: dict[str, Any] = {
        "name": name,
        "command": f"ftkit run {name}.yaml",
        "base": {"ref": base, "licence": "apache-2.0"},
        "data": {
            "files": [{"path": f"data/{name}.csv", "sha256": "ab" * 32, "rows": 2000}],
            "splits": splits,
            "labels": list(labels),
            "per_label": {split: dict.fromkeys(labels, rows // len(labels)) for split, rows in splits.items()},
            "lengths": {"max_length": 64},
            "findings": [{"level": "warning", "code": "x", "message": f"odd label {name}", "rows": []}],
        },
        "recipe": {"task": {"type": "classify"}},
        "seed": 42,
    }
    files.write_json(folder / "plan.json", plan)
    files.write_text(folder / "recipe.yaml", recipe)
    if evaluated:
        (folder / "adapter").mkdir()
        (folder / "merged").mkdir()
        models = {"baseline": scores(0.788, labels), "adapter": scores(0.871, labels), "merged": scores(0.871, labels)}
        found = Comparison("paired_bootstrap", "f1", 0.0004, 0.083, (0.041, 0.125))
        gate = Verdict(True, (GateReason("f1", "at least 0.80", "0.871", True),))
        report = EvalReport(
            "classify",
            "test",
            400,
            labels,
            multi_label,
            "cd" * 32,
            "macro",
            42,
            models,
            {"adapter_vs_baseline": [found]},
            gate,
        )
        files.write_json(folder / "eval.json", as_json(report))
    return Story.read(folder)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row as a Markdown reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows: list[list[str]] = []
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("td_open", "th_open"):
            rows[-1].append("".join(part.content for part in tokens[place + 1].children or []))
    return rows


def code_blocks(text: str, language: str) -> list[str]:
    return [
        token.content
        for token in MarkdownIt("commonmark").parse(text)
        if token.type == "fence" and token.info == language
    ]


def test_card_gives_results_verdict_and_recipe(tmp_path: Path) -> None:
    text = card.render(build(tmp_path))
    assert ["Adapter", "0.871 (0.841 to 0.901)", "0.871 (0.841 to 0.901)"] in table_rows(text)
    assert "The adapter beats the linear probe on the frozen base: F1 0.871 against 0.788" in text
    assert "- met: F1: need at least 0.80, got 0.871" in text
    assert code_blocks(text, "yaml") == ["name: sentiment\n\n\n# end\n"]
    assert text == card.render(Story.read(tmp_path))


def test_front_matter_is_what_hubs_read(tmp_path: Path) -> None:
    _, front, _ = card.render(build(tmp_path)).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "metrics": ["accuracy", "f1"],
        "pipeline_tag": "text-classification",
        "tags": ["ftkit", "peft"],
    }


def test_front_matter_names_no_base_that_is_a_folder(tmp_path: Path) -> None:
    assert "base_model" not in card.render(build(tmp_path, base="/models/mini")).split("---\n", 2)[1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_code_in_the_card_is_python_and_uses_the_right_names(tmp_path: Path, multi_label: bool) -> None:
    adapter, merged = code_blocks(card.render(build(tmp_path, multi_label=multi_label)), "python")
    imported = {
        alias.name for node in ast.walk(ast.parse(adapter)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {"PeftModel", "AutoModelForSequenceClassification", "AutoTokenizer"}
    strings = {node.value for node in ast.walk(ast.parse(adapter)) if isinstance(node, ast.Constant)}
    assert {"adapter/labels.json", "adapter", "sentence-transformers/all-MiniLM-L6-v2", 64} <= strings
    assert ("sigmoid" in adapter) == ("sigmoid" in merged) == multi_label
    ast.parse(merged)


def test_a_base_with_quotes_stays_one_python_string(tmp_path: Path) -> None:
    base = 'a"; import os #\n```\n\\ é'
    code = code_blocks(card.render(build(tmp_path, base=base)), "python")[0]
    assert base in {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}


@pytest.mark.parametrize(
    ("planned", "written"),
    [
        ({"ref": "org/model@v2", "revision": None}, '"org/model", revision="v2", num_labels'),
        ({"ref": "org/model", "revision": "4f2c"}, '"org/model", revision="4f2c", num_labels'),
        ({"ref": "./mini@home", "folder": "/data/mini@home"}, '"/data/mini@home", num_labels'),
    ],
)
def test_the_card_loads_the_very_base_that_was_trained_on(
    tmp_path: Path, planned: dict[str, Any], written: str
) -> None:
    build(tmp_path)
    plan = files.read_json(tmp_path / "plan.json")
    files.write_json(tmp_path / "plan.json", plan | {"base": planned})
    assert f"from_pretrained({written}" in code_blocks(card.render(Story.read(tmp_path)), "python")[0]


def test_hostile_labels_break_no_table_and_format_nothing(tmp_path: Path) -> None:
    text = card.render(build(tmp_path, HOSTILE, name="<b>|`x`\n# y"))
    rows = table_rows(text)
    shown = [row[0] for row in rows if len(row) == 3]
    for label in (
        "a|b c",
        "`tick` **bold** _em_",
        "<script>alert(1)</script>",
        "[x](http://evil.example) ![y](z)",
        "# head⟨U+202E⟩",
    ):
        assert label in shown
    assert {len(row) for row in rows} == {3}
    kinds = {child.type for token in MarkdownIt("commonmark").parse(text) for child in token.children or []}
    assert not kinds & {"html_inline", "link_open", "image", "em_open"}
    assert "<script" not in text
    headings = [line for line in text.splitlines() if re.match(r"#+ ", line)]
    assert headings[0] == "# &lt;b&gt;\\|\\`x\\` # y"


def test_recipe_cannot_close_its_code_block(tmp_path: Path) -> None:
    recipe = "name: x\n```\n# not a heading\n````\n"
    assert code_blocks(card.render(build(tmp_path, recipe=recipe)), "yaml") == [recipe]


def test_card_of_a_run_without_results_says_so(tmp_path: Path) -> None:
    files.write_text(tmp_path / "error.txt", "error: the loss is not finite at step 12\n")
    text = card.render(build(tmp_path, evaluated=False))
    assert "It ended with: the loss is not finite at step 12." in text
    assert "How to use it" not in text
    assert table_rows(text)[0] == ["Label", "train", "test"]


def test_card_of_an_empty_folder_is_still_a_card(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({}))
    assert "Not finished" in card.render(Story.read(tmp_path))
