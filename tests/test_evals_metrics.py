"""One suite over all metric modules: compute, resample and scikit-learn say the same of the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from sklearn import metrics as sk

from ftkit.evals import loading, section, statistics

FOLDER = Path(loading.__file__).with_name("metrics")
AVERAGES = get_args(section.Average)


def single_label(seed, labels, rows=60, absent=()):
    """References, predictions and probabilities of a model with some skill; ``absent`` labels have no row."""
    rng = np.random.default_rng(seed)
    present = [label for label in range(labels) if label not in absent]
    references = rng.choice(present, size=rows)
    logits = rng.normal(size=(rows, labels)) + 1.2 * np.eye(labels)[references]
    logits = np.round(logits, 1)  # ties
    logits[:, list(absent)] = -9
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {
        "references": references,
        "predictions": probabilities.argmax(axis=1),
        "probabilities": probabilities,
        "outside": probabilities.max(axis=1) < 0.6,
    }


def multi_label(seed, labels, rows=60, absent=()):
    rng = np.random.default_rng(seed)
    references = rng.integers(2, size=(rows, labels))
    references[:, list(absent)] = 0
    probabilities = np.round(1 / (1 + np.exp(-rng.normal(size=(rows, labels)) - 1.5 * references + 0.8)), 2)
    probabilities[:, list(absent)] = 0.1
    return {
        "references": references,
        "predictions": (probabilities >= 0.4).astype(int),
        "probabilities": probabilities,
        "outside": (probabilities < 0.3).all(axis=1),
    }


def expected(name, average, rows):
    """The metric by scikit-learn, or by a loop written for this test; None where it is undefined."""
    references, predictions, probabilities = rows["references"], rows["predictions"], rows["probabilities"]
    many, labels = references.ndim == 2, probabilities.shape[1]
    settings = {"average": average, "zero_division": 0, "labels": None if many else list(range(labels))}
    if name in ("precision", "recall", "f1"):
        return getattr(sk, f"{name}_score")(references, predictions, **settings)
    if name == "accuracy":
        return sk.accuracy_score(references, predictions)
    if name == "out_of_label":
        return sum(map(bool, rows["outside"])) / len(references)
    if name == "mcc":
        # scikit-learn gives 0 for a single label too, but warns
        return sk.matthews_corrcoef(references, predictions) if len({*references, *predictions}) > 1 else 0.0
    one_hot = references if many else np.eye(labels, dtype=int)[references]
    if name == "roc_auc":
        columns = [1] if not many and labels == 2 else range(labels)
        if any(len(np.unique(one_hot[:, column])) == 1 for column in columns):
            return None
        return np.mean([sk.roc_auc_score(one_hot[:, column], probabilities[:, column]) for column in columns])
    if name == "log_loss" and many:
        return np.mean([sk.log_loss(one_hot[:, k], probabilities[:, k], labels=[0, 1]) for k in range(labels)])
    if name == "log_loss":
        return sk.log_loss(references, probabilities, labels=list(range(labels)))
    assert name == "ece"
    return slow_ece(references, probabilities)


def slow_ece(references, probabilities):
    bins = {}
    for row, reference in zip(probabilities, references, strict=True):
        if np.ndim(reference) == 0:
            decisions = [(max(row), int(np.argmax(row)) == reference)]
        else:
            decisions = [(max(p, 1 - p), (p >= 0.5) == bool(is_so)) for p, is_so in zip(row, reference, strict=True)]
        for confidence, right in decisions:
            bins.setdefault(min(int(np.ceil(round(confidence * 15, 9))), 15), []).append((confidence, right))
    total = sum(len(inside) for inside in bins.values())
    return sum(abs(sum(r - c for c, r in inside)) for inside in bins.values()) / total


CASES = [
    pytest.param(name, make, labels, absent, id=f"{name}-{make.__name__}-{labels}-without-{len(absent)}")
    for name in section.METRICS_OF["classify"]
    for make, labels, absent in [
        *((single_label, *case) for case in [(2, ()), (2, (1,)), (3, ()), (3, (2,)), (4, ()), (5, (0, 4))]),
        *((multi_label, *case) for case in [(2, ()), (3, (1,)), (5, ())] if name not in section.SINGLE_LABEL_ONLY),
    ]
]


@pytest.fixture(scope="module")
def load():
    """A metric for a case: load(name, labels, average, multi_label)."""

    def one(name, labels, average, many):
        return loading.load_metrics([name], labels=labels, average=average, multi_label=many)[name]

    return one


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("name", "make", "labels", "absent"), CASES)
def test_compute_resample_and_sklearn_agree(load, average, name, make, labels, absent):
    rows = make(7, labels, absent=absent)
    metric = load(name, labels, average, make is multi_label)
    wanted = expected(name, average, rows)
    inputs = {key: column for key, column in rows.items() if key in metric.features}
    assert metric.compute(**inputs)[name] == (wanted if wanted is None else pytest.approx(wanted, abs=1e-12))
    identity = metric.resample(np.ones((1, 60)), **rows)
    np.testing.assert_allclose(identity, [np.nan if wanted is None else wanted], atol=1e-12)

    (weights,) = statistics.draws(60, seed=3, resamples=4)
    drawn = metric.resample(weights, **rows)
    for counts, value in zip(weights, drawn, strict=True):
        order = np.repeat(np.arange(60), counts.astype(int))
        explicit = expected(name, average, {key: column[order] for key, column in rows.items()})
        assert np.isnan(value) if explicit is None else value == pytest.approx(explicit, abs=1e-12)


@pytest.mark.parametrize("name", section.METRICS_OF["classify"])
def test_a_metric_does_not_depend_on_the_order_of_the_rows(load, name):
    rows = single_label(1, 3)
    order = np.random.default_rng(0).permutation(60)
    shuffled = {key: column[order] for key, column in rows.items()}
    metric = {name: load(name, 3, "macro", False)}
    assert loading.measure(metric, **rows)[name] == pytest.approx(loading.measure(metric, **shuffled)[name], abs=1e-12)


def test_every_metric_name_has_a_module_and_every_module_a_name():
    files = {"rouge" if name.startswith("rouge") else name for name in get_args(section.MetricName)}
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == files
    assert {name for names in section.METRICS_OF.values() for name in names} == set(get_args(section.MetricName))


def test_f1_by_hand(load):
    """Label 0: 2 hits, 1 wrong, 0 missed. Label 1: 1 hit, 0 wrong, 1 missed. Label 2 is nowhere and counts as 0."""
    metric = load("f1", 3, "macro", False)
    assert metric.compute(references=[0, 0, 1, 1], predictions=[0, 0, 0, 1])["f1"] == pytest.approx(
        (4 / 5 + 2 / 3 + 0) / 3
    )


@pytest.mark.parametrize("make", [single_label, multi_label])
def test_a_certain_mistake_costs_a_finite_log_loss(load, make):
    rows = make(0, 2, rows=2)
    rows["references"] = np.array([0, 1]) if make is single_label else np.array([[1, 0], [1, 0]])
    rows["probabilities"] = np.array([[0.0, 1.0], [0.0, 1.0]])
    metric = {"log_loss": load("log_loss", 2, "macro", make is multi_label)}
    share_wrong = 0.5 if make is single_label else 1.0
    cost = -np.log(np.finfo(float).eps)
    assert loading.measure(metric, **rows)["log_loss"] == pytest.approx(share_wrong * cost)


def test_log_loss_takes_the_rounding_of_float32(load):
    """A float32 softmax sums to 1 only roughly; scikit-learn would warn, and warnings are errors here."""
    rows = single_label(2, 5)
    rows["probabilities"] = rows["probabilities"].astype(np.float32).astype(np.float64)
    metric = {"log_loss": load("log_loss", 5, "macro", False)}
    assert loading.measure(metric, **rows)["log_loss"] == pytest.approx(
        expected("log_loss", "macro", single_label(2, 5)), abs=1e-6
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_rows_without_any_label_give_zero(load, average):
    nothing = {"references": np.zeros((4, 3), int), "predictions": np.zeros((4, 3), int)}
    for name in ("precision", "recall", "f1"):
        metric = load(name, 3, average, True)
        assert metric.compute(**nothing)[name] == 0
        assert metric.resample(np.ones((2, 4)), **nothing).tolist() == [0, 0]


def test_one_label_everywhere_is_no_correlation(load):
    metric = load("mcc", 2, "macro", False)
    same = {"references": np.zeros(5, int), "predictions": np.zeros(5, int)}
    assert metric.compute(**same)["mcc"] == 0
    assert metric.resample(np.ones((1, 5)), **same).tolist() == [0]


def test_a_configuration_that_no_metric_has_is_refused(load):
    with pytest.raises(ValueError, match=r"Unknown configuration 'binary'\. Use macro, micro or weighted\."):
        load("f1", 2, "binary", False)
    with pytest.raises(ValueError, match="mcc is for one label a row"):
        load("mcc", 2, "macro", True)


SCRIPT = """
import json, os, sys
from ftkit.evals.loading import load_answer_metrics, load_metrics, measure
import numpy as np
rng = np.random.default_rng(0)
rows = {"references": rng.integers(3, size=40), "predictions": rng.integers(3, size=40)}
rows["probabilities"] = np.full((40, 3), 1 / 3)
metrics = load_metrics(["f1", "accuracy", "log_loss"], labels=3, average="weighted", multi_label=False)
ours = measure(metrics, **rows)
texts = {"predictions": ["the same words"], "references": [["the same words"]], "ended": [True]}
answers = [metric.compute(**{name: texts[name] for name in metric.features})
           for metric in load_answer_metrics(sys.argv[3].split(",")).values()]

import evaluate, transformers
f1, accuracy, auc = (evaluate.load(f"{sys.argv[1]}/{name}.py", "macro", cache_dir=sys.argv[2], keep_in_memory=True)
                     for name in ("f1", "accuracy", "roc_auc"))
rows = {"references": [0, 1, 1, 0], "predictions": [0, 1, 0, 0]}
scores = [[.9, .1], [.2, .8], [.6, .4], [.7, .3]]
print(json.dumps({
    "ours": ours,
    "answers": answers,
    "alone": f1.compute(**rows),
    "combined": evaluate.combine([f1, accuracy, auc]).compute(**rows, probabilities=scores),
    "variable": os.environ.get("HF_MODULES_CACHE"),
    "of_evaluate": str(evaluate.config.HF_MODULES_CACHE),
    "of_transformers": str(transformers.utils.hub.HF_MODULES_CACHE),
}))
"""


def test_a_fresh_process_leaves_nothing_on_the_disk(tmp_path, load):
    """Offline, beside this process, which holds the same metrics; the modules work in ``evaluate`` alone as well."""
    load("f1", 3, "weighted", False)
    home, scratch, modules = (tmp_path / name for name in ("home", "scratch", "modules"))
    home.mkdir()
    scratch.mkdir()
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    places = {"HOME": home, "TMPDIR": scratch, "HF_MODULES_CACHE": modules, "PYTHONPATH": FOLDER.parents[2]}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(FOLDER), str(tmp_path / "data"), ",".join(sorted(section.GENERATED))],
        env={**kept, **{key: str(place) for key, place in places.items()}, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert list(answer["ours"]) == ["f1", "accuracy", "log_loss"]
    assert answer["ours"]["log_loss"] == pytest.approx(np.log(3))
    assert [name for found in answer["answers"] for name in found] == sorted(section.GENERATED)
    assert answer["alone"] == {"f1": pytest.approx((0.8 + 2 / 3) / 2)}
    assert answer["combined"] == {**answer["alone"], "accuracy": 0.75, "roc_auc": 1.0}
    assert answer["variable"] == answer["of_transformers"] == str(modules)
    assert Path(answer["of_evaluate"]).is_relative_to(scratch)
    assert list(home.rglob("*")) == []
    assert list(scratch.rglob("ftkit*")) == []
    assert not modules.exists()
