"""The gate's verdicts and its words."""

from __future__ import annotations

import pytest

from ftkit.evals.gate import judge, rows_to_decide
from ftkit.evals.section import Bound
from ftkit.records import Comparison, GateReason, ModelScores, Verdict


def scores(ci95=(), **metrics):
    return ModelScores(metrics, dict(ci95), (), ())


def difference(metric, low, middle, high):
    return Comparison("paired_bootstrap", metric, 0.1, middle, (low, high))


def test_no_gate_sets_no_condition():
    assert judge({}, scores(f1=0.1), None, (), n=10) == Verdict(True, (), ())


@pytest.mark.parametrize(
    ("bound", "value", "need", "got", "passed"),
    [
        ({"min": 0.8}, 0.871, "at least 0.80", "0.871 (95% 0.838 to 0.902)", True),
        ({"min": 0.875}, 0.871, "at least 0.875", "0.871 (95% 0.838 to 0.902)", False),
        ({"min": 0.8}, 0.8, "at least 0.80", "0.800 (95% 0.838 to 0.902)", True),
        ({"min": 0.8}, 0.7996, "at least 0.80", "0.7996 (95% 0.838 to 0.902)", False),
        ({"max": 0.8}, 0.80004, "at most 0.80", "0.80004 (95% 0.838 to 0.902)", False),
        ({"max": 1}, 0.871, "at most 1.00", "0.871 (95% 0.838 to 0.902)", True),
    ],
)
def test_limits_are_on_the_measured_value(bound, value, need, got, passed):
    candidate = scores({"f1": (0.838, 0.902)}, f1=value)
    verdict = judge({"f1": Bound(**bound)}, candidate, None, (), n=100)
    assert verdict == Verdict(passed, (GateReason("f1", need, got, passed),), ())


def test_a_value_without_an_interval_stands_alone():
    (reason,) = judge({"f1": Bound(min=0.5)}, scores(f1=0.6), None, (), n=9).reasons
    assert reason.got == "0.600"


@pytest.mark.parametrize(
    ("metric", "interval", "passed"),
    [
        ("f1", (0.021, 0.059, 0.097), True),
        ("f1", (0.0, 0.059, 0.097), False),
        ("f1", (-0.2, -0.1, -0.05), False),
        ("log_loss", (-0.2, -0.1, -0.05), True),
        ("ece", (-0.2, -0.1, 0.0), False),
        ("log_loss", (0.05, 0.1, 0.2), False),
    ],
)
def test_to_beat_the_baseline_the_interval_must_exclude_0_on_the_good_side(metric, interval, passed):
    found = [difference("accuracy", -1, 0, 1), difference(metric, *interval)]
    verdict = judge({metric: Bound(beat="baseline")}, scores(**{metric: 0.5}), scores(**{metric: 0.4}), found, n=100)
    assert verdict.passed is passed


def test_the_words_of_a_beaten_baseline():
    found = [difference("f1", 0.021, 0.059, 0.097)]
    (reason,) = judge({"f1": Bound(beat="baseline")}, scores(f1=0.871), scores(f1=0.812), found, n=400).reasons
    assert reason.need == "to beat the baseline"
    assert reason.got == "0.871 against 0.812, difference +0.059 (95% +0.021 to +0.097)"


def test_too_few_rows_are_said_with_how_many_would_do():
    """Half-width 0.05 around 0.02: (0.05 / 0.02)^2 = 6.25 times the 200 rows."""
    found = [difference("f1", -0.03, 0.02, 0.07)]
    verdict = judge({"f1": Bound(beat="baseline")}, scores(f1=0.82), scores(f1=0.80), found, n=200)
    assert not verdict.passed
    assert verdict.undecided == ("f1",)
    assert verdict.reasons[0].got == (
        "0.820 against 0.800, difference +0.020 (95% -0.030 to +0.070); "
        "200 test rows are too few to decide, about 1,300 would"
    )


def test_a_limit_that_fails_is_not_undecided():
    gate = {"f1": Bound(min=0.9, beat="baseline")}
    verdict = judge(gate, scores(f1=0.82), scores(f1=0.8), [difference("f1", -0.03, 0.02, 0.07)], n=200)
    assert [reason.passed for reason in verdict.reasons] == [False, False]
    assert verdict.undecided == ()


@pytest.mark.parametrize(
    ("metric", "interval", "n", "rows"),
    [
        ("f1", (-0.03, 0.02, 0.07), 200, 1300),
        ("ece", (-0.07, -0.02, 0.03), 200, 1300),
        ("accuracy", (0.0, 0.02, 0.04), 200, 210),
        ("f1", (-0.07, -0.02, 0.03), 200, None),
        ("f1", (0.01, 0.02, 0.03), 200, None),
        ("f1", (-0.01, 0.0, 0.01), 200, None),
        ("f1", (-1.0, 1e-17, 1.0), 200, None),
    ],
)
def test_rows_to_decide(metric, interval, n, rows):
    assert rows_to_decide(difference(metric, *interval), n) == rows


@pytest.mark.parametrize(
    ("candidate", "baseline", "got"),
    [
        ({"roc_auc": None}, {"roc_auc": 0.7}, ["undefined on these rows", "undefined on these rows"]),
        ({}, {"roc_auc": 0.7}, ["not measured", "not measured"]),
        ({"roc_auc": 0.7}, {"roc_auc": None}, ["0.700", "0.700, undefined on these rows for the baseline"]),
        ({"roc_auc": 0.7}, None, ["0.700", "0.700, no baseline"]),
    ],
)
def test_a_metric_without_a_value_fails_with_the_reason(candidate, baseline, got):
    gate = {"roc_auc": Bound(min=0.5, beat="baseline")}
    verdict = judge(gate, scores(**candidate), None if baseline is None else scores(**baseline), (), n=50)
    assert not verdict.passed
    assert [reason.got for reason in verdict.reasons] == got
