"""The order of training rows, and how rows are put together for scoring."""

from __future__ import annotations

import math
import random

import pytest

from ftkit.tasks.batches import TrainingRows, batches, chunks, padded


def rows(count: int) -> list[dict]:
    chance = random.Random(0)
    return [{"input_ids": [number] * chance.randint(1, 60)} for number in range(count)]


def training_rows(source: list[dict], *, seed: int = 3) -> TrainingRows:
    return TrainingRows(source, [len(row["input_ids"]) for row in source], 8, seed=seed)


def order(made: TrainingRows) -> list[int]:
    return [made[position]["row"] for position in range(len(made))]


@pytest.mark.parametrize("count", [1, 7, 8, 400, 403, 1001])
def test_each_epoch_visits_every_row_once(count):
    source = rows(count)
    made = training_rows(source)
    for epoch in range(3):
        made.set_epoch(epoch)
        assert sorted(order(made)) == list(range(count))
        assert all(made[position]["epoch"] == epoch for position in range(count))
        assert all(
            made[position]["input_ids"] == source[made[position]["row"]]["input_ids"] for position in range(count)
        )


def test_a_row_keeps_what_it_had_and_the_source_stays_as_it_was():
    source = [{"input_ids": [1, 2], "labels": 5}]
    assert training_rows(source)[0] == {"input_ids": [1, 2], "labels": 5, "row": 0, "epoch": 0}
    assert source == [{"input_ids": [1, 2], "labels": 5}]


def test_batches_hold_rows_of_like_length_in_an_order_that_seed_and_epoch_decide():
    source = rows(1000)
    made = training_rows(source)
    lengths = [len(made[position]["input_ids"]) for position in range(1000)]
    padding = sum(8 * max(lengths[at : at + 8]) for at in range(0, 1000, 8))
    assert padding < 1.05 * sum(lengths)
    assert max(lengths[:8]) == max(lengths)
    first = order(made)
    made.set_epoch(1)
    second = order(made)
    assert second != first
    again = training_rows(source)
    again.set_epoch(1)
    assert order(again) == second
    assert order(training_rows(source, seed=4)) != first


@pytest.mark.parametrize("count", [7, 8, 403])
def test_the_rows_of_a_step_are_those_that_the_trainer_reads_in_it(count):
    """Asked of a set that stands at another epoch: the log names the rows of steps long past."""
    made, asked = training_rows(rows(count)), training_rows(rows(count))
    step = 0
    for epoch in range(3):
        made.set_epoch(epoch)
        read = order(made)
        for at in range(0, count, 8):
            step += 1
            assert asked.rows_of_step(step) == read[at : at + 8]
    assert step == 3 * math.ceil(count / 8)
    assert order(asked) == order(training_rows(rows(count)))


def test_the_order_is_found_in_few_looks_at_each_row():
    """A row's length is asked for a few times at most, however many rows there are; the rows themselves are not read."""

    class Counted(list):
        looks = 0

        def __getitem__(self, row):
            Counted.looks += 1
            return super().__getitem__(row)

    class Unread:
        def __len__(self):
            return 20_000

        def __getitem__(self, row):
            raise AssertionError("read before it was asked for")

    lengths = Counted(len(row["input_ids"]) for row in rows(20_000))
    TrainingRows(Unread(), lengths, 8, seed=3)
    assert Counted.looks <= 3 * len(lengths)


def test_padding_stands_on_the_right_and_is_masked():
    made = padded([[1, 2, 3], [4]], 9)
    assert made["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_scoring_batch_has_as_many_padded_tokens_as_suit_the_device():
    lengths = [*range(1, 600, 7), 5000]
    found = list(batches(range(len(lengths)), lengths, "cpu"))
    assert [row for batch in found for row in batch] == list(range(len(lengths)))
    sizes = [len(batch) * max(lengths[row] for row in batch) for batch in found]
    assert all(size <= 2048 for size in sizes[:-1])
    assert found[-1] == [len(lengths) - 1]  # a row that is longer than the device likes stands alone
    assert len(found) < len(lengths)
    assert list(batches([], [], "cpu")) == []


def test_a_batch_holds_no_more_logits_than_memory_has_room_for():
    """16,384 tokens of a vocabulary of 152,000 would be 10 GB in float32, on a GPU of 8."""
    lengths = [100] * 400
    sizes = {size: max(map(len, batches(range(400), lengths, "cuda", vocabulary=size))) for size in (8192, 151_936)}
    assert sizes == {8192: 163, 151_936: 8}
    assert list(batches(range(2), [2000, 2000], "cpu", vocabulary=151_936)) == [[0], [1]]


def test_chunks_are_read_as_they_are_needed():
    def source():
        yield from range(5)
        raise AssertionError("read too far")

    found = chunks(source(), 2)
    assert [next(found), next(found)] == [[0, 1], [2, 3]]
    assert list(chunks(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
