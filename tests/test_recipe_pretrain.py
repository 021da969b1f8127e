"""Recipes of language models: what is accepted, the exact words for what is not, and whose keys are whose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftkit.data.section import Docstrings
from ftkit.evals.section import METRICS_OF
from ftkit.recipe.editor import json_schema
from ftkit.recipe.page import markdown
from ftkit.recipe.rules import READ_BY
from ftkit.recipe.tree import Key
from ftkit.recipe.yaml12 import read_text
from tests.conftest import sentences, write_csv
from tests.test_recipe import RAW, WRONG, accepted, paths, problems, said, write

CONTINUED = """\
name: domain
base: org/model
task: {type: pretrain}
data: {train: notes.txt}
adapter: lora
"""
SCRATCH = """\
name: tiny
base: {init: llama, layers: 2, hidden: 128, vocab: 512}
task: {type: pretrain}
data: {train: notes.txt}
"""
MASKED = """\
name: masked
base: {init: bert, layers: 2, hidden: 128, vocab: 512}
task: {type: pretrain, objective: masked}
data: {train: notes.txt}
"""
CLASSIFY = """\
name: labels
base: org/model
task: {type: classify}
data: {train: train.csv}
adapter: lora
"""


def changed(recipe: str, *lines: str) -> str:
    """The recipe with the lines in the place of those of the same keys, or at its end."""
    rows = recipe.splitlines()
    for line in lines:
        key = line.partition(":")[0]
        found = [index for index, row in enumerate(rows) if row.startswith(f"{key}:")]
        if found:
            rows[found[0]] = line
        else:
            rows.append(line)
    return "\n".join(rows) + "\n"


# What is accepted


def test_a_base_goes_on_learning(tmp_path: Path) -> None:
    recipe = accepted(tmp_path, CONTINUED).recipe
    assert (recipe.task.type, recipe.task.objective, recipe.task.packing) == ("pretrain", "causal", None)
    assert (recipe.base.model, recipe.adapter.type, recipe.data.split) == ("org/model", "lora", "document")
    assert (recipe.task.samples, recipe.data.clean.duplicates, recipe.merge) == (4, "exact", True)


def test_a_model_from_scratch_needs_no_adapter(tmp_path: Path) -> None:
    recipe = accepted(tmp_path, SCRATCH).recipe
    assert (recipe.base.init, recipe.base.positions, recipe.base.weights) == ("llama", 512, "default")
    assert recipe.adapter is None
    assert accepted(tmp_path, SCRATCH + "merge: false\n").recipe.merge is False


def test_a_masked_model(tmp_path: Path) -> None:
    task = "task: {type: pretrain, objective: masked, mask_share: 0.3, whole_word: true, packing: false, samples: 0}"
    recipe = accepted(tmp_path, changed(MASKED, task)).recipe
    assert (recipe.task.mask_share, recipe.task.whole_word, recipe.task.packing) == (0.3, True, False)
    assert accepted(tmp_path, MASKED).recipe.task.samples == 4  # a default that it does not read is no mistake


def test_documentation_and_files_in_one_list(tmp_path: Path) -> None:
    line = (
        "data: {train: [{docstrings: [stdlib], form: questions}, notes.txt], weights: [1, 3], valid: 5%, test: t.txt}"
    )
    data = accepted(tmp_path, changed(SCRATCH, line)).recipe.data
    assert data.train == (Docstrings(docstrings=("stdlib",), form="questions"), "notes.txt")
    assert data.weights == (1, 3)
    alone = accepted(tmp_path, changed(SCRATCH, "data: {train: {docstrings: [json, pathlib]}}")).recipe.data
    assert alone.train == Docstrings(docstrings=("json", "pathlib"))
    assert alone.train.form == "text"


@pytest.mark.parametrize(
    "lines",
    [
        ("task: {type: pretrain, packing: true, samples: 0}",),
        ("data: {train: notes.txt, split: line, max_rows: 10, max_tokens: 5000}",),
        ("data: {train: notes.txt, clean: {unicode: NFC, html: true, languages: [en, de], duplicates: near}}",),
        ("train: {schedule: wsd, validations: 4, patience: 2}",),
        ("eval: {metrics: [perplexity, bits_per_byte]}", "gate: {perplexity: {max: 30, beat: baseline}}"),
        ("gate: {bits_per_byte: {max: 1.5}}", "merge: false"),
    ],
)
def test_what_else_is_accepted(tmp_path: Path, lines: tuple[str, ...]) -> None:
    text = changed(CONTINUED, *lines)
    accepted(tmp_path, text)
    jsonschema.validate(read_text(text, "x")[0].plain(), json_schema())


@pytest.mark.parametrize("text", [CONTINUED, SCRATCH, MASKED])
def test_the_json_schema_takes_each_kind_of_recipe(text: str) -> None:
    jsonschema.validate(read_text(text, "x")[0].plain(), json_schema())


@pytest.mark.parametrize(
    "line",
    [
        "base: {init: llama, layers: 2, hidden: 100, vocab: 512}",
        "base: {init: llama, layers: 2, hidden: 128}",
        "base: {init: lama, layers: 2, hidden: 128, vocab: 512}",
        "base: {model: a/b, init: llama, layers: 2, hidden: 128, vocab: 512}",
        "data: {train: {docstring: [json]}}",
        "data: {train: [notes.txt, {docstrings: []}]}",
        "data: {train: notes.txt, clean: {duplicate: near}}",
        "task: {type: pretrain, labels: [a, b]}",
        "adapter:",
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(tmp_path: Path, line: str) -> None:
    text = changed(SCRATCH, line)
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(read_text(text, "x")[0].plain())
    said(tmp_path, text)


# What is refused: rules between keys


def rule(recipe: str, lines: str | tuple[str, ...], subject: str, message: str, place: str) -> Any:
    given = (lines,) if isinstance(lines, str) else lines
    return pytest.param(recipe, given, (place, subject, message), id=f"{subject}: {' '.join(given)}"[:70])


METRICS = "Metrics here: perplexity, bits_per_byte."
NO_BYTES = "bits_per_byte needs every byte predicted, and the masked objective predicts some. Write perplexity."
FOR_MASKED = "is for the masked objective. Remove it, or write objective: masked."


@pytest.mark.parametrize(
    ("recipe", "lines", "expected"),
    [
        rule(
            CONTINUED.replace("adapter: lora\n", ""),
            (),
            "adapter",
            'missing. Write a line such as "adapter: lora".',
            "line 1",
        ),
        rule(
            SCRATCH,
            "adapter: lora",
            "adapter",
            "a model from scratch is trained whole. Remove the adapter, or name a base.",
            "line 5",
        ),
        rule(
            SCRATCH, "merge: true", "merge", "a model from scratch has no adapter to merge. Remove the key.", "line 5"
        ),
        rule(
            CLASSIFY.replace("adapter: lora\n", ""),
            "base: {init: bert, layers: 2, hidden: 128, vocab: 512}",
            "task.type",
            "a model from scratch knows no text yet. Write pretrain, or name a base.",
            "line 3",
        ),
        # The task
        rule(
            SCRATCH,
            "task: {type: pretrain, objective: masked}",
            "task.objective",
            "got masked, and llama is trained with causal. Write causal.",
            "line 3",
        ),
        rule(
            MASKED,
            "task: {type: pretrain}",
            "task.objective",
            "got causal, and bert is trained with masked. Write masked.",
            "line 3",
        ),
        rule(
            MASKED,
            "task: {type: pretrain, objective: masked, packing: true}",
            "task.packing",
            "the masked objective looks both ways, so packed texts would see each other. Write false.",
            "line 3",
        ),
        rule(
            MASKED,
            "task: {type: pretrain, objective: masked, samples: 4}",
            "task.samples",
            "a masked model does not go on with a text. Remove it, or write 0.",
            "line 3",
        ),
        rule(CONTINUED, "task: {type: pretrain, mask_share: 0.2}", "task.mask_share", FOR_MASKED, "line 3"),
        rule(CONTINUED, "task: {type: pretrain, whole_word: false}", "task.whole_word", FOR_MASKED, "line 3"),
        # The data
        rule(
            CLASSIFY,
            "data: {train: {docstrings: [json]}}",
            "data.train",
            "docstrings have no labels. Name files, or write task: {type: pretrain}.",
            "line 4",
        ),
        rule(
            CLASSIFY,
            "data: {train: a.csv, test: [t.csv, {docstrings: [json]}]}",
            "data.test",
            "docstrings have no labels. Name files, or write task: {type: pretrain}.",
            "line 4",
        ),
        rule(
            CONTINUED,
            "data: {train: [a.txt, b.txt, c.txt], weights: [1, 2]}",
            "data.weights",
            "got 2 weights for 3 sources of train. Write one for each.",
            "line 4",
        ),
        rule(
            CONTINUED,
            "data: {train: a.txt, weights: [1, 2]}",
            "data.weights",
            "got 2 weights for 1 source of train. Write one for each.",
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: a.txt, max_tokens: 9}",
            "data.max_tokens",
            "the tokenizer is trained on what is read, so it cannot count before. Write max_rows.",
            "line 4",
        ),
        rule(
            CONTINUED,
            "data: {train: a.txt, clean: {languages: [en, English]}}",
            "data.clean.languages[1]",
            "English is no language that can be told. Write an ISO 639-1 code.",
            "line 4",
        ),
        rule(
            CONTINUED,
            "data: {train: [a.txt, {docstrings: [json]}], test: a.txt}",
            "data.test",
            "a.txt is also in data.train. Rows that are measured on must be others: remove one.",
            "line 4",
        ),
        # Metrics and conditions
        rule(
            CONTINUED,
            "eval: {metrics: [perplexity, f1]}",
            "eval.metrics[1]",
            f"f1 is no metric of task pretrain. {METRICS}",
            "line 6",
        ),
        rule(
            CLASSIFY,
            "eval: {metrics: [perplexity]}",
            "eval.metrics[0]",
            "perplexity is no metric of task classify. "
            "Metrics here: accuracy, precision, recall, f1, mcc, roc_auc, log_loss, ece, out_of_label.",
            "line 6",
        ),
        rule(CONTINUED, "gate: {f1: {min: 0.8}}", "gate.f1", f"f1 is no metric of task pretrain. {METRICS}", "line 6"),
        rule(MASKED, "eval: {metrics: [bits_per_byte]}", "eval.metrics[0]", NO_BYTES, "line 5"),
        rule(MASKED, "gate: {bits_per_byte: {max: 2}}", "gate.bits_per_byte", NO_BYTES, "line 5"),
        rule(
            SCRATCH,
            "gate: {perplexity: {beat: baseline}}",
            "gate.perplexity.beat",
            "a model from scratch has no baseline to beat. Write min or max.",
            "line 5",
        ),
        rule(
            CONTINUED,
            ("eval: {metrics: [perplexity]}", "gate: {bits_per_byte: {max: 2}}"),
            "gate.bits_per_byte",
            "is not measured. Add bits_per_byte to eval.metrics (perplexity).",
            "line 7",
        ),
        rule(
            CONTINUED,
            "gate: {perplexity: {max: 0.9}}",
            "gate.perplexity.max",
            "got 0.9, and perplexity is at least 1. Write a larger number.",
            "line 6",
        ),
        # Windows
        rule(
            CONTINUED,
            "train: {max_length: 1}",
            "train.max_length",
            "got 1, and a window needs 2 tokens to predict one. Write more.",
            "line 6",
        ),
        rule(
            MASKED,
            "train: {max_length: 2}",
            "train.max_length",
            "got 2, and a window needs 3 tokens to predict one. Write more.",
            "line 5",
        ),
        # The sizes of a model from scratch
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 100, vocab: 512}",
            "base.hidden",
            "got 100, which is no multiple of 64. Write 64 or 128.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 500}",
            "base.vocab",
            "got 500, which is no multiple of 64. Write 448 or 512.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 256}",
            "base.vocab",
            "got 256. Write a multiple of 64 from 320 to 262144.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 512, intermediate: 300}",
            "base.intermediate",
            "got 300, which is no multiple of 64. Write 256 or 320.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 512, heads: 3}",
            "base",
            "heads is 3, which does not divide hidden 128 into heads of even width. Write 2 or 4.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 512, heads: 4, kv_heads: 3}",
            "base",
            "kv_heads is 3, which does not divide heads 4. Write 2 or 4.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: gpt2, layers: 2, hidden: 128, vocab: 512, kv_heads: 2}",
            "base",
            "kv_heads is a key of init: llama, not of gpt2. Remove kv_heads.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 0, hidden: 128, vocab: 512}",
            "base.layers",
            "got 0. Write a whole number from 1 to 200.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 512, positions: 8}",
            "base.positions",
            "got 8. Write a whole number from 16 to 131072.",
            "line 2",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, recipe: str, lines: tuple[str, ...], expected: tuple[str, str, str]) -> None:
    assert said(tmp_path, changed(recipe, *lines)) == [expected]


KEYS = {
    ("data", "columns", "text"): "data: {train: a.csv, columns: {text: x}}",
    ("data", "columns", "label"): "data: {train: a.csv, columns: {label: x}}",
    ("data", "columns", "prompt"): "data: {train: a.csv, columns: {prompt: x}}",
    ("data", "columns", "completion"): "data: {train: a.csv, columns: {completion: [x]}}",
    ("data", "columns", "messages"): "data: {train: a.csv, columns: {messages: x}}",
    ("data", "columns", "tools"): "data: {train: a.csv, columns: {tools: x}}",
    ("data", "group"): "data: {train: a.csv, group: x}",
    ("data", "label_separator"): 'data: {train: a.csv, label_separator: ";"}',
    ("data", "max_leakage"): "data: {train: a.csv, max_leakage: 1%}",
    ("data", "max_near_leakage"): "data: {train: a.csv, max_near_leakage: 1%}",
    ("data", "split"): "data: {train: a.csv, split: line}",
    ("data", "clean"): "data: {train: a.csv, clean: {html: true}}",
    ("data", "max_rows"): "data: {train: a.csv, max_rows: 9}",
    ("data", "max_tokens"): "data: {train: a.csv, max_tokens: 9}",
    ("data", "weights"): "data: {train: [a.csv, b.csv], weights: [1, 2]}",
    ("train", "best_by"): "train: {best_by: perplexity}",
    ("eval", "average"): "eval: {average: macro}",
    ("eval", "threshold"): "eval: {threshold: fixed}",
    ("eval", "max_new_tokens"): "eval: {max_new_tokens: 9}",
}


def test_the_keys_that_some_tasks_read() -> None:
    assert KEYS.keys() == READ_BY.keys()


@pytest.mark.parametrize(
    ("task", "key"), [(task, key) for key, tasks in READ_BY.items() for task in METRICS_OF if task not in tasks]
)
def test_a_task_refuses_a_key_that_it_does_not_read(tmp_path: Path, task: str, key: Key) -> None:
    readers = " or ".join(READ_BY[key])
    told = said(tmp_path, changed(CONTINUED, f"task: {{type: {task}}}", KEYS[key]))
    line = "line 4" if key[0] == "data" else "line 6"
    assert told == [(line, ".".join(map(str, key)), f"is for task: {{type: {readers}}}. Remove it.")]


# What is refused: words that stand in the wrong form

SCRATCH_KEYS = "Keys here: heads, hidden, init, intermediate, kv_heads, layers, positions, tied, vocab, weights."
TASK_KEYS = "Keys here: mask_share, objective, packing, samples, type, whole_word."
DATA_KEYS = "Keys here: clean, columns, licence, max_rows, max_tokens, quoting, split, test, train, valid, weights."


@pytest.mark.parametrize(
    ("recipe", "lines", "expected"),
    [
        rule(SCRATCH, "task: pretrain", "task", "got 'pretrain'. Write {type: pretrain}.", "line 3"),
        rule(
            CONTINUED,
            "task: {type: pretrain, labels: [a, b]}",
            "task.labels",
            f"unknown key. It belongs to {{type: classify}}. {TASK_KEYS}",
            "line 3",
        ),
        rule(
            CONTINUED,
            "task: {objective: masked}",
            "task.type",
            'missing. Write a line such as "type: pretrain".',
            "line 3",
        ),
        rule(
            CONTINUED,
            "base: {model: a/b, layers: 3}",
            "base.layers",
            "unknown key. It belongs to {init: …}. Keys here: model, trust_remote_code.",
            "line 2",
        ),
        rule(
            CONTINUED,
            "base: {model: a/b, n_layer: 3}",
            "base.n_layer",
            "unknown key. Did you mean layers? That belongs to {init: …}. Keys here: model, trust_remote_code.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 512, model: a/b}",
            "base.model",
            f"unknown key. It belongs to {{model: …}}. {SCRATCH_KEYS}",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128, vocab: 512, wieghts: he}",
            "base.wieghts",
            f"unknown key. Did you mean weights? {SCRATCH_KEYS}",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: lama, layers: 2, hidden: 128, vocab: 512}",
            "base.init",
            "got 'lama'. Did you mean llama? Choices: bert, gpt2, llama.",
            "line 2",
        ),
        rule(
            SCRATCH,
            "base: {init: llama, layers: 2, hidden: 128}",
            "base.vocab",
            'missing. Write a line such as "vocab: 4096".',
            "line 2",
        ),
        rule(
            SCRATCH,
            "data: {train: [notes.txt, [a]]}",
            "data.train[1]",
            "got [a]. Write text or {docstrings: …}.",
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: {docstrings: json}}",
            "data.train.docstrings",
            "got 'json'. Write a list of texts.",
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: [notes.txt, {docstrings: []}]}",
            "data.train[1].docstrings",
            "got []. Write a list of texts, at least one.",
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: {form: questions}}",
            "data.train.docstrings",
            'missing. Write a line such as "docstrings: [json, pathlib]".',
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: {docstrings: [json], form: question}}",
            "data.train.form",
            "got 'question'. Did you mean questions? Choices: questions, summaries, text.",
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: notes.txt, weights: [1]}",
            "data.weights",
            "got [1]. Write a list of at least 2 numbers greater than 0.",
            "line 4",
        ),
        rule(
            SCRATCH,
            "data: {train: notes.txt, html: true}",
            "data.html",
            f"unknown key. Did you mean data.clean.html? {DATA_KEYS}",
            "line 4",
        ),
        rule(
            SCRATCH,
            "eval: {metrics: [ppl]}",
            "eval.metrics[0]",
            "got 'ppl'. Did you mean perplexity? Choices: bits_per_byte, perplexity.",
            "line 5",
        ),
        rule(
            SCRATCH,
            "gate: {ppl: {max: 30}}",
            "gate.ppl",
            "unknown key. Did you mean perplexity? Keys here: bits_per_byte, perplexity.",
            "line 5",
        ),
    ],
)
def test_words_that_stand_in_the_wrong_form(
    tmp_path: Path, recipe: str, lines: tuple[str, ...], expected: tuple[str, str, str]
) -> None:
    assert said(tmp_path, changed(recipe, *lines)) == [expected]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("base: {init: gpt2, n_layer: 2, hidden: 64, vocab: 512}", "layers"),
        ("base: {init: gpt2, num_hidden_layers: 2, hidden: 64, vocab: 512}", "layers"),
        ("base: {init: gpt2, layers: 2, n_embd: 64, vocab: 512}", "hidden"),
        ("base: {init: gpt2, layers: 2, d_model: 64, vocab: 512}", "hidden"),
        ("base: {init: gpt2, layers: 2, hidden: 64, vocab_size: 512}", "vocab"),
        ("base: {init: gpt2, layers: 2, hidden: 64, vocab: 512, num_attention_heads: 1}", "heads"),
        ("base: {init: gpt2, layers: 2, hidden: 64, vocab: 512, block_size: 64}", "positions"),
        ("base: {init: gpt2, layers: 2, hidden: 64, vocab: 512, initializer: he}", "weights"),
        ("base: {init: gpt2, layers: 2, hidden: 64, vocab: 512, tie_word_embeddings: true}", "tied"),
        ("task: {type: pretrain, mlm_probability: 0.2}", "mask_share"),
        ("task: {type: pretrain, sample_packing: true}", "packing"),
        ("train: {block_size: 64}", "max_length"),
        ("train: {early_stopping_patience: 3}", "patience"),
        ("train: {eval_steps: 3}", "validations"),
        ("train: {packing: true}", "task.packing"),
        ("data: {train: notes.txt, deduplicate: true}", "data.clean.duplicates"),
        ("n_layer: 3", "base.layers"),
    ],
)
def test_words_of_other_tools(tmp_path: Path, line: str, meant: str) -> None:
    told = [message for _, _, message in said(tmp_path, changed(SCRATCH, line)) if message.startswith("unknown key")]
    assert len(told) == 1
    assert f"Did you mean {meant}?" in told[0]


@pytest.mark.parametrize("key", [path for path in paths() if not path.startswith("adapter")])
def test_whatever_is_wrong_is_said_in_words(tmp_path: Path, key: str) -> None:
    """Each key with each wrong kind of value, in a recipe from scratch: accepted, or refused with a key and a fix."""
    path = write(tmp_path, SCRATCH)
    for value in WRONG:
        for problem in problems(path, f"{key}={value}"):
            assert problem.where, (key, value)
            assert problem.subject, (key, value)
            assert problem.message.endswith("."), problem
            assert not any(raw in problem.message for raw in RAW), (value, problem)


WORDS = st.sampled_from(["init", "model", "layers", "docstrings", "form", "type", "train", "scratch", "llama", "10%"])
VALUES = st.recursive(
    WORDS | st.integers(0, 600) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({"base": VALUES, "data": st.fixed_dictionaries({"train": VALUES}), "task": VALUES}))
@example({"base": "init", "data": {"train": [{"docstrings": ["init", None]}]}, "task": "init"})
def test_whatever_stands_in_a_union_has_a_place(tmp_path_factory: pytest.TempPathFactory, given: Any) -> None:
    """Keys called like the labels of a union's forms, keys of several forms, keys of none."""
    path = write(tmp_path_factory.mktemp("fuzz"), json.dumps({"name": "x", **given}))
    for problem in problems(path):
        assert problem.subject
        assert problem.message.endswith(".")
        assert not any(raw in problem.message for raw in RAW)


# The reference


def test_the_page_says_whose_a_key_is() -> None:
    """In the page and in the schema that editors read."""
    lines = markdown().splitlines()
    for key, tasks in READ_BY.items():
        whose = f"({', '.join(tasks)}) "
        (line,) = (line for line in lines if line.startswith(f"| `{key[-1]}` |") and whose in line)
        assert line.split("|")[-2].strip().startswith(whose) or "\\|" in line
    data = json_schema()["$defs"]["Data"]["properties"]
    assert data["split"]["description"].startswith("(pretrain) ")
    assert data["group"]["description"].startswith("(classify, sft) ")
    assert not data["train"]["description"].startswith("(")


# A recipe that only the run can refuse


def test_a_corpus_too_small_for_the_vocabulary_is_told_with_one_that_fits(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", sentences(200, 1))
    write(tmp_path, changed(SCRATCH, "data: {train: rows.csv}").replace("vocab: 512", "vocab: 4096"))
    command = [sys.executable, "-m", "ftkit", "run", "recipe.yaml", "--out", "run"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 3
    told = r"error: the corpus gives (3\d\d) tokens only, and base\.vocab asks for 4096\. "
    told += r"Write a smaller base\.vocab, such as (320|384) \(a multiple of 64\)\."
    found = re.fullmatch(told, done.stderr.splitlines()[-1])
    assert found, done.stderr
    assert int(found[2]) <= int(found[1])
    assert "Traceback" not in done.stderr
