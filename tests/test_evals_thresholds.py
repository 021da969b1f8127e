"""Thresholds: decisions as stated, and the tuned ones as good as an exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ftkit.errors import RecipeError
from ftkit.evals.thresholds import apply_thresholds, tune_thresholds


def binary_rows(seed, rows=80):
    rng = np.random.default_rng(seed)
    references = (rng.random(rows) < 0.25).astype(int)
    second = np.round(1 / (1 + np.exp(-rng.normal(size=rows) - 1.5 * references + 1.5)), 2)
    return references, np.stack([1 - second, second], axis=1)


def test_fixed_is_the_most_probable_label_and_from_a_half_on():
    probabilities = np.array([[0.2, 0.5], [0.49, 0.1]])
    assert apply_thresholds(probabilities, multi_label=True).tolist() == [[0, 1], [0, 0]]
    assert apply_thresholds(np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0]]), multi_label=False).tolist() == [1, 0]


def test_thresholds_are_inclusive():
    probabilities = np.array([[0.7, 0.3], [0.71, 0.29]])
    assert apply_thresholds(probabilities, (0.3,), multi_label=False).tolist() == [1, 0]
    assert apply_thresholds(probabilities, (0.71, 0.3), multi_label=True).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("thresholds", "multi_label"), [((0.5,), True), ((0.5, 0.5), False)])
def test_a_wrong_number_of_thresholds_is_a_bug(thresholds, multi_label):
    with pytest.raises(ValueError, match="thresholds for"):
        apply_thresholds(np.full((3, 2), 0.5), thresholds, multi_label=multi_label)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_no_other_threshold_gives_a_better_f1(seed, average):
    references, probabilities = binary_rows(seed)
    (chosen,) = tune_thresholds(references, probabilities, average=average, multi_label=False)

    def f1(threshold):
        predictions = apply_thresholds(probabilities, (threshold,), multi_label=False)
        return f1_score(references, predictions, average=average, labels=[0, 1], zero_division=0)

    scores = np.unique(probabilities[:, 1])
    assert f1(chosen) == pytest.approx(max(f1(t) for t in [*(scores[1:] + scores[:-1]) / 2, 0.5]))
    assert f1(chosen) >= f1(0.5)


def test_each_label_of_a_multi_label_task_has_its_own():
    columns = [binary_rows(seed) for seed in range(3)]
    references = np.stack([column for column, _ in columns], axis=1)
    probabilities = np.stack([pair[:, 1] for _, pair in columns], axis=1)
    chosen = tune_thresholds(references, probabilities, average="macro", multi_label=True)
    tuned = f1_score(references, apply_thresholds(probabilities, chosen, multi_label=True), average=None)
    for label, threshold in enumerate(chosen):
        scores = np.unique(probabilities[:, label])
        candidates = [*(scores[1:] + scores[:-1]) / 2, 0.5]
        assert threshold in candidates
        assert tuned[label] == pytest.approx(
            max(f1_score(references[:, label], (probabilities[:, label] >= t).astype(int)) for t in candidates)
        )


def test_equally_good_thresholds_give_the_one_nearest_to_a_half():
    """0.15 to 0.8 separate perfectly: 0.5 does, and so nothing moves. Below, only 0.2 and 0.3 do."""
    references = np.array([[0], [0], [1], [1]])
    clear = np.array([[0.1], [0.2], [0.8], [0.9]])
    assert tune_thresholds(references, clear, average="macro", multi_label=True) == (0.5,)
    low = np.array([[0.1], [0.2], [0.3], [0.4]])
    assert tune_thresholds(references, low, average="macro", multi_label=True) == (0.25,)


def test_a_label_without_rows_or_with_equal_scores_keeps_a_half():
    scores = np.array([[0.1, 0.3], [0.4, 0.3], [0.6, 0.3]])
    references = np.array([[0, 1], [0, 0], [0, 1]])
    assert tune_thresholds(references, scores, average="macro", multi_label=True) == (0.5, 0.5)
    assert tune_thresholds(np.zeros(3, int), np.full((3, 2), 0.5), average="macro", multi_label=False) == (0.5,)
    assert tune_thresholds(np.ones(3, int), np.full((3, 2), 0.5), average="macro", multi_label=False) == (0.5,)


def test_three_labels_of_which_one_applies_cannot_be_tuned():
    with pytest.raises(RecipeError) as caught:
        tune_thresholds(np.array([0, 1]), np.full((2, 3), 1 / 3), average="macro", multi_label=False)
    assert str(caught.value) == (
        "error: the recipe has 1 problem\n  eval.threshold   tune needs two labels, or a multi-label task. "
        "Write threshold: fixed, or leave it out."
    )
