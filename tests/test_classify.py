"""The loss, the label weights, and what a batch holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ftkit.errors import TrainingFailed
from ftkit.tasks.classify import Collate, loss_function, weights_of


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
