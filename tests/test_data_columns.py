"""Columns found by name or named, and rows to examples: what is kept, dropped and refused."""

import pytest

from ftkit.data.columns import KNOWN, find_column, to_examples
from ftkit.data.rows import Place, RawRow
from ftkit.data.section import Columns, Data
from ftkit.errors import DataError
from ftkit.records import Example


def mapped(values, *, multi_label=False, **keys):
    data = Data(train="a.jsonl", **keys)
    rows = (RawRow(Place("d/a.jsonl", "line", number), row) for number, row in enumerate(values, 1))
    return to_examples(rows, "d/a.jsonl", data, multi_label=multi_label)


def refusal(values, **keys):
    with pytest.raises(DataError) as caught:
        mapped(values, **keys)
    return str(caught.value)


@pytest.mark.parametrize("name", [*KNOWN["text"], "Sentence", "TEXT"])
def test_known_text_columns_are_found(name):
    assert find_column("text", ["id", name, "label"], None, shown="a.csv") == name


@pytest.mark.parametrize("name", [*KNOWN["label"], "Class", "LABELS"])
def test_known_label_columns_are_found(name):
    assert find_column("label", ["id", "text", name], None, shown="a.csv") == name


@pytest.mark.parametrize(
    ("available", "given", "message"),
    [
        (
            ["text", "review", "label"],
            None,
            "several columns could hold the text: text, review. Write data.columns: {text: text}.",
        ),
        (
            ["a", "b"],
            None,
            "no column is named text, sentence, review, content, document, body, comment or tweet. Columns here: a, b. "
            "Write data.columns: {text: COLUMN}.",
        ),
        (["reviews", "label"], "review", "no column is named review. Did you mean reviews? Columns here: reviews, label."),
        (["x", "label"], "review", "no column is named review. Columns here: x, label."),
    ],
)  # fmt: skip
def test_the_words_of_each_column_refusal(available, given, message):
    with pytest.raises(DataError) as caught:
        find_column("text", available, given, shown="a.csv")
    assert str(caught.value) == f"error: a.csv has 1 problem\n  data.columns.text   {message}"


def test_a_row_becomes_an_example():
    result = mapped([{"Sentence": " fine ", "intent": "Yes", "who": 7}], group="who")
    assert result.examples == (Example("a.jsonl:1", "d/a.jsonl line 1", " fine ", ("Yes",), "7"),)
    assert [(decision.key, decision.value) for decision in result.decisions] == [
        ("data.columns.text", "Sentence"),
        ("data.columns.label", "intent"),
    ]


def test_given_columns_are_no_decision():
    assert mapped([{"a": "x", "b": "y"}], columns=Columns(text="a", label="b")).decisions == ()


def test_keys_may_differ_from_row_to_row():
    assert mapped([{"label": "a", "text": None}, {"text": "x", "label": "a"}]).examples[0].text == "x"


@pytest.mark.parametrize(("value", "label"), [("a|b", "a|b"), (1, "1"), (-3, "-3"), (True, "true"), (False, "false")])
def test_single_labels(value, label):
    assert mapped([{"text": "x", "label": value}]).examples[0].labels == (label,)


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("a|b", ("a", "b")),
        (" b | a |b|| ", ("b", "a")),
        ("", ()),
        (None, ()),
        ([], ()),
        (["a|b", " c ", "c", ""], ("a|b", "c")),
        ([1, True], ("1", "true")),
        (3, ("3",)),
    ],
)
def test_multi_labels(value, labels):
    assert mapped([{"text": "x", "label": value}], multi_label=True).examples[0].labels == labels


def test_the_separator_of_labels():
    assert mapped([{"text": "x", "label": "a, b"}], multi_label=True, label_separator=",").examples[0].labels == (
        "a",
        "b",
    )


def test_empty_texts_are_dropped_and_named():
    values = [{"text": text, "label": "a"} for text in ("x", "", None, " \t\n", "y")]
    result = mapped(values)
    assert [example.id for example in result.examples] == ["a.jsonl:1", "a.jsonl:5"]
    assert result.dropped == ("d/a.jsonl line 2", "d/a.jsonl line 3", "d/a.jsonl line 4")


def test_only_empty_texts_are_refused():
    assert refusal([{"text": "", "label": "a"}] * 2) == (
        "error: d/a.jsonl has 1 problem\n  text   the text is empty in all 2 rows. Name another column in data.columns."
    )


def test_all_bad_rows_are_named_at_once():
    values = [
        {"text": "x", "label": "a", "g": 1},
        {"text": 5, "label": "a", "g": 1},
        {"label": "a", "g": 1},
        {"text": "x", "label": " ", "g": 1},
        {"text": "x", "label": None, "g": 1},
        {"text": "x", "label": ["a"], "g": 1},
        {"text": "x", "label": 1.5, "g": 1},
        {"text": "x", "label": "a", "g": None},
        {"text": "x \ud83d", "label": "a", "g": 1},
    ]
    assert refusal(values, group="g").splitlines() == [
        "error: d/a.jsonl has 8 problems",
        "  line 2   text    got 5, which is no text. Write it in quotes, or name another column.",
        "  line 3   text    is missing. Keys of this row: label, g.",
        "  line 4   label   the label is empty. Write it, or remove the row.",
        "  line 5   label   the label is missing. Write it, or remove the row.",
        "  line 6   label   got the list ['a']. Write one label, or set task.multi_label: true.",
        "  line 7   label   got 1.5. A label is a text, a whole number, true or false.",
        "  line 8   g       the group is missing. Write it, or remove the row.",
        "  line 9   text    character 3 is half of a surrogate pair. Remove it, or write the whole character.",
    ]


def test_a_missing_group_column():
    assert "data.group   no column is named usr. Did you mean user?" in refusal(
        [{"text": "x", "label": "a", "user": 1}], group="usr"
    )
