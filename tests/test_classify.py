"""The loss, the order of training rows, and the label weights."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from ftkit.errors import TrainingFailed
from ftkit.tasks.classify import Collate, TrainingRows, loss_function, weights_of


def rows(count: int) -> list[dict]:
    chance = random.Random(0)
    return [{"input_ids": [number] * chance.randint(1, 60)} for number in range(count)]


@pytest.mark.parametrize("count", [1, 7, 8, 400, 403, 1001])
def test_each_epoch_visits_every_row_once(count):
    made = TrainingRows(rows(count), 8, seed=3)
    for epoch in range(3):
        made.set_epoch(epoch)
        assert sorted(made[position]["input_ids"][0] for position in range(count)) == list(range(count))


def test_batches_hold_rows_of_like_length_in_an_order_that_seed_and_epoch_decide():
    source = rows(1000)
    made = TrainingRows(source, 8, seed=3)
    lengths = [len(made[position]["input_ids"]) for position in range(1000)]
    padded = sum(8 * max(lengths[at : at + 8]) for at in range(0, 1000, 8))
    assert padded < 1.05 * sum(lengths)
    assert max(lengths[:8]) == max(lengths)
    order = [row["input_ids"][0] for row in map(made.__getitem__, range(1000))]
    made.set_epoch(1)
    second = [row["input_ids"][0] for row in map(made.__getitem__, range(1000))]
    assert second != order
    again = TrainingRows(source, 8, seed=3)
    again.set_epoch(1)
    assert [row["input_ids"][0] for row in map(again.__getitem__, range(1000))] == second


def test_the_order_is_found_in_few_looks_at_each_row():
    """Each row's length is asked for a few dozen times at most, however many rows there are."""

    class Counted(list):
        looks = 0

        def __len__(self):
            Counted.looks += 1
            return super().__len__()

    source = [{"input_ids": Counted(row["input_ids"])} for row in rows(20_000)]
    TrainingRows(source, 8, seed=3)
    assert Counted.looks < 40 * len(source)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_and_its_micro_batches_have_one_gradient(multi_label, weights, smoothing):
    torch.manual_seed(0)
    logits = torch.randn(8, 3, requires_grad=True)
    labels = torch.randint(0, 2, (8, 3)).float() if multi_label else torch.randint(0, 3, (8,))
    loss = loss_function(multi_label=multi_label, weights=weights, label_smoothing=smoothing)
    items = torch.tensor(labels.numel())
    (whole,) = torch.autograd.grad(loss({"logits": logits}, labels, items), logits)
    parts = sum(loss({"logits": logits[row : row + 1]}, labels[row : row + 1], items) for row in range(8))
    (pieces,) = torch.autograd.grad(parts, logits)
    torch.testing.assert_close(whole, pieces)


def test_the_loss_without_weights_is_the_usual_one():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    ours = loss_function(multi_label=False, weights=None, label_smoothing=0.0)({"logits": logits}, labels)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, labels))


def test_a_loss_that_is_not_finite_stops_the_run():
    loss = loss_function(multi_label=False, weights=None, label_smoothing=0.0)
    with pytest.raises(TrainingFailed, match="the loss is nan"):
        loss({"logits": torch.full((2, 3), float("nan"))}, torch.tensor([0, 1]))


def test_balanced_weights_give_each_label_the_same_share():
    counts = {"a": 90, "b": 10}
    weights = weights_of("balanced", ["a", "b"], counts, multi_label=False)
    assert weights is not None
    assert weights[0] * 90 == pytest.approx(weights[1] * 10)
    assert (weights[0] * 90 + weights[1] * 10) / 100 == pytest.approx(1)
    assert weights_of({"b": 3.0}, ["a", "b"], counts, multi_label=False) == [1.0, 3.0]
    assert weights_of("none", ["a", "b"], counts, multi_label=False) is None


def test_padding_stands_on_the_right_and_is_masked():
    batch = Collate(pad_token_id=9, multi_label=False)(
        [{"input_ids": [1, 2, 3], "labels": 0}, {"input_ids": [4], "labels": 1}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert SimpleNamespace(**batch).labels.tolist() == [0, 1]
