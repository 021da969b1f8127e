"""The recipe: what is accepted, and the exact words for what is not."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.errors import Problem, RecipeError
from ftkit.evals.section import METRICS_OF
from ftkit.files import sha256_text
from ftkit.recipe.editor import json_schema
from ftkit.recipe.load import LoadedRecipe, load
from ftkit.recipe.messages import recipe_keys
from ftkit.recipe.synonyms import SYNONYMS
from ftkit.recipe.yaml12 import Unreadable, read_text, resolve

MINIMAL = """\
name: sentiment
base: org/model
task: {type: classify}
data: {train: train.csv}
adapter: lora
"""


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def said(folder: Path, text: str | bytes, *overrides: str) -> list[tuple[str, str, str]]:
    """The problems that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return [(problem.where, problem.subject, problem.message) for problem in caught.value.problems]


def accepted(folder: Path, text: str, *overrides: str) -> LoadedRecipe:
    return load(write(folder, text), overrides)


def with_line(section: str, line: str) -> str:
    """The minimal recipe with one of its lines replaced, or a line added."""
    lines = [old for old in MINIMAL.splitlines() if not old.startswith(f"{section}:")]
    return "\n".join([*lines, line]) + "\n"


# What is accepted


def test_a_minimal_recipe_has_every_default(tmp_path: Path) -> None:
    loaded = accepted(tmp_path, MINIMAL)
    recipe = loaded.recipe
    assert (recipe.name, recipe.base.model, recipe.base.trust_remote_code) == ("sentiment", "org/model", False)
    assert (recipe.task.labels, recipe.data.train, recipe.adapter.type) == (None, "train.csv", "lora")
    assert (recipe.train.epochs, recipe.eval.metrics, recipe.gate, recipe.merge) == (3, None, {}, True)
    assert loaded.text == MINIMAL
    assert loaded.sha256 == sha256_text(MINIMAL)


def test_the_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    text = MINIMAL.replace("\n", "\r\n") + "# é €"
    path = write(tmp_path, text)
    assert load(path).text.encode("utf-8") == path.read_bytes()


def test_lists_become_tuples_and_sections_are_frozen(tmp_path: Path) -> None:
    recipe = accepted(tmp_path, with_line("task", "task: {type: classify, labels: [no, yes]}")).recipe
    assert recipe.task.labels == ("no", "yes")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


def test_base_in_full(tmp_path: Path) -> None:
    recipe = accepted(tmp_path, with_line("base", "base: {model: ./models/x, trust_remote_code: true}")).recipe
    assert (recipe.base.model, recipe.base.trust_remote_code) == ("./models/x", True)


def test_each_value_has_a_place(tmp_path: Path) -> None:
    text = MINIMAL + "train:\n  epochs: 4\neval:\n  metrics:\n  - f1\n  - mcc\n"
    loaded = accepted(tmp_path, text, "merge=false")
    assert loaded.where("train", "epochs") == "line 7"
    assert loaded.where("train", "seed") == "line 6"
    assert loaded.where("nowhere") == "line 1"
    assert loaded.where("merge") == "--set"
    assert loaded.where("eval", "metrics", 1) == "line 11"
    assert loaded.where("adapter", "r").endswith("adapters/lora.yaml line 6")


# What is refused: one line for each


def one(section: str, line: str, subject: str, message: str, place: str = "line 5") -> Any:
    return pytest.param(section, line, (place, subject, message), id=f"{subject}: {line}"[:60])


ADAPTER_KEYS = (
    "Keys here: alpha, dora, dropout, init, lr_ratio, modules_to_save, preset, quantize, r, rslora, targets, type."
)
TRAIN_KEYS = (
    "Keys here: batch_size, best_by, checkpointing, epochs, learning_rate, max_length, neftune, patience, precision, "
    "schedule, seed, seeds, validations, warmup, weight_decay."
)
TOP_KEYS = "Keys here: adapter, base, data, eval, export, gate, merge, name, task, train."
PRESETS = "Presets: dora, ia3, loftq, lora, loraplus, pissa, qlora, rslora."
NAME = "Write up to 64 of a-z, 0-9, -, _ and ., the first a letter or a digit."
HUB_ID = "Write a hub id (organisation/name or organisation/name@revision) or a folder."


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        one("task", "task: {type: classify, labels: [true, b]}", "task.labels[0]", 'got true. Write "true" in quotes.'),
        one("task", "task: {type: classify, labels: [a, 0x1]}", "task.labels[1]", 'got 0x1. Write "0x1" in quotes.'),
        one("task", "task: {type: classify, labels: [a, ~]}", "task.labels[1]", "got nothing. Write text."),
        one("task", "task: {type: classify, labels: [a]}", "task.labels", "got [a]. Write a list of at least 2 texts."),
        one("task", "task: {type: classify, labels: a}", "task.labels", "got 'a'. Write a list of at least 2 texts."),
        one(
            "task",
            "task: {type: clasify}",
            "task.type",
            "got 'clasify'. Did you mean classify? Choices: classify, pretrain, sft.",
        ),
        one("task", "task: {}", "task.type", 'missing. Write a line such as "type: classify".'),
        one("task", "task: classify", "task", "got 'classify'. Write {type: classify}."),
        one("task", "task: [a]", "task", "got [a]. Write {type: classify}, {type: pretrain} or {type: sft}."),
        one(
            "task",
            "task: {type: classify, class_weights: balnced}",
            "task.class_weights",
            "got 'balnced'. Did you mean balanced?",
        ),
        one(
            "task",
            "task: {type: classify, class_weights: 3}",
            "task.class_weights",
            "got 3. Write balanced, none or keys and values.",
        ),
        one(
            "task",
            "task: {type: classify, class_weights: {a: 0}}",
            "task.class_weights.a",
            "got 0. Write a number greater than 0.",
        ),
        one("task", "task: {type: classify, multi_label: yes}", "task.multi_label", "got 'yes'. Write true or false."),
        one(
            "task",
            "task: {type: classify, labels: [a, b, a]}",
            "task.labels[2]",
            "a stands there twice (also labels[0]). Remove one.",
        ),
        one(
            "task",
            'task: {type: classify, labels: [a, " "]}',
            "task.labels[1]",
            "is empty. Write the label as it stands in the data.",
        ),
        one(
            "task",
            "task: {type: classify, labels: [a, b], class_weights: {a: 1, b: 1, c: 2}}",
            "task.class_weights.c",
            "is no label of task.labels. Labels: a, b.",
        ),
        one(
            "task",
            "task: {type: classify, labels: [a, b], class_weights: {a: 1}}",
            "task.class_weights",
            "no weight for b. Give each label one.",
        ),
        one("name", "name: Sentiment", "name", f"got 'Sentiment'. {NAME}"),
        one("name", "name: a/b", "name", f"got 'a/b'. {NAME}"),
        one("name", f"name: {'a' * 65}", "name", f"got '{'a' * 58}…. {NAME}"),
        one("name", "name: 2024", "name", 'got 2024. Write "2024" in quotes.'),
        one("base", "base: 3", "base", 'got 3. Write "3" in quotes.'),
        one("base", "base: a b", "base", f"got 'a b'. {HUB_ID}"),
        one("base", "base: {model: org/x@}", "base.model", f"got 'org/x@'. {HUB_ID}"),
        one("base", "base: [a]", "base", "got [a]. Write text, {model: …} or {init: …}."),
        one(
            "base",
            "base: {trust_remote_code: true}",
            "base.model",
            'missing. Write a line such as "model: sentence-transformers/all-MiniLM-L6-v2".',
        ),
        one(
            "base",
            "base: {modle: a/b, model: a/b}",
            "base.modle",
            "unknown key. Did you mean model? Keys here: model, trust_remote_code.",
        ),
        one("data", "data: {train: 5}", "data.train", 'got 5. Write "5" in quotes.'),
        one(
            "data",
            "data: {train: []}",
            "data.train",
            "got []. Write text, {docstrings: …} or a list of these, at least one.",
        ),
        one("data", "data: {train: [a.csv, 5]}", "data.train[1]", 'got 5. Write "5" in quotes.'),
        one("data", "data: {}", "data.train", 'missing. Write a line such as "train: data/train.csv".'),
        one("data", "data: {train: a.csv, valid: ten%}", "data.valid", "got 'ten%'. Write a percentage such as 10%."),
        one(
            "data",
            "data: {train: a.csv, valid: [b.csv, 10%]}",
            "data.valid[1]",
            "got 10%, and a share stands alone. Write a file, a folder or a hub id.",
        ),
        one(
            "data",
            "data: {train: 90%}",
            "data.train",
            "got 90%, and valid and test can be a share of train. Write a file, a folder or a hub id.",
        ),
        one(
            "data",
            "data: {train: a.csv, test: a.csv}",
            "data.test",
            "a.csv is also in data.train. Rows that are measured on must be others: remove one.",
        ),
        one(
            "data",
            "data: {train: a.csv, label: x}",
            "data.label",
            "unknown key. Did you mean data.columns.label? "
            "Keys here: columns, group, label_separator, licence, max_leakage, max_near_leakage, quoting, test, train, valid.",
        ),
        one("adapter", "adapter: lorra", "adapter", f"there is no preset 'lorra'. Did you mean lora? {PRESETS}"),
        one("adapter", "adapter: ../x", "adapter", f"there is no preset '../x'. {PRESETS}"),
        one("adapter", "adapter: 3", "adapter", f"got 3. Write a preset's name. {PRESETS}"),
        one("adapter", "adapter: [lora]", "adapter", f"got a list. Write a preset's name. {PRESETS}"),
        one("adapter", "adapter: ", "adapter", f"got nothing. Write a preset's name. {PRESETS}"),
        one(
            "adapter",
            "adapter: {preset: dara}",
            "adapter.preset",
            f"there is no preset 'dara'. Did you mean dora? {PRESETS}",
        ),
        one(
            "adapter",
            "adapter: {r: 8}",
            "adapter.type",
            'missing. Write "preset: lora" to change keys of a preset, or "type: lora" to give them all.',
        ),
        one("adapter", "adapter: {type: lorra}", "adapter.type", "got 'lorra'. Did you mean lora? Choices: ia3, lora."),
        one("adapter", "adapter: {type: true}", "adapter.type", "got true. Write ia3 or lora."),
        one(
            "adapter", "adapter: {type: lora, rank: 8}", "adapter.rank", f"unknown key. Did you mean r? {ADAPTER_KEYS}"
        ),
        one(
            "adapter",
            "adapter: {preset: lora, type: ia3}",
            "adapter.type",
            "the preset lora has type lora. Remove this line, or the preset.",
        ),
        one("adapter", "adapter: {preset: lora, r: 0}", "adapter.r", "got 0. Write a whole number from 1 to 1024."),
        one("adapter", "adapter: {preset: lora, r: 8.0}", "adapter.r", "got 8.0. Write a whole number from 1 to 1024."),
        one(
            "adapter",
            "adapter: {preset: lora, targets: q_proj}",
            "adapter.targets",
            "got 'q_proj'. Write all-linear or a list of texts.",
        ),
        one(
            "adapter",
            "adapter: {preset: dora, init: pissa}",
            "adapter",
            "init: pissa and dora: true cannot be saved as one adapter. Remove one of the two.",
        ),
        one(
            "adapter",
            "adapter: {preset: pissa, quantize: nf4}",
            "adapter",
            "init: pissa needs the base's full weights, not 4 bits. Remove init or quantize.",
        ),
        one(
            "adapter",
            "adapter: {preset: loftq, r: 8}",
            "adapter",
            "init: loftq needs an update that is scaled by 1. Write alpha: 8.",
        ),
        one(
            "adapter",
            "adapter: {preset: ia3, feedforward: [mlp]}",
            "adapter",
            "feedforward names mlp, which targets does not. Add it to targets.",
        ),
        one("train", "train: {epochs: three}", "train.epochs", "got 'three'. Write a number greater than 0.", "line 6"),
        one("train", "train: {epochs: true}", "train.epochs", "got true. Write a number greater than 0.", "line 6"),
        one("train", "train: {epochs: .inf}", "train.epochs", "got .inf. Write a number greater than 0.", "line 6"),
        one(
            "train",
            "train: {learning_rate: '2e-4'}",
            "train.learning_rate",
            "got '2e-4', which is text. Write 2e-4 without quotes.",
            "line 6",
        ),
        one(
            "train",
            "train: {learning_rate: 2}",
            "train.learning_rate",
            "got 2. Write a number greater than 0 and below 1.",
            "line 6",
        ),
        one("train", "train: {lr: 1}", "train.lr", f"unknown key. Did you mean learning_rate? {TRAIN_KEYS}", "line 6"),
        one(
            "train",
            "train: {seed: 2147483648}",
            "train.seed",
            "got 2147483648. Write a whole number of at least 0 and below 2147483648.",
            "line 6",
        ),
        one(
            "train",
            "train:",
            "train",
            f"got nothing. Write keys and values ({TRAIN_KEYS.lower()[:-1].replace(' here', '')}), or remove the key.",
            "line 6",
        ),
        one(
            "train",
            "train: {schedule: cosin}",
            "train.schedule",
            "got 'cosin'. Did you mean cosine? Choices: constant, cosine, inverse_sqrt, linear, wsd.",
            "line 6",
        ),
        one("seed", "seed: 3", "seed", f"unknown key. Did you mean train.seed? {TOP_KEYS}", "line 6"),
        one(
            "max_seq_length",
            "max_seq_length: 3",
            "max_seq_length",
            f"unknown key. Did you mean train.max_length? {TOP_KEYS}",
            "line 6",
        ),
        one("dataset", "dataset: 3", "dataset", f"unknown key. Did you mean data? {TOP_KEYS}", "line 6"),
        one("zzz", "zzz: 3", "zzz", f"unknown key. {TOP_KEYS}", "line 6"),
        one(
            "eval",
            "eval: {metrics: [f1, f2]}",
            "eval.metrics[1]",
            "got 'f2'. Choices: accuracy, ece, f1, log_loss, mcc, out_of_label, precision, recall, roc_auc.",
            "line 6",
        ),
        one(
            "eval",
            "eval: {metrics: [f1, f1]}",
            "eval.metrics[1]",
            "f1 stands there twice (also metrics[0]). Remove one.",
            "line 6",
        ),
        one(
            "gate",
            "gate: {f2: {min: 1}}",
            "gate.f2",
            "unknown key. Keys here: accuracy, ece, f1, log_loss, mcc, out_of_label, precision, recall, roc_auc.",
            "line 6",
        ),
        one("gate", "gate: {f1: {}}", "gate.f1", "sets no condition. Give min, max or beat.", "line 6"),
        one("gate", "gate: {f1: 0.8}", "gate.f1", "got 0.8. Write keys and values (keys: beat, max, min).", "line 6"),
        one("gate", "gate: {f1: {min: 80}}", "gate.f1.min", "got 80, and f1 is at most 1. Write 0.8.", "line 6"),
        one(
            "gate",
            "gate: {f1: {beat: base}}",
            "gate.f1.beat",
            "got 'base'. Did you mean baseline? Choices: baseline.",
            "line 6",
        ),
        one(
            "gate",
            "gate: {f1: {min: 0.9, max: 0.8}}",
            "gate.f1.max",
            "got 0.8, below min (0.9), so nothing passes. Remove one.",
            "line 6",
        ),
        one(
            "gate",
            "gate: {log_loss: {max: -1}}",
            "gate.log_loss.max",
            "got -1, and log_loss is at least 0. Write a larger number.",
            "line 6",
        ),
        one(
            "merge",
            "merge: no",
            "merge",
            "got 'no'. Write true, false or keys and values (keys: into, tolerance).",
            "line 6",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, section: str, line: str, expected: tuple[str, str, str]) -> None:
    assert said(tmp_path, with_line(section, line)) == [expected]


def test_rules_between_sections(tmp_path: Path) -> None:
    text = MINIMAL.replace("{type: classify}", "{type: classify, multi_label: true}")
    text += "eval: {metrics: [f1, mcc]}\ngate: {accuracy: {min: 0.5}, mcc: {min: 0.2}}\n"
    three = MINIMAL.replace("{type: classify}", "{type: classify, labels: [a, b, c]}") + "eval: {threshold: tune}\n"
    message = "tune needs two labels, or task.multi_label: true. Remove it: the likeliest label wins."
    assert said(tmp_path, three) == [("line 6", "eval.threshold", message)]
    accepted(tmp_path, three.replace(", c]", "]"))
    # eval is not valid, so the gate is checked against the task alone: each problem is said once
    assert said(tmp_path, text) == [
        ("line 6", "eval.metrics[1]", "mcc needs one label a row, and task.multi_label is true. Remove it."),
        ("line 7", "gate.mcc", "mcc needs one label a row, and task.multi_label is true. Remove it."),
    ]
    text = text.replace("[f1, mcc]", "[f1, accuracy]").replace("accuracy: {min: 0.5}, ", "")
    assert said(tmp_path, text) == [
        ("line 7", "gate.mcc", "is not measured. Add mcc to eval.metrics (f1, accuracy)."),
    ]
    assert said(tmp_path, text.replace("eval: {metrics: [f1, accuracy]}\n", "")) == [
        ("line 6", "gate.mcc", "mcc needs one label a row, and task.multi_label is true. Remove it."),
    ]
    assert said(tmp_path, MINIMAL + "eval: {metrics: [f1]}\ngate: {accuracy: {min: 0.5}}\n") == [
        ("line 7", "gate.accuracy", "is not measured. Add accuracy to eval.metrics (f1).")
    ]


def test_all_problems_are_said_at_once_by_line(tmp_path: Path) -> None:
    text = "name: x\nname: y\nbase: a/b\ntask: {type: classify, labels: [true, b, !!str c]}\ngate: {f1: {min: 2}}\n"
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load(path, ["train.epochs=0"])
    assert str(caught.value) == "\n".join(
        [
            f"error: {path} has 7 problems",
            '  line 1   adapter          missing. Write a line such as "adapter: lora".',
            '  line 1   data             missing. Write a line such as "data: {train: train.csv}".',
            "  line 2   name             given twice (first in line 1). Keep one.",
            "  line 4   !!str            tags are not read. Remove it; quotes make text.",
            '  line 4   task.labels[0]   got true. Write "true" in quotes.',
            "  line 5   gate.f1.min      got 2, and f1 is at most 1. Write 0.02.",
            "  --set    train.epochs     got 0. Write a number greater than 0.",
        ]
    )


# Files that are no recipe


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the file is empty. Start with a line such as name: sentiment."),
        ("# nothing\n", 1, "the file is empty. Start with a line such as name: sentiment."),
        ("- a\n", 1, "the file holds a list. Write keys and values, such as name: sentiment."),
        ("text\n", 1, "the file holds a single value. Write keys and values, such as name: sentiment."),
        ("\ufeffname: a\n", 1, "the file starts with a byte order mark. Save it as UTF-8 without one."),
        ("name: a\nbase: \x07\n", 2, "holds the character U+0007. Remove it."),
        ("name: a\u2028b\n", 1, "holds the character U+2028. Remove it."),
        ("name: a\x00\n", 1, "holds the character U+0000. Remove it."),
        (b"name: a\nbase: caf\xe9\n", 2, "byte 0xe9 is not UTF-8. Save the file as UTF-8."),
        ("name: a\x00b".encode("utf-16"), 1, "byte 0xff is not UTF-8. Save the file as UTF-8."),
        ("task:\n\ttype: classify\n", 2, "a tab cannot indent in YAML. Write spaces."),
        ("name: a\n labels: [a\n", 2, 'a ":" too many, or the indentation is off. Put text that holds ": " in quotes.'),
        ("name: a: b\n", 1, 'a ":" too many, or the indentation is off. Put text that holds ": " in quotes.'),
        ("a: b\ntask: [a, b\n", 2, 'a list that starts here is not closed. Write "]" at its end.'),
        ("a: b\ntask: {a: b\n", 2, 'a mapping that starts here is not closed. Write "}" at its end.'),
        ("a: 'b\n\n", 1, "a quote that starts here is not closed. Write the closing quote."),
        ("a: @b\n", 1, "a value cannot start with @, %, ` or a tab. Put it in quotes."),
        ("a: b\nfoo\n", 2, 'a key without a value. Write "key: value".'),
        ("a: 1\n---\nb: 2\n", 2, "a second document starts here. A recipe is one document: remove the ---."),
        ("a: *b\n", 1, "*b has no anchor &b above it. Put text that starts with * in quotes."),
        ("a: &a [*a]\n", 1, "*a stands inside its own anchor &a, without end. Write the value out."),
        ("? [a]\n: b\n", 1, "a list or mapping cannot be a key. Write a name before the colon."),
        ("a: " + "9" * 5000 + "\n", 1, "a number of more than 4,300 digits. Put it in quotes if it is text."),
        ("a: " + "[" * 100 + "]" * 100, 1, "more than 64 levels deep. No key of a recipe lies that deep."),
        ("a: " + "[" * 5000, 1, "more than 64 levels deep. No key of a recipe lies that deep."),
        ('a: "\\ud800"\n', 1, "holds half of a surrogate pair. Write the character itself."),
        ('a: "\\0"\n', 1, "holds the character U+0000. Remove it."),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str | bytes, line: int, message: str) -> None:
    assert said(tmp_path, text) == [(f"line {line}", "", message)]


def test_aliases_are_expanded_and_bounded(tmp_path: Path) -> None:
    recipe = accepted(tmp_path, with_line("data", "data: {train: &files [a.csv], valid: 10%, test: [b.csv]}")).recipe
    assert recipe.data.train == ("a.csv",)
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{above}'] * 10)}]\n"
    assert said(tmp_path, bomb) == [("line 5", "", "holds more than 100,000 values, aliases expanded. Write less.")]


def test_a_chain_of_aliases_is_bounded_in_depth() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100))]
    with pytest.raises(Unreadable, match="more than 64 levels deep"):
        read_text("\n".join(lines), "x")


def test_an_alias_has_the_line_of_its_use(tmp_path: Path) -> None:
    text = MINIMAL + "train:\n  epochs: &n 0\n  batch_size: *n\n"
    assert [problem[:2] for problem in said(tmp_path, text)] == [
        ("line 7", "train.epochs"),
        ("line 8", "train.batch_size"),
    ]


def test_keys_that_are_not_text_or_stand_twice(tmp_path: Path) -> None:
    text = MINIMAL + "train:\n  epochs: 3\n  3: x\n  seed: 1\n  seed: {a: b}\n  ~: x\n"
    assert said(tmp_path, text) == [
        ("line 8", "", 'the key 3 is not text. Write "3" in quotes.'),
        ("line 10", "train.seed", "given twice (first in line 9). Keep one."),
        ("line 11", "", 'the key ~ is not text. Write "~" in quotes.'),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "recipy.yaml", "{} does not exist. Did you mean recipe.yaml?"),
        (lambda folder: folder / "none" / "x.yaml", "{} does not exist."),
        (lambda folder: folder, "{} is a folder. Give the recipe file in it. It holds recipe.yaml."),
        (lambda folder: folder / "recipe.yaml" / "x", "{} does not exist."),
        (lambda folder: folder / "a\0b", "{} cannot be read: "),
        (lambda folder: folder / ("a" * 300), "{} cannot be read: File name too long."),
    ],
)
def test_paths_that_are_no_file(tmp_path: Path, make: Any, message: str) -> None:
    write(tmp_path, MINIMAL)
    path = make(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.headline.startswith(message.format(path))


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "#" * (1 << 20) + "\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.headline == f"{path} has 1,048,577 bytes, and a recipe at most 1,048,576. Is it data?"


# YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1e3", 1000.0), (".5", 0.5), ("5.", 5.0), ("-1.5E+2", -150.0), ("+3", 3), ("010", 10),
        ("0o17", 15), ("0x1F", 31), ("0b1", "0b1"), ("1_000", "1_000"), ("12:30", "12:30"), ("yes", "yes"),
        ("no", "no"), ("on", "on"), ("off", "off"), ("Yes", "Yes"), ("true", True), ("True", True), ("TRUE", True),
        ("tRue", "tRue"), ("false", False), ("~", None), ("null", None), ("Null", None), ("", None), ("nUll", "nUll"),
        ("2024-01-01", "2024-01-01"), ("<<", "<<"), ("=", "="), (".inf", math.inf), ("-.INF", -math.inf),
        ("inf", "inf"), ("nan", "nan"), ("e5", "e5"), (".", "."), ("-", "-"), ("1e", "1e"), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_plain_scalars_are_yaml_1_2(text: str, value: Any) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_quotes_make_text() -> None:
    root, flaws = read_text("""a: "1"\nb: 'true'\nc: |\n  2\nd: >-\n  3\n<<: {x: 1}\n""", "x")
    assert root.plain() == {"a": "1", "b": "true", "c": "2\n", "d": "3", "<<": {"x": 1}}
    assert flaws == []


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#%@,?~ \n\t019.e\\")), max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever stands in a file, the reader gives a tree or says a line: no traceback."""
    try:
        line, message = 1, json.dumps(read_text(text, "x")[0].plain()) + "."
    except Unreadable as error:
        line, message = error.line, error.message
    assert 1 <= line <= text.count("\n") + 1
    assert message.endswith(".")


# Words of the libraries beneath, which no message may hold.
RAW = ("Input should", "Field required", "pydantic", "Value error", "expected", "None", "dict", "tuple", "[key]")
# Users may: texts that hold one are left out, as messages show the user's own words.
TEXT = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda text: not any(raw in text for raw in RAW))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abr", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_plain_values_survive_being_written(value: Any) -> None:
    """JSON is YAML 1.2: what is written as JSON is read as it was."""
    text = json.dumps(value).replace("Infinity", ".inf").replace("NaN", ".nan")
    if "\\u0000" in text or "inf" in text or "nan" in text or "\\ud8" in text or "\\ud" in text:
        return
    assert read_text(text, "x")[0].plain() == value


# No wording of pydantic's


def paths() -> list[str]:
    """Every key of a recipe, as --set names it."""
    known = recipe_keys().paths
    found = [".".join(str(step) for step in path) for path in known]
    return [*found, "gate.f1", "gate.f1.min", "gate.f1.beat", "task.class_weights.a", "adapter.targets", "gate.zz"]


WRONG = ["true", "3", "-1", "1.5", "1" + "0" * 400, ".nan", "-.inf", "~", "text", '""', "[]", "[1]", "[[]]", "{}"]
WRONG += ["{a: 1}", "[a, [b]]", "{a: {b: c}}", "[~]", "{type: 1}", "{type: lora, type2: x}", "1e999", "0x7fffffffffff"]


def problems(path: Path, *overrides: str) -> list[Problem]:
    """What is wrong with a recipe; nothing where it is accepted."""
    try:
        load(path, overrides)
    except RecipeError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("key", paths())
def test_whatever_is_wrong_is_said_in_words(tmp_path: Path, key: str) -> None:
    """Each key with each wrong kind of value: accepted, or refused with a place, a key and a fix."""
    path = write(tmp_path, MINIMAL)
    for value in WRONG:
        for problem in problems(path, f"{key}={value}"):
            assert problem.where, (key, value)
            assert problem.message.endswith("."), problem
            assert not any(raw in problem.message for raw in RAW), (value, problem)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["name", "base", "task", "data", "adapter", "train", "gate"]), JSON))
def test_any_mapping_is_accepted_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = write(folder, json.dumps(data, ensure_ascii=False).replace("Infinity", ".inf").replace("NaN", ".nan"))
    for problem in problems(path):
        assert problem.message.endswith(".")
        assert not any(raw in problem.message for raw in RAW)


# --set


def test_overrides_win(tmp_path: Path) -> None:
    text = MINIMAL + "merge: true\n"
    loaded = accepted(
        tmp_path, text, "merge=false", "train.learning_rate=2e-4", "adapter.r=8", "base.trust_remote_code=true",
        "gate.f1={min: 0.5}", "eval.metrics=[f1, accuracy]", "eval.metrics[1]=mcc", "name=other",
    )  # fmt: skip
    recipe = loaded.recipe
    assert (recipe.merge, recipe.train.learning_rate, recipe.adapter.r, recipe.adapter.alpha) == (False, 2e-4, 8, 32)
    assert (recipe.base.model, recipe.base.trust_remote_code) == ("org/model", True)
    assert (recipe.gate["f1"].min, recipe.eval.metrics, recipe.name) == (0.5, ("f1", "mcc"), "other")
    assert loaded.text == text
    assert loaded.overrides[2] == "adapter.r=8"


def test_an_override_does_not_reach_an_alias_elsewhere(tmp_path: Path) -> None:
    text = with_line("data", "data: {train: &a [a.csv, b.csv], test: [c.csv]}") + "eval: {metrics: [f1]}\n"
    recipe = accepted(tmp_path, text, "data.train[0]=z.csv").recipe
    assert recipe.data.train == ("z.csv", "b.csv")


def test_the_preset_can_be_changed(tmp_path: Path) -> None:
    assert accepted(tmp_path, MINIMAL, "adapter=dora").recipe.adapter.dora is True
    assert accepted(tmp_path, MINIMAL, "adapter.preset=qlora", "adapter.r=4").recipe.adapter.quantize == "nf4"


SET_FORM = "Write a key, = and a value, such as train.epochs=5."


@pytest.mark.parametrize(
    ("override", "subject", "message"),
    [
        ("train.epochs", "train.epochs", f"got 'train.epochs'. {SET_FORM}"),
        ("=5", "", f"got '=5'. {SET_FORM}"),
        ("a..b=5", "", f"got 'a..b=5'. {SET_FORM}"),
        ("a[x]=5", "", f"got 'a[x]=5'. {SET_FORM}"),
        ("[0]=5", "", f"got '[0]=5'. {SET_FORM}"),
        ("name.x=5", "name.x", "has no keys in the recipe, so x cannot be set. Set the whole value."),
        ("task.labels[0]=x", "task.labels[0]", "is no list in the recipe. Give the whole list, as in [a, b]."),
        ("train.epochs=[1", "train.epochs", 'a list that starts here is not closed. Write "]" at its end.'),
        ("train.epochs=\x07", "train.epochs", "holds the character U+0007. Remove it."),
        ("name=\udcff", "name", "holds the character U+DCFF. Remove it."),
        ("train.epochs={a: 1, a: 2}", "train.epochs", "given twice (first in line 1). Keep one."),
        ("train.epochs=", "train.epochs", "got nothing. Write a number greater than 0, or remove the key."),
        ("trian.epochs=5", "trian", f"unknown key. Did you mean train? {TOP_KEYS}"),
        ("adapter.rank=5", "adapter.rank", f"unknown key. Did you mean r? {ADAPTER_KEYS}"),
    ],
)
def test_overrides_that_are_refused(tmp_path: Path, override: str, subject: str, message: str) -> None:
    assert said(tmp_path, MINIMAL, override) == [("--set", subject, message)]


def test_an_override_given_twice(tmp_path: Path) -> None:
    assert said(tmp_path, MINIMAL, "merge=false", "merge=true") == [("--set", "merge", "given twice. Give it once.")]


def test_a_list_index_beyond_the_end(tmp_path: Path) -> None:
    text = with_line("task", "task: {type: classify, labels: [a, b]}")
    message = "has 2 values, [0] to [1]. Give the whole list, as in [a, b]."
    assert said(tmp_path, text, "task.labels[2]=c") == [("--set", "task.labels[2]", message)]


# The schema


def test_every_key_has_a_description() -> None:
    schema = json_schema()
    for name, definition in [("recipe", schema), *schema["$defs"].items()]:
        assert definition.get("description"), name
        for key, form in definition["properties"].items():
            described = form.get("description") or all(one.get("description") for one in form.get("anyOf", [{}]))
            assert described, f"{name}.{key}"


def test_every_required_key_has_an_example() -> None:
    keys = recipe_keys()
    for path in keys.paths:
        if keys.required(path, {}):
            assert keys.example(path, {}) != "…", path


def test_synonyms_lead_to_keys() -> None:
    names = {step for path in recipe_keys().paths for step in path}
    assert set(SYNONYMS.values()) <= names | {"min", "max", *METRICS_OF, *itertools.chain(*METRICS_OF.values())}
    assert not {word for word, key in SYNONYMS.items() if word == key}


GOOD = [
    MINIMAL,
    with_line("adapter", "adapter: {preset: lora, r: 8}"),
    with_line("adapter", "adapter: {type: ia3, targets: [k]}"),
    with_line("base", "base: {model: a/b}") + "gate: {f1: {min: 0.8, beat: baseline}}\n",
    MINIMAL + "train: {epochs: 3, learning_rate: 5e-4}\neval: {metrics: [f1], average: macro}\nmerge: false\n",
    with_line("task", "task: {type: classify, class_weights: {a: 1.5}}"),
    with_line("task", "task: {type: classify, words: {say: {a: bad}}}"),
    with_line("task", "task: {type: sft, train_on: all, max_untrained: 2.5%}"),
]
BAD = [
    with_line("adapter", "adapter: {preset: lora, rank: 8}"),
    with_line("adapter", "adapter: {r: 8}"),
    with_line("adapter", "adapter: 3"),
    with_line("base", "base: {mdl: a/b}"),
    with_line("name", "name: A B"),
    MINIMAL + "seed: 3\n",
    MINIMAL + "gate: {f2: {min: 0.8}}\n",
    MINIMAL + "train: {epochs: 0}\n",
    with_line("task", "task: {type: classify, words: {say: {a: 1}}}"),
    with_line("task", "task: {type: classify, train_on: all}"),
    with_line("task", "task: {type: sft, max_untrained: 2}"),
    "name: x\n",
]


@pytest.mark.parametrize("text", GOOD + BAD)
def test_the_json_schema_agrees_with_the_loader(tmp_path: Path, text: str) -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(json_schema())
    valid = jsonschema.Draft202012Validator(json_schema()).is_valid(read_text(text, "x")[0].plain())
    assert valid is (text in GOOD)
    if valid:
        accepted(tmp_path, text)
    else:
        said(tmp_path, text)


def test_the_json_schema_is_json_and_named() -> None:
    schema = json.loads(json.dumps(json_schema(), allow_nan=False))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["$id"], schema["title"]) == ("urn:ftkit:recipe", "ftkit recipe")
    assert schema["additionalProperties"] is False


# Import cost


def test_loading_a_recipe_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "torch transformers trl peft datasets evaluate accelerate bitsandbytes numpy sklearn scipy pandas rich"
    code = (
        "import sys; from pathlib import Path; from ftkit.recipe.load import load; load(Path(sys.argv[1]));"
        f"found = [name for name in {heavy.split()!r} if name in sys.modules]; sys.exit(str(found) if found else 0)"
    )
    path = write(tmp_path, MINIMAL)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
