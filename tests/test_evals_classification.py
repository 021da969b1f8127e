"""Whole results: scores of a model, and paired comparisons of two."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from ftkit.errors import RecipeError
from ftkit.evals.calibration import reliability
from ftkit.evals.classification import compare, score_classification
from ftkit.evals.section import Eval, selected_metrics
from ftkit.records import ClassScore, Reliability, as_json

ALL = ("accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "log_loss", "ece")


def model(references, labels, skill, seed):
    """Predictions and probabilities of a model; the better the larger ``skill``."""
    logits = np.random.default_rng(seed).normal(size=(len(references), labels)) + skill * np.eye(labels)[references]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, probabilities.argmax(axis=1)


def score(references, probabilities, predictions, *, many=False, seed=0, resamples=300, **settings):
    labels = [f"label {index}" for index in range(probabilities.shape[1])]
    return score_classification(
        references,
        probabilities,
        predictions,
        labels,
        multi_label=many,
        settings=Eval(**settings),
        seed=seed,
        resamples=resamples,
    )


@pytest.fixture(scope="module")
def references():
    return np.random.default_rng(0).integers(3, size=250)


@pytest.fixture(scope="module")
def good(references):
    return score(references, *model(references, 3, 2.0, 1))


@pytest.fixture(scope="module")
def weak(references):
    return score(references, *model(references, 3, 1.0, 2))


def test_all_metrics_with_intervals_around_them(good):
    assert tuple(good.scores.metrics) == tuple(good.scores.ci95) == ALL
    for name in set(ALL) - {"ece"}:  # resampling adds error to the error: the interval of ece lies above it
        low, high = good.scores.ci95[name]
        assert low < good.scores.metrics[name] < high
    assert json.loads(json.dumps(as_json(good.scores)))["metrics"] == good.scores.metrics


def test_labels_and_confusion_are_those_of_sklearn(references, good):
    _, predictions = model(references, 3, 2.0, 1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(references, predictions)
    assert good.scores.per_class[1] == ClassScore("label 1", precision[1], recall[1], f1[1], support[1])
    assert good.scores.confusion == tuple(map(tuple, sk.confusion_matrix(references, predictions).tolist()))
    assert np.sum(good.scores.confusion) == 250


def test_the_selected_metrics_keep_their_order(references):
    scored = score(references, *model(references, 3, 1, 1), metrics=("f1", "accuracy"), average="weighted")
    assert list(scored.scores.metrics) == ["f1", "accuracy"]
    assert scored.scores.metrics["f1"] == pytest.approx(
        sk.f1_score(references, model(references, 3, 1, 1)[1], average="weighted")
    )


def test_a_label_without_rows_leaves_roc_auc_undefined_and_the_rest_measured():
    references = np.random.default_rng(1).integers(2, size=60)
    scored = score(references, *model(references, 3, 1.0, 1))
    assert scored.scores.metrics["roc_auc"] is None
    assert set(ALL) - set(scored.scores.ci95) == {"roc_auc"}
    assert scored.scores.per_class[2] == ClassScore("label 2", 0, 0, 0, 0)
    assert [item.metric for item in compare(scored, scored)] == [name for name in ALL if name != "roc_auc"]


def test_multi_label():
    rng = np.random.default_rng(2)
    references = rng.integers(2, size=(120, 3))
    probabilities = 1 / (1 + np.exp(-rng.normal(size=(120, 3)) - 2 * references + 1))
    predictions = (probabilities >= 0.5).astype(int)
    scored = score(references, probabilities, predictions, many=True)
    assert tuple(scored.scores.metrics) == tuple(name for name in ALL if name != "mcc")
    assert scored.scores.metrics["accuracy"] == np.mean((references == predictions).all(axis=1))
    (tn, fp), (fn, tp) = scored.scores.confusion[0]
    assert (tn + fp, fn + tp) == ((references[:, 0] == 0).sum(), (references[:, 0] == 1).sum())
    assert scored.scores.per_class[0].recall == pytest.approx(tp / (tp + fn))
    assert compare(scored, scored)[0].p_value == 1


def test_mcc_of_a_multi_label_task_is_refused():
    with pytest.raises(RecipeError) as caught:
        selected_metrics(Eval(metrics=("f1", "mcc")), multi_label=True)
    assert str(caught.value) == (
        "error: the recipe has 1 problem\n"
        "  eval.metrics[1]   mcc is for one label a row, and the task is multi-label. Remove it."
    )


def test_a_better_model_is_found_better(good, weak):
    found = {item.metric: item for item in compare(good, weak)}
    assert tuple(found) == ALL
    assert found["accuracy"].test == "mcnemar"
    assert {item.test for name, item in found.items() if name != "accuracy"} == {"paired_bootstrap"}
    for name in ("accuracy", "f1", "mcc", "roc_auc"):
        assert found[name].p_value < 0.05
        assert 0 < found[name].ci95[0] < found[name].difference < found[name].ci95[1]
    assert found["log_loss"].ci95[1] < 0
    assert found["f1"].difference == good.scores.metrics["f1"] - weak.scores.metrics["f1"]


def test_a_comparison_turned_round_is_its_mirror_image(good, weak):
    for one, other in zip(compare(good, weak), compare(weak, good), strict=True):
        assert one.p_value == other.p_value
        assert one.difference == -other.difference
        assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))


def test_the_same_model_does_not_differ_from_itself(good):
    for item in compare(good, good):
        assert (item.p_value, item.difference, item.ci95) == (1, 0, (0, 0))


def test_two_models_are_resampled_with_the_same_rows(references, good):
    """They differ in one row, so a resample differs by how often it drew this row: never below 0, seldom above 4."""
    probabilities, predictions = model(references, 3, 2.0, 1)
    right = int(np.flatnonzero(predictions == references)[0])
    predictions[right] = (predictions[right] + 1) % 3
    (found,) = (
        item for item in compare(good, score(references, probabilities, predictions)) if item.metric == "accuracy"
    )
    assert found.difference == pytest.approx(1 / 250)
    assert found.ci95[0] == pytest.approx(0)
    assert found.ci95[1] <= 4 / 250


def test_other_draws_are_not_paired(references, good):
    with pytest.raises(ValueError, match="not paired"):
        compare(good, score(references, *model(references, 3, 2.0, 1), seed=1, metrics=("f1",)))


def test_the_seed_decides_everything(references, weak):
    again = score(references, *model(references, 3, 1.0, 2))
    other = score(references, *model(references, 3, 1.0, 2), seed=1)
    assert again.scores == weak.scores
    assert other.scores.metrics == weak.scores.metrics
    assert other.scores.ci95 != weak.scores.ci95


def test_the_bins_of_the_reliability_diagram_are_those_of_the_calibration_error(good):
    bins = good.scores.reliability
    assert sum(item.count for item in bins) == 250
    error = sum(item.count * abs(item.accuracy - item.confidence) for item in bins) / 250
    assert error == pytest.approx(good.scores.metrics["ece"])


def test_a_bin_holds_its_upper_edge_and_empty_bins_are_left_out():
    probabilities = np.array([[0.6, 0.4], [0.41, 0.59], [1.0, 0.0]])  # 0.6 is the edge of bins 9 and 10
    assert reliability(np.array([0, 0, 0]), probabilities) == (Reliability(0.595, 0.5, 2), Reliability(1.0, 1.0, 1))
    each = reliability(np.array([[1, 1]]), np.array([[1.0, 0.0]]))
    assert each == (Reliability(1.0, 0.5, 2),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": np.array([0, 1])}, "references, predictions and probabilities are"),
        ({"references": np.array([0, 1, 2])}, "must be 0 to 1"),
        ({"probabilities": np.full((3, 2), 0.7)}, "do not sum to 1"),
        ({"probabilities": np.full((3, 2), np.nan)}, "not between 0 and 1"),
        ({"references": np.array([], int)}, "nothing to score"),
    ],
)
def test_mixed_up_arrays_are_refused(change, message):
    rows = {"references": np.array([0, 1, 1]), "probabilities": np.full((3, 2), 0.5), "predictions": np.zeros(3, int)}
    with pytest.raises(ValueError, match=message):
        score(**{**rows, **change})


def test_as_many_resamples_as_asked_of_many_rows():
    references = np.random.default_rng(3).integers(5, size=2000)
    scored = score(references, *model(references, 5, 1.0, 1), resamples=2000)
    assert {len(values) for values in scored.resampled.values()} == {2000}
