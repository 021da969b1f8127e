"""The checks before training: what is refused, what is warned of, and what they cost."""

import json
import os
import subprocess
import sys

import pytest

from ftkit.data.checks import preflight
from ftkit.data.section import Data
from ftkit.data.splits import Splits
from ftkit.errors import DataError
from ftkit.records import Example, as_json

LONG = "the quick brown fox jumps over lazy dogs in {} every single day"


def rows(name, *pairs):
    return tuple(
        Example(f"{name}:{line}", f"{name}.csv line {line}", text, tuple(label.split("|")) if label else ())
        for line, (text, label) in enumerate(pairs, 2)
    )


def filled(name, count=60):
    return [(f"{name} {number}", "ab"[number % 2]) for number in range(count)]


def check(train, test, valid=(), *, labels=None, multi_label=False, weighted=False, base=None, dropped=(), **keys):
    splits = Splits(rows("train", *train), rows("valid", *valid), rows("test", *test), (), tuple(dropped), ())
    data = Data(train="train.csv", **keys)
    return preflight(splits, data, labels=labels, multi_label=multi_label, weighted=weighted, base=base)


def refusal(*args, **keys):
    with pytest.raises(DataError) as caught:
        check(*args, **keys)
    return str(caught.value).splitlines()


def findings(*args, **keys):
    return {finding.code: finding for finding in check(*args, **keys).findings}


def test_clean_data_has_no_finding():
    result = check(filled("train"), filled("test"))
    assert result.findings == result.leakage[0].pairs == ()
    assert result.labels == ("a", "b")
    assert result.rows == {"train": 60, "valid": 0, "test": 60}
    assert result.counts["train"] == {"a": 30, "b": 30}
    assert [(decision.key, decision.value) for decision in result.decisions] == [("task.labels", ["a", "b"])]


def test_labels_are_sorted_as_text():
    train = [(f"train {number}", str(label)) for number, label in enumerate([10, 9, 2] * 10)]
    assert check(train, [("x", "9")]).labels == ("10", "2", "9")


def test_labels_outside_the_set_and_without_a_row():
    train = [*filled("train"), ("x", "neutrl"), ("y", "neutrl")]
    assert refusal(train, [("z", "B")], labels=("a", "b", "neutral")) == [
        "error: the data has 3 problems",
        "  train.csv line 62   label         'neutrl' is not in task.labels (a, b, neutral) (and 1 more row). "
        "Did you mean neutral? Correct it, or add it to task.labels.",
        "  test.csv line 2     label         'B' is not in task.labels (a, b, neutral). "
        "Correct it, or add it to task.labels.",
        "  task.labels   no train row has 'neutral', so it cannot be learned. Add rows, or remove it from task.labels.",
    ]


def test_a_label_that_train_lacks():
    assert refusal(filled("train"), [("z", "c")])[1:] == [
        "  test.csv line 2   label   'c' stands in no train row. Correct it, or add train rows with it."
    ]


def test_one_label_is_not_enough():
    assert refusal([("x", "a")], [("y", "a")])[1:] == [
        "  task.labels   the only label is 'a'; at least two are needed. Check data.columns.label."
    ]


def test_leakage_above_the_limit_is_refused_with_the_pairs():
    test = [("Train  0", "a"), ("train 7", "b"), *filled("test", 98)]
    assert refusal(filled("train"), test) == [
        "error: rows stand in more than one split",
        "  data.test   2 rows of 100 in test (2%) stand word for word in train; at most 1% may. "
        "Remove them from train, or raise data.max_leakage.",
        "  test.csv line 2 = train.csv line 2: 'Train 0'",
        "  test.csv line 3 = train.csv line 9: 'train 7'",
    ]


def test_leakage_below_the_limit_is_a_warning():
    test = [("Train  0", "a"), *filled("test", 99)]
    result = check(filled("train"), test)
    assert (result.leakage[0].exact, result.leakage[0].near, result.leakage[0].rows) == (1, 0, 100)
    (finding,) = result.findings
    assert (finding.level, finding.code, finding.rows) == (
        "warning",
        "leakage",
        ("test.csv line 2 = train.csv line 2",),
    )
    assert finding.message.startswith("1 test row of 100 (1%) stands word for word in train")


@pytest.mark.parametrize("pair", ["valid in train", "test in valid"])
def test_the_other_pairs_are_checked_too(pair):
    valid = filled("train", 10) if pair == "valid in train" else filled("valid", 10)
    test = filled("valid", 10) if pair == "test in valid" else filled("test", 10)
    split, _, within = pair.partition(" in ")
    assert (
        f"10 rows of 10 in {split} (100%) stand word for word in {within}" in refusal(filled("train"), test, valid)[1]
    )


def test_near_leakage_is_reported_and_gated_where_asked_for():
    train = [(LONG.format("summer"), "a"), *filled("train")]
    test = [(LONG.format("winter"), "a"), *filled("test", 99)]
    found = findings(train, test)["near_leakage"]
    assert found.message.startswith("1 test row of 100 (1%) stands nearly in train")
    assert found.rows == ("test.csv line 2 ~ (0.86) train.csv line 2",)
    assert "near_leakage" in findings(train, test, max_near_leakage="1%")
    assert refusal(train, test, max_near_leakage="0.5%")[1] == (
        "  data.test   1 row of 100 in test (1%) stands word for word or nearly in train; at most 0.5% may. "
        "Remove them from train, or raise data.max_near_leakage."
    )


def test_duplicates_and_conflicts_in_train():
    train = [*filled("train"), ("Train 0", "a"), ("TRAIN 1", "a")]
    found = findings(train, filled("test"))
    assert found["duplicates"].rows == ("train.csv line 2 = train.csv line 62",)
    assert found["conflicting_labels"].rows == ("train.csv line 3 (b) / train.csv line 63 (a)",)
    assert found["conflicting_labels"].message.startswith("1 text in train with different labels (2 rows).")


@pytest.mark.parametrize(
    ("smaller", "weighted", "advice"),
    [
        (25, False, "Gate on macro F1, not accuracy, and set task.class_weights: balanced."),
        (25, True, "Gate on macro F1, not accuracy."),
        (9, False, "Add rows of 'b': weights do not replace them at this ratio."),
    ],
)
def test_imbalance(smaller, weighted, advice):
    train = [(f"train {number}", "b" if number < smaller else "a") for number in range(smaller + 200)]
    message = findings(train, filled("test"), weighted=weighted)["imbalance"].message
    assert message.startswith(f"train has {200 / smaller:.1f} times as many rows of 'a' (200) as of 'b' ({smaller})")
    assert message.endswith(advice)


def test_few_rows():
    train = [*filled("train"), ("x", "c")]
    found = findings(train, filled("test", 20))
    assert found["few_rows"].message.endswith("hardly learned: 'c' (1 row). Add rows.")
    assert found["few_test_rows"].message == "only 20 test rows: a 95% interval can span ±22 points. Add test rows."
    assert found["label_missing"].message.startswith("no test row has the labels 'c': they cannot be measured.")


def test_labels_that_look_alike():
    train = [(f"train {number}", label) for number, label in enumerate(["Good", "good ", "bad"] * 10)]
    message = findings(train, [("x", "bad")])["labels_alike"].message
    assert message == "the labels 'Good' and 'good ' differ by case or spaces only. One label?"


def test_dropped_rows_are_said():
    finding = findings(filled("train"), filled("test"), dropped=["a.csv line 3"])["empty_text"]
    assert (finding.message, finding.rows) == ("1 row with an empty text left out.", ("a.csv line 3",))


def test_multi_label_rows_may_have_none():
    train = [*filled("train"), ("x", ""), ("y", "a|b")]
    result = check(train, [("z", ""), *filled("test")], multi_label=True)
    assert result.counts["train"] == {"a": 31, "b": 31}


def test_lengths_and_what_is_cut(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 512}')
    test = [("word " * 30, "a"), *filled("test")]
    result = check(filled("train"), test, base=tmp_path)
    assert (result.positions, result.max_length) == (512, 8)
    assert result.truncated == {"train": 0, "test": 1}
    assert result.lengths["test"].longest == 30
    assert [(finding.code, finding.level, finding.message) for finding in result.findings] == [
        (
            "truncated",
            "warning",
            "1 test row (1.6%) longer than 8 tokens, the longest has 30: what exceeds is cut. "
            "Raise train.max_length, or shorten them.",
        )
    ]
    assert result.decisions[-1].why == "99.5% of the train rows have at most 2 tokens"
    assert json.loads(json.dumps(as_json(result)))["lengths"]["test"]["longest"] == 30


def test_nothing_heavy_is_imported(tmp_path):
    """Checking CSV files needs no torch, transformers, numpy, … (a process of its own)."""
    lines = [f"{LONG.format(number)},{'ab'[number % 2]}" for number in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ftkit.data.checks import preflight\n"
        "from ftkit.data.lengths import token_lengths\n"
        "from ftkit.data.section import Data\n"
        "from ftkit.data.columns import to_examples\n"
        "from ftkit.data.splits import make_splits\n"
        "data = Data(train='a.csv', max_leakage='99%')\n"
        "mapper = lambda rows, shown: to_examples(rows, shown, data, multi_label=False)\n"
        "splits = make_splits(data, Path('.'), mapper, seed=1, multi_label=False)\n"
        "preflight(splits, data, labels=None, multi_label=False, base=Path('.'))\n"
        "import rensa, tokenizers\n"
        "heavy = 'torch transformers datasets pandas scipy numpy sklearn pyarrow huggingface_hub'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
