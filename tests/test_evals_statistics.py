"""Intervals and tests keep what they promise: coverage, level, pairing, and the same draws for everybody."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from ftkit.evals import statistics


def all_draws(rows, **settings):
    return np.concatenate(list(statistics.draws(rows, **settings)))


def resampled_mean(values, *, seed, resamples=500):
    return all_draws(len(values), seed=seed, resamples=resamples) @ values / len(values)


def test_each_resample_draws_as_many_rows_as_there_are():
    drawn = all_draws(7, seed=0, resamples=50)
    assert drawn.shape == (50, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean() == 1


def test_a_seed_gives_the_same_draws_whatever_the_chunks(monkeypatch):
    whole = all_draws(11, seed=5, resamples=64)
    monkeypatch.setattr(statistics, "CHUNK", 11 * 7)
    assert max(len(chunk) for chunk in statistics.draws(11, seed=5, resamples=64)) == 7
    np.testing.assert_array_equal(all_draws(11, seed=5, resamples=64), whole)
    assert not np.array_equal(all_draws(11, seed=6, resamples=64), whole)


def test_the_interval_holds_the_truth_about_95_times_in_100():
    """300 experiments of 200 rows: the binomial spread of the coverage is 0.013, the bounds are 3 of these."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        low, high = statistics.percentile_interval(resampled_mean(rng.random(200) < 0.8, seed=seed, resamples=400))
        held += low <= 0.8 <= high
    assert 0.905 <= held / 300 <= 0.985


def test_the_interval_narrows_with_the_square_root_of_the_rows():
    rng = np.random.default_rng(2)
    widths = []
    for rows in (200, 3200):
        low, high = statistics.percentile_interval(resampled_mean(rng.random(rows) < 0.7, seed=0, resamples=2000))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)


def test_undefined_resamples_are_left_out_unless_they_are_most():
    values = np.linspace(0, 1, 1001)
    with_gaps = np.concatenate([values, np.full(1000, np.nan)])
    assert statistics.percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert statistics.percentile_interval(with_gaps) == pytest.approx((0.025, 0.975))
    assert statistics.percentile_interval(np.append(with_gaps, [np.nan, np.nan])) is None
    assert statistics.percentile_interval(np.full(5, np.nan)) is None


def test_mcnemar_by_hand():
    """1 row where only the first is right, 7 where only the second is: 2 (C(8,0) + C(8,1)) / 2^8."""
    first = np.array([True] * 1 + [False] * 7 + [True] * 20)
    second = np.array([False] * 1 + [True] * 7 + [True] * 20)
    assert statistics.mcnemar(first, second) == pytest.approx(2 * (comb(8, 0) + comb(8, 1)) / 2**8)
    assert statistics.mcnemar(second, first) == statistics.mcnemar(first, second)


def test_mcnemar_of_equal_answers_is_1():
    same = np.array([True, False, True])
    assert statistics.mcnemar(same, same) == 1
    assert statistics.mcnemar(np.array([True, False]), np.array([False, True])) == 1


def test_p_values_keep_their_level_when_there_is_no_difference():
    """400 pairs of equally good models: about 5% fall below 0.05; the exact test errs on the safe side."""
    rng = np.random.default_rng(3)
    exact, bootstrap = [], []
    for seed in range(400):
        first, second = rng.random((2, 150)) < 0.7
        exact.append(statistics.mcnemar(first, second))
        bootstrap.append(statistics.paired_bootstrap_p(resampled_mean(first * 1.0 - second, seed=seed, resamples=300)))
    assert np.mean(np.array(exact) < 0.05) <= 0.065
    assert 0.02 <= np.mean(np.array(bootstrap) < 0.05) <= 0.085
    assert np.mean(np.array(bootstrap) < 0.5) == pytest.approx(0.5, abs=0.1)


def test_a_clear_difference_is_found_and_p_is_never_0():
    rng = np.random.default_rng(4)
    first, second = rng.random(300) < 0.9, rng.random(300) < 0.6
    assert statistics.mcnemar(first, second) < 1e-6
    differences = resampled_mean(first * 1.0 - second, seed=0, resamples=999)
    assert statistics.paired_bootstrap_p(differences) == pytest.approx(2 / 1000)
    assert statistics.paired_bootstrap_p(-differences) == statistics.paired_bootstrap_p(differences)
    assert statistics.paired_bootstrap_p(np.append(differences, np.nan)) == pytest.approx(2 / 1000)
    assert statistics.paired_bootstrap_p(np.zeros(99)) == 1


def test_pairing_narrows_the_interval_of_a_difference():
    """Two models that mostly agree: the same draws cancel what the rows share."""
    rng = np.random.default_rng(5)
    first = (rng.random(400) < 0.8) * 1.0
    second = np.where(rng.random(400) < 0.05, 1 - first, first)
    paired = resampled_mean(first, seed=0) - resampled_mean(second, seed=0)
    unpaired = resampled_mean(first, seed=0) - resampled_mean(second, seed=1)
    width = {}
    for name, values in (("paired", paired), ("unpaired", unpaired)):
        low, high = statistics.percentile_interval(values)
        width[name] = high - low
    assert width["paired"] < 0.6 * width["unpaired"]


def test_the_default_draws_are_as_many_as_are_promised():
    assert sum(len(chunk) for chunk in statistics.draws(2000, seed=0)) == statistics.RESAMPLES
