"""Splits: shares are stratified, seeded partitions; groups and equal texts stay together; sources are kept apart."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ftkit.data.columns import to_examples
from ftkit.data.conversations import to_conversations
from ftkit.data.partition import grouped_sides, stratified_sides
from ftkit.data.section import Data, Docstrings
from ftkit.data.splits import Splits, examples_sha256, make_splits
from ftkit.errors import DataError
from ftkit.files import sha256_file
from ftkit.records import Conversation, Example, Turn


def example(number, labels, *, text=None, group=None):
    return Example(f"a:{number}", f"a line {number}", text or f"text {number}", labels, group)


def table(path: Path, rows: list[tuple], header="text,label") -> str:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path.name


def balanced(count: int) -> list[tuple]:
    return [(f"text {number}", "ab"[number % 2]) for number in range(count)]


def labelled(data: Data, folder: Path, *, seed: int = 1) -> Splits:
    def mapper(rows, shown):
        return to_examples(rows, shown, data, multi_label=False)

    return make_splits(data, folder, mapper, seed=seed, multi_label=False)


def refusal(data: Data, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        labelled(data, folder)
    return str(caught.value)


single = st.lists(st.sampled_from("abcd"), min_size=1, max_size=120)
percent = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.33, 0.45])


@settings(deadline=None, max_examples=150)
@given(single, percent, percent, st.integers(0, 99))
def test_each_label_has_its_share_within_one_row(labels, valid, test, seed):
    """And its last row stays in train, and test does not depend on valid."""
    examples = [example(number, (label,)) for number, label in enumerate(labels)]
    sides = stratified_sides(examples, {"valid": valid, "test": test}, seed=seed, multi_label=False)
    alone = stratified_sides(examples, {"test": test}, seed=seed, multi_label=False)
    assert [side == "test" for side in sides] == [side == "test" for side in alone]
    for label, count in Counter(labels).items():
        drawn = Counter(side for own, side in zip(labels, sides, strict=True) if own == label)
        assert drawn["train"] >= 1
        assert abs(drawn["test"] - test * count) <= 1
        if drawn["train"] > 1:
            assert abs(drawn["valid"] - valid * count) <= 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=80), percent, st.integers(0, 99))
def test_labels_of_multi_label_rows_all_stand_in_train(labels, test, seed):
    examples = [example(number, tuple(sorted(own))) for number, own in enumerate(labels)]
    sides = stratified_sides(examples, {"test": test}, seed=seed, multi_label=True)
    in_train = {label for own, side in zip(labels, sides, strict=True) if side == "train" for label in own}
    assert in_train == set().union(*labels)
    assert sides.count("test") <= test * len(labels) + 1


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), min_size=1, max_size=120), percent, percent)
def test_groups_never_cross(rows, valid, test):
    """And each label stands in train, and no side exceeds its share by more than a group."""
    examples = [example(number, (label,), group=str(group)) for number, (label, group) in enumerate(rows)]
    sides = grouped_sides(examples, {"valid": valid, "test": test}, seed=3)
    of_group = {}
    for own, side in zip(examples, sides, strict=True):
        assert of_group.setdefault(own.group, side) == side
    assert {e.labels for e, side in zip(examples, sides, strict=True) if side == "train"} == {
        e.labels for e in examples
    }
    largest = max(Counter(own.group for own in examples).values())
    assert sides.count("test") <= test * len(rows) + largest
    assert sides.count("valid") <= valid * len(rows) + largest


def test_groups_of_one_size_come_close_to_the_shares():
    examples = [example(number, ("ab"[number % 2],), group=str(number // 5)) for number in range(1_000)]
    sides = Counter(grouped_sides(examples, {"valid": 0.1, "test": 0.2}, seed=3))
    assert abs(sides["test"] - 200) <= 5
    assert abs(sides["valid"] - 100) <= 5


def test_groups_keep_the_labels_in_balance():
    """A fifth of the groups holds label b only: each side gets its part of them."""
    examples = [
        example(number, ("b" if number // 10 % 5 == 0 else "a",), group=str(number // 10)) for number in range(1_000)
    ]
    sides = grouped_sides(examples, {"test": 0.2}, seed=3)
    drawn = Counter(own.labels for own, side in zip(examples, sides, strict=True) if side == "test")
    assert drawn == {("a",): 160, ("b",): 40}


@pytest.mark.parametrize("draw", [stratified_sides, grouped_sides])
def test_the_seed_decides(draw):
    examples = [example(number, ("ab"[number % 2],), group=str(number // 3)) for number in range(90)]
    more = {"multi_label": False} if draw is stratified_sides else {}
    one, same, other = (draw(examples, {"valid": 0.1, "test": 0.2}, seed=seed, **more) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_rows_with_the_same_text_stay_together():
    """Else the split itself would leak."""
    examples = [example(number, ("a",), text=f"Text  {number % 20}") for number in range(100)]
    sides = stratified_sides(examples, {"test": 0.2}, seed=1, multi_label=False)
    assert sides.count("test") == 20
    assert all(len({sides[number] for number in range(start, 100, 20)}) == 1 for start in range(20))


def test_shares_of_train(tmp_path):
    table(tmp_path / "a.csv", balanced(100))
    splits = labelled(Data(train="a.csv", test="20%"), tmp_path, seed=7)
    assert [len(rows) for rows in splits.named().values()] == [70, 10, 20]
    ids = [row.id for rows in splits.named().values() for row in rows]
    assert sorted(ids) == sorted(f"a.csv:{number}" for number in range(2, 102))
    assert [(decision.key, decision.value, decision.why) for decision in splits.decisions[-2:]] == [
        ("data.valid", "10%", "left out; 10 of 100 rows of train, stratified by label, seed 7"),
        ("data.test", "20%", "20 of 100 rows of train, stratified by label, seed 7"),
    ]
    (source,) = splits.sources
    assert (source.split, source.source, source.rows) == ("train", "a.csv", 100)
    assert source.sha256 == sha256_file(tmp_path / "a.csv")


def test_sources_of_their_own(tmp_path):
    for name in ("a.csv", "b.csv", "v.csv", "t.csv"):
        table(tmp_path / name, [(f"{name} {number}", "ab"[number % 2]) for number in range(4)])
    data = Data(train=("a.csv", "b.csv"), valid="v.csv", test="t.csv")
    splits = labelled(data, tmp_path)
    assert [row.id for row in splits.train] == [f"{name}.csv:{line}" for name in "ab" for line in range(2, 6)]
    assert [row.id for row in splits.valid] == [f"v.csv:{line}" for line in range(2, 6)]
    assert [(source.split, source.source) for source in splits.sources] == [
        ("train", "a.csv"), ("train", "b.csv"), ("valid", "v.csv"), ("test", "t.csv"),
    ]  # fmt: skip


def test_no_validation(tmp_path):
    table(tmp_path / "a.csv", balanced(20))
    assert labelled(Data(train="a.csv", valid="0%"), tmp_path).valid == ()


def test_files_of_one_name_have_ids_of_their_own(tmp_path):
    for label in ("pos", "neg"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "d" / label / f"{number}.txt").write_text(f"{label} {number}")
    splits = labelled(Data(train="d"), tmp_path)
    ids = {row.id for rows in splits.named().values() for row in rows}
    assert len(ids) == 20
    assert "d/pos/0.txt:1" in ids


def test_dropped_rows_are_kept_to_be_said(tmp_path):
    table(tmp_path / "a.csv", [*balanced(20), ("", "a")])
    assert labelled(Data(train="a.csv"), tmp_path).dropped == ("a.csv line 22",)


def test_a_share_that_gives_no_row(tmp_path):
    table(tmp_path / "a.csv", balanced(4))
    assert refusal(Data(train="a.csv", valid="10%", test="1%"), tmp_path) == (
        "error: a.csv has 2 problems\n"
        "  data.valid   10% of 4 rows gives no row, as each label keeps a row in train. "
        "Write a larger share, or a file, or 0% to do without.\n"
        "  data.test    1% of 4 rows gives no row, as each label keeps a row in train. Write a larger share, or a file."
    )


def test_too_few_groups(tmp_path):
    table(tmp_path / "a.csv", [(f"t{number}", "ab"[number % 2], "me") for number in range(20)], "text,label,who")
    message = refusal(Data(train="a.csv", valid="0%", group="who"), tmp_path)
    assert "20% of 20 rows in 1 group of who gives no row" in message


def test_a_group_on_two_sides(tmp_path):
    table(tmp_path / "a.csv", [("x", "a", "me"), ("y", "b", "you")], "text,label,who")
    table(tmp_path / "t.csv", [("z", "a", "you")], "text,label,who")
    assert refusal(Data(train="a.csv", valid="0%", test="t.csv", group="who"), tmp_path) == (
        "error: the split by data.group has 1 problem\n"
        "  who   group you stands in train and in test (a.csv line 3 and t.csv line 2). Keep it in one of them."
    )


@pytest.mark.parametrize("test", ["a.csv", "./a.csv", "d/../a.csv"])
def test_a_file_is_read_once(tmp_path, test):
    (tmp_path / "d").mkdir()
    table(tmp_path / "a.csv", balanced(20))
    assert refusal(Data(train="a.csv", test=test), tmp_path) == (
        f"error: {test} has 1 problem\n  data.test   is read already for train (a.csv). Name each file once."
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"valid": "100%"}, "Write a percentage such as 10%"),
        ({"test": "nan%"}, "Write a percentage such as 10%"),
        ({"test": "0%"}, "so nothing can be measured"),
        ({"valid": "60%", "test": "40%"}, "leave no row to train on"),
    ],
)
def test_impossible_shares_are_refused_with_the_recipe(keys, message):
    with pytest.raises(ValidationError, match=message):
        Data(train="a.csv", **keys)


def test_the_hash_of_examples_sees_each_border():
    one = [example(1, ("a",), text="x"), example(2, ("b",), text="y")]
    assert examples_sha256(one) == examples_sha256([example(8, ("a",), text="x"), example(9, ("b",), text="y")])
    others = (
        [example(1, ("a", "b"), text="x")],
        [example(1, (), text="x")],
        one[::-1],
        [example(1, ("ab",), text="x")],
    )
    assert len({examples_sha256(rows) for rows in (one, *others)}) == 5


def conversation(number: int, prompt: str, answer: str = "yes", **more) -> Conversation:
    turns = (Turn("user", prompt), Turn("assistant", answer))
    where = f"a.jsonl line {number}"
    return Conversation(f"a.jsonl:{number}", where, prompt, (), turns=turns, references=(answer,), **more)


def chats(data: Data, folder: Path) -> Splits:
    def mapper(rows, shown):
        return to_conversations(rows, shown, data, prompt=None, system=None)

    return make_splits(data, folder, mapper, seed=7, multi_label=False)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), percent, percent, st.integers(0, 99))
def test_rows_without_labels_are_drawn_by_rows_and_equal_prompts_together(prompts, valid, test, seed):
    examples = [conversation(number, f"Prompt  {prompt}", str(number)) for number, prompt in enumerate(prompts)]
    sides = stratified_sides(examples, {"valid": valid, "test": test}, seed=seed, multi_label=False)
    of_prompt = {}
    for prompt, side in zip(prompts, sides, strict=True):
        assert of_prompt.setdefault(prompt, side) == side
    assert sides.count("test") <= test * len(prompts) + 1
    assert sides.count("valid") <= valid * len(prompts) + 1


def test_shares_of_conversations(tmp_path):
    lines = [f'{{"prompt": "p {number}", "completion": "c", "who": {number // 10}}}' for number in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    splits = chats(Data(train="a.jsonl", max_rows=50), tmp_path)
    assert [len(rows) for rows in splits.named().values()] == [35, 5, 10]
    assert {int(row.id.split(":")[1]) for rows in splits.named().values() for row in rows} == set(range(1, 51))
    assert [decision.why for decision in splits.decisions[-2:]] == [
        "left out; 5 of 50 rows of train, by rows, seed 7",
        "left out; 10 of 50 rows of train, by rows, seed 7",
    ]
    grouped = chats(Data(train="a.jsonl", group="who", valid="0%"), tmp_path)
    assert grouped.decisions[-1].why == "left out; 20 of 100 rows of train, by whole groups of who, seed 7"


def test_only_train_is_cut_at_max_rows(tmp_path):
    for name in ("a", "b", "t"):
        lines = [f'{{"prompt": "{name} {number}", "completion": "c"}}' for number in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    splits = chats(Data(train=("a.jsonl", "b.jsonl"), valid="0%", test="t.jsonl", max_rows=2), tmp_path)
    assert [row.text for row in splits.train] == ["a 0", "a 1", "b 0", "b 1"]
    assert len(splits.test) == 5


def test_shares_that_leave_nothing_of_few_conversations(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}')
    with pytest.raises(DataError) as caught:
        chats(Data(train="a.jsonl", valid="10%", test="80%"), tmp_path)
    assert str(caught.value) == (
        "error: a.jsonl has 2 problems\n"
        "  data.valid   10% of 1 row gives no row. Write a larger share, or a file, or 0% to do without.\n"
        "  data.train   valid and test take all of 1 row. Write smaller shares."
    )


def test_docstrings_are_split_and_named_once(tmp_path):
    source = Docstrings(docstrings=("json",), form="questions")
    splits = chats(Data(train=source, valid="0%"), tmp_path)
    assert splits.sources[0].source == "docstrings of json"
    assert splits.sources[0].rows == len(splits.train) + len(splits.test)
    assert splits.train[0].id.startswith("docstrings of json:")
    with pytest.raises(DataError) as caught:
        chats(Data(train=source, test=Docstrings(docstrings=("abc", "json"), form="summaries")), tmp_path)
    assert str(caught.value) == (
        "error: docstrings of abc, json has 1 problem\n"
        "  data.test   is read already for train (docstrings of json). Name each package once."
    )


def test_conversations_of_files_of_one_name_have_ids_of_their_own(tmp_path):
    row = '{"instruction": "Say", "instances": [{"input": "1", "output": "a"}, {"input": "2", "output": "b"}]}\n'
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(row.replace("Say", f"Say {name}"))
    splits = chats(Data(train=("one/a.jsonl", "two/a.jsonl"), valid="0%", test="25%"), tmp_path)
    assert sorted(row.id for rows in splits.named().values() for row in rows) == [
        "one/a.jsonl:1#1", "one/a.jsonl:1#2", "two/a.jsonl:1#1", "two/a.jsonl:1#2",
    ]  # fmt: skip


def test_the_hash_of_conversations_sees_all_that_is_said():
    one = conversation(1, "p", "a")
    weighed = replace(one, turns=(one.turns[0], Turn("assistant", "a", trained=False)))
    called = replace(one, turns=(one.turns[0], Turn("assistant", "a", calls=({"name": "f", "arguments": {}},))))
    others = (
        conversation(1, "p", "b"),
        replace(one, references=("a", "b")),
        replace(one, tools=({"type": "function"},)),
        replace(one, turns=(Turn("system", "s"), *one.turns)),
        weighed,
        called,
        example(1, (), text="p"),
    )
    assert examples_sha256([one]) == examples_sha256([replace(one, id="x", where="y")])
    assert len({examples_sha256([row]) for row in (one, *others)}) == 8
