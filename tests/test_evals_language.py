"""Figures of language models: by hand, by a loop, under a cut of the windows, paired, and before the gate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ftkit.errors import RecipeError
from ftkit.evals import loading, statistics
from ftkit.evals.gate import judge
from ftkit.evals.language import FEWEST, compare_language, score_language
from ftkit.evals.section import METRICS_OF, Bound, Eval, selected_language_metrics, selected_metrics
from ftkit.records import as_json


def windows(n=80, seed=0):
    """Tokens, bytes and negative log-likelihoods of a model, window by window; windows differ much in difficulty."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 512, size=n)
    hardness = rng.gamma(4.0, 0.8, size=n)
    return {"nll": tokens * hardness, "tokens": tokens, "bytes": tokens * 4 + rng.integers(9, size=n)}


def score(rows, *, seed=0, resamples=400, **settings):
    return score_language(
        rows["nll"], rows["tokens"], rows["bytes"], settings=Eval(**settings), seed=seed, resamples=resamples
    )


def by_hand(name, nll, tokens, bytes):
    """The metric of these windows by a loop; None where it is undefined."""
    total = math.fsum(nll)
    if name == "perplexity":
        return math.exp(total / sum(tokens)) if sum(tokens) else None
    return total / (math.log(2) * sum(bytes)) if sum(bytes) else None


@pytest.fixture(scope="module")
def metrics():
    return loading.load_language_metrics(METRICS_OF["pretrain"])


@pytest.fixture(scope="module")
def scored():
    return score(windows())


def test_values_by_hand():
    """Two windows, 3 ln 2 + 1 ln 2 over 4 tokens and 8 bytes: a choice of 2 a token, half a bit a byte."""
    rows = {"nll": np.log(2) * np.array([3.0, 1.0]), "tokens": np.array([3, 1]), "bytes": np.array([5, 3])}
    found = score(rows).scores.metrics
    assert found == {"perplexity": pytest.approx(2), "bits_per_byte": pytest.approx(0.5)}


def test_a_uniform_model_over_v_tokens_has_perplexity_v():
    tokens = np.array([7, 11, 64, 128])
    rows = {"nll": tokens * math.log(32_000), "tokens": tokens, "bytes": tokens}
    assert score(rows).scores.metrics == {
        "perplexity": pytest.approx(32_000),
        "bits_per_byte": pytest.approx(math.log2(32_000)),
    }


@pytest.mark.parametrize("name", METRICS_OF["pretrain"])
def test_compute_resample_and_a_loop_agree(metrics, name):
    rows = windows(60)
    used = {key: rows[key] for key in ("nll", "tokens", "bytes") if key in metrics[name].features}
    assert metrics[name].compute(**used)[name] == pytest.approx(by_hand(name, **rows))
    (weights,) = statistics.draws(60, seed=3, resamples=5)
    drawn = metrics[name].resample(weights, **rows)
    for counts, value in zip(weights, drawn, strict=True):
        order = np.repeat(np.arange(60), counts.astype(int))
        assert value == pytest.approx(by_hand(name, **{key: column[order] for key, column in rows.items()}))


def test_the_interval_is_that_of_the_drawn_windows():
    rows = windows(30)
    values = []
    for weights in statistics.draws(30, seed=5, resamples=400):
        for counts in weights:
            order = np.repeat(np.arange(30), counts.astype(int))
            values.append(by_hand("perplexity", **{key: column[order] for key, column in rows.items()}))
    low, high = np.quantile(values, [0.025, 0.975])
    found = score(rows, seed=5).scores
    assert found.ci95["perplexity"] == (pytest.approx(low), pytest.approx(high))
    assert low < found.metrics["perplexity"] < high


def test_cutting_windows_in_two_does_not_change_the_total(scored):
    rows = windows()
    share = np.random.default_rng(1).uniform(0.2, 0.8, size=80)
    first = {key: (column * share).astype(column.dtype) for key, column in rows.items()}
    halves = {key: np.concatenate([first[key], column - first[key]]) for key, column in rows.items()}
    assert len(halves["nll"]) == 160
    assert score(halves).scores.metrics == pytest.approx(scored.scores.metrics)


def test_a_window_without_tokens_changes_nothing(scored):
    rows = {key: np.append(column, column.dtype.type(0)) for key, column in windows().items()}
    assert score(rows).scores.metrics == pytest.approx(scored.scores.metrics)


def test_nothing_predicted_is_undefined_and_not_zero(metrics):
    nothing = {"nll": np.zeros(8), "tokens": np.zeros(8, int), "bytes": np.zeros(8, int)}
    found = score(nothing)
    assert found.scores.metrics == {"perplexity": None, "bits_per_byte": None}
    assert found.scores.ci95 == {}
    assert compare_language(found, found) == ()
    for metric in metrics.values():
        assert np.isnan(metric.resample(np.ones((2, 8)), **nothing)).all()


def test_a_hopeless_model_has_a_finite_figure_that_json_can_hold():
    rows = {"nll": np.full(8, 1e6), "tokens": np.ones(8, int), "bytes": np.ones(8, int)}
    found = score(rows).scores
    assert found.metrics["perplexity"] == pytest.approx(1e300)
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["ci95"]["bits_per_byte"][0] > 1e6


def test_the_scores_hold_nothing_of_labels_and_the_order_of_the_recipe(scored):
    assert (scored.scores.per_class, scored.scores.confusion, scored.scores.reliability) == ((), (), ())
    assert list(scored.scores.metrics) == ["perplexity", "bits_per_byte"]
    chosen = score(windows(), metrics=("bits_per_byte", "perplexity"))
    assert list(chosen.scores.metrics) == ["bits_per_byte", "perplexity"]
    assert chosen.scores.ci95 == scored.scores.ci95


def test_without_bytes_there_is_perplexity_alone(scored):
    rows = windows()
    masked = score_language(rows["nll"], rows["tokens"], None, settings=Eval(), seed=0, resamples=400)
    assert masked.scores.metrics == {"perplexity": scored.scores.metrics["perplexity"]}
    assert masked.bytes is None


def test_pairing_decides_what_the_intervals_of_each_model_do_not():
    """The second model is 1% better on every window: far within what the windows differ by, and certain all the same."""
    rows = windows()
    better = score(rows | {"nll": rows["nll"] * 0.99})
    worse = score(rows)
    first, second = better.scores.ci95["perplexity"], worse.scores.ci95["perplexity"]
    assert first[0] < second[0] < first[1] < second[1]
    for found in compare_language(better, worse):
        assert found.test == "paired_bootstrap"
        assert found.ci95[0] < found.difference < found.ci95[1] < 0
        assert found.p_value < 0.01
        assert found.ci95[1] - found.ci95[0] < 0.2 * (first[1] - first[0])
    back = compare_language(worse, better)
    assert [item.difference for item in back] == [-item.difference for item in compare_language(better, worse)]


def test_a_model_does_not_differ_from_itself(scored):
    for item in compare_language(scored, scored):
        assert (item.p_value, item.difference, item.ci95) == (1, 0, (0, 0))


def test_what_is_not_paired_is_refused(scored):
    with pytest.raises(ValueError, match="not paired: windows, resamples and seed are"):
        compare_language(scored, score(windows(), seed=1))
    rows = windows()
    with pytest.raises(ValueError, match="hold different numbers of tokens"):
        compare_language(scored, score(rows | {"tokens": rows["tokens"] + 1}))


def test_few_windows_have_figures_but_no_interval_and_no_comparison():
    few = score(windows(FEWEST - 1))
    assert few.scores.metrics["perplexity"] is not None
    assert few.scores.ci95 == {}
    assert compare_language(few, few) == ()
    assert set(score(windows(FEWEST)).scores.ci95) == {"perplexity", "bits_per_byte"}
    gate = {"perplexity": Bound(beat="baseline")}
    (reason,) = judge(gate, few.scores, few.scores, (), n=FEWEST - 1, unit="window").reasons
    assert not reason.passed
    assert reason.got.endswith("; 5 test windows are too few to compare")


@pytest.mark.parametrize("name", METRICS_OF["pretrain"])
@pytest.mark.parametrize(("factor", "passed"), [(0.9, True), (1.0, False), (1.1, False)])
def test_the_gate_asks_for_less_and_not_for_more(name, factor, passed):
    rows = windows()
    ours, theirs = score(rows | {"nll": rows["nll"] * factor}), score(rows)
    verdict = judge(
        {name: Bound(beat="baseline")}, ours.scores, theirs.scores, compare_language(ours, theirs), n=80, unit="window"
    )
    assert verdict.passed is passed
    assert verdict.undecided == ()


def test_the_gate_says_how_many_windows_would_decide():
    rows = windows()
    noise = np.random.default_rng(2).normal(0, 0.2, size=80)
    noise -= (noise * rows["nll"]).sum() / rows["nll"].sum()  # 1% better in total, and now better, now worse
    ours, theirs = score(rows | {"nll": rows["nll"] * (0.99 + noise)}), score(rows)
    verdict = judge(
        {"perplexity": Bound(beat="baseline")},
        ours.scores,
        theirs.scores,
        compare_language(ours, theirs),
        n=80,
        unit="window",
    )
    assert verdict.undecided == ("perplexity",)
    assert "; 80 test windows are too few to decide, about " in verdict.reasons[0].got


def test_the_gate_writes_a_large_perplexity_in_whole_numbers():
    rows = {"nll": np.full(8, 10.0), "tokens": np.ones(8, int), "bytes": np.ones(8, int)}
    found = score(rows).scores
    (reason,) = judge({"perplexity": Bound(max=20_000)}, found, None, (), n=8).reasons
    assert (reason.need, reason.got) == ("at most 20,000", "22,026 (95% 22,026 to 22,026)")
    (reason,) = judge({"perplexity": Bound(max=22_026.4)}, found, None, (), n=8).reasons
    assert (reason.got, reason.passed) == ("22,026.5 (95% 22,026 to 22,026)", False)


def test_each_task_has_its_own_metrics():
    assert "perplexity" not in selected_metrics(Eval(), multi_label=False)
    with pytest.raises(RecipeError) as caught:
        selected_metrics(Eval(metrics=("f1", "perplexity")), multi_label=False)
    assert str(caught.value).endswith("eval.metrics[1]   perplexity is not measured for classify. Remove it.")
    with pytest.raises(RecipeError) as caught:
        selected_language_metrics(Eval(metrics=("f1", "bits_per_byte")), with_bytes=False)
    assert str(caught.value) == (
        "error: the recipe has 2 problems\n"
        "  eval.metrics[0]   f1 is not measured for pretrain. Remove it.\n"
        "  eval.metrics[1]   bits_per_byte needs every byte of the text to be predicted, and a masked model predicts "
        "the hidden tokens alone. Remove it."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([1, 2])}, r"nll, tokens and bytes must be of one shape \[n\]"),
        ({"nll": np.array([1.0, np.nan, 2.0])}, "below 0 or not finite"),
        ({"nll": np.array([1.0, -1.0, 2.0])}, "below 0 or not finite"),
        ({"bytes": np.array([1, -1, 2])}, "fewer than 0 tokens or bytes"),
        ({key: np.array([]) for key in ("nll", "tokens", "bytes")}, "n at least 1"),
    ],
)
def test_mixed_up_arrays_are_refused(change, message):
    rows = {"nll": np.ones(3), "tokens": np.ones(3, int), "bytes": np.ones(3, int)}
    with pytest.raises(ValueError, match=message):
        score(rows | change)
