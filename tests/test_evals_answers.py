"""Figures of generated answers: by hand, against the published implementations, paired, and before the gate."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ftkit.errors import RecipeError
from ftkit.evals import loading, statistics
from ftkit.evals.answers import compare_answers, score_answers
from ftkit.evals.bootstrap import FEWEST
from ftkit.evals.classification import compare, score_classification
from ftkit.evals.gate import judge
from ftkit.evals.section import GENERATED, METRICS_OF, Bound, Eval, selected_answer_metrics, selected_metrics
from ftkit.recipe.rules import of_gate
from ftkit.records import as_json

WORDS = "the cat sat on a mat. Dogs, 3.5 run-away! Größe naïve λόγος 你好 x".split()
OF_A_ROW = ("exact_match", "token_f1", "rouge1", "rouge2", "rouge_l", "bleu", "chrf")
# Few words, so that answers and references share runs; also empty texts, white space alone, and odd characters.
TEXT = st.one_of(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), st.text("ab .\n\té", max_size=6))
ROWS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=6)


def model(n=40, seed=0, skill=0.7):
    """References, and what a model answered: a part of the words as they are, others wrong, a few answers cut."""
    rng = random.Random(seed)
    references = [
        [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(rng.randint(1, 3))] for _ in range(n)
    ]
    rng = random.Random(f"{seed} {skill}")
    predictions = [
        " ".join(word if rng.random() < skill else rng.choice(WORDS) for word in texts[0].split())
        for texts in references
    ]
    noise = np.random.default_rng(seed)
    tokens = noise.integers(3, 12, size=n)
    return {
        "references": references,
        "predictions": predictions,
        "ended": np.array([rng.random() < 0.5 + skill / 2 for _ in range(n)]),
        "nll": tokens * noise.gamma(4.0, 0.5, size=n) * (1.5 - skill),
        "tokens": tokens,
        "bytes_": tokens * 4,
    }


def score(rows, *, seed=0, resamples=200, **chosen):
    return score_answers(**rows, settings=Eval(**chosen), seed=seed, resamples=resamples)


@pytest.fixture(scope="module")
def metrics():
    return loading.load_answer_metrics(sorted(GENERATED))


@pytest.fixture(scope="module")
def good():
    return score(model(skill=0.9))


@pytest.fixture(scope="module")
def weak():
    return score(model(skill=0.3))


def columns(references):
    """The references as sacrebleu wants them: a list for each place, None where a row has fewer."""
    most = max(len(texts) for texts in references)
    return [[texts[place] if place < len(texts) else None for texts in references] for place in range(most)]


def published(name, predictions, references, ended):
    """The metric by the published implementation, or by a loop written for this test; None where it is undefined."""
    pairs = list(zip(predictions, references, strict=True))
    if name == "bleu":
        return BLEU(force=True).corpus_score(predictions, columns(references)).score
    if name == "chrf":
        return CHRF().corpus_score(predictions, columns(references)).score
    if name.startswith("rouge"):
        kind = {"rouge_l": "rougeL"}.get(name, name)
        scorer = RougeScorer([kind])
        return np.mean([max(scorer.score(text, answer)[kind].fmeasure for text in texts) for answer, texts in pairs])
    if name == "ended":
        return sum(ended) / len(ended)
    if name == "length_ratio":
        sizes = [sorted((abs(len(text) - len(answer)), len(text)) for text in texts)[0][1] for answer, texts in pairs]
        return len("".join(predictions)) / sum(sizes) if sum(sizes) else None
    if name == "repetition":
        runs = [list(zip(*(answer.split()[start:] for start in range(4)), strict=False)) for answer in predictions]
        total = sum(map(len, runs))
        return sum(run in found[:place] for found in runs for place, run in enumerate(found)) / total if total else None
    of_a_pair = {"exact_match": squad_match, "token_f1": squad_f1}[name]
    return sum(max(of_a_pair(answer, text) for text in texts) for answer, texts in pairs) / len(pairs)


def squad(text):
    """SQuAD's normalisation in its own order: small letters, no punctuation, no articles, single spaces."""
    kept = "".join(sign for sign in text.lower() if sign not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")] or text.lower().split()


def squad_match(answer, reference):
    return float(squad(answer) == squad(reference))


def squad_f1(answer, reference):
    ours, theirs = squad(answer), squad(reference)
    shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
    if not ours and not theirs:
        return 1.0
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def taken(metric, rows):
    return metric.compute(
        **{key: rows[key] for key in ("predictions", "references", "ended") if key in metric.features}
    )


def ascii_only(rows):
    """rouge-score knows no other letters."""
    plain = {sign: "q" for text in ["".join(WORDS), "é"] for sign in text if not sign.isascii()}
    table = str.maketrans(plain)
    return {
        "predictions": [text.translate(table) for text in rows["predictions"]],
        "references": [[text.translate(table) for text in texts] for texts in rows["references"]],
        "ended": rows["ended"],
    }


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_compute_resample_and_the_published_figure_agree(metrics, name):
    rows = model(30, seed=3)
    rows["predictions"][:3] = ["", "mat", "on a mat on a mat on a mat"]
    rows = ascii_only(rows) if name.startswith("rouge") else rows
    metric = metrics[name]
    three = {key: rows[key] for key in ("predictions", "references", "ended")}
    wanted = published(name, **three)
    assert taken(metric, three)[name] == pytest.approx(wanted, abs=1e-9)
    sums = metric.statistics(**three)
    assert metric.resample(np.ones((1, 30)), statistics=sums) == pytest.approx([wanted], abs=1e-9)
    (weights,) = statistics.draws(30, seed=3, resamples=6)
    for counts, value in zip(weights, metric.resample(weights, statistics=sums), strict=True):
        order = np.repeat(np.arange(30), counts.astype(int))
        drawn = {key: [column[row] for row in order] for key, column in three.items()}
        assert value == pytest.approx(published(name, **drawn), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS)
@pytest.mark.parametrize("name", ["bleu", "chrf", "exact_match", "token_f1", "repetition", "length_ratio"])
def test_any_texts_give_the_published_figure(metrics, name, rows):
    predictions, references = [answer for answer, _ in rows], [texts for _, texts in rows]
    sums = metrics[name].statistics(predictions=predictions, references=references)
    (value,) = metrics[name].resample(np.ones((1, len(rows))), statistics=sums)
    wanted = published(name, predictions, references, None)
    assert np.isnan(value) if wanted is None else value == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_a_row_alone_has_sacrebleus_sentence_score(metrics, rows):
    predictions, references = [answer for answer, _ in rows], [texts for _, texts in rows]
    for name, peer in (("bleu", BLEU(effective_order=True)), ("chrf", CHRF())):
        found = metrics[name].each(metrics[name].statistics(predictions=predictions, references=references))
        wanted = [peer.sentence_score(answer, texts).score for answer, texts in rows]
        np.testing.assert_allclose(found, wanted, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_an_exact_match_has_every_word(metrics, rows):
    """The two share SQuAD's normalisation, each in its own file."""
    inputs = {"predictions": [answer for answer, _ in rows], "references": [texts for _, texts in rows]}
    match, f1 = (metrics[name].each(metrics[name].statistics(**inputs)) for name in ("exact_match", "token_f1"))
    assert (f1[match == 1] == 1).all()
    assert ((0 <= f1) & (f1 <= 1)).all()


def test_values_by_hand(metrics):
    def value(name, answer, *references):
        return taken(metrics[name], {"predictions": [answer], "references": [list(references)]})[name]

    assert value("exact_match", "The  Eiffel tower.", "a palace", "eiffel Tower") == 1
    assert value("exact_match", "the tower", "the eiffel tower") == 0
    assert value("token_f1", "the big tower", "A palace", "the Eiffel tower!") == pytest.approx(0.5)
    assert value("rouge1", "cat on mat", "cat sat on mat") == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert value("rouge2", "cat on mat", "cat sat on mat") == pytest.approx(2 * (1 / 2) * (1 / 3) / (5 / 6))
    assert value("rouge_l", "mat on cat", "cat sat on mat") == pytest.approx(2 * (1 / 3) * (1 / 4) / (7 / 12))
    assert value("bleu", "the cat sat on the mat", "the cat sat on the mat") == pytest.approx(100)
    assert value("chrf", "same text", "other", "same text") == pytest.approx(100)
    assert value("length_ratio", "abcd", "ab", "abcdefgh") == 2  # 4 is nearer to 2 than to 8
    assert value("repetition", "go on and on " * 3, "go") == pytest.approx(5 / 9)


def test_signs_that_squad_takes_away_still_tell_answers_apart(metrics):
    """SQuAD's own script finds nothing in "+" and nothing in "-", and so takes them for equal."""
    pairs = [("+", "-"), ("+", "+"), ("A", "the"), ("A.", "a"), ("", "+")]
    inputs = {"predictions": [answer for answer, _ in pairs], "references": [[text] for _, text in pairs]}
    for name in ("exact_match", "token_f1"):
        found = metrics[name].each(metrics[name].statistics(**inputs)).tolist()
        assert found == [0, 1, 0, 0, 0]


def test_rouge_counts_words_of_any_script(metrics):
    """rouge-score alone would find the letters "gr" and "e" in the first, and no word at all in the second."""
    rows = {"predictions": ["Größe", "ο λόγος"], "references": [["größe"], ["Ο λόγος σου"]]}
    assert metrics["rouge1"].statistics(**rows)[:, 0].tolist() == [1, pytest.approx(0.8)]
    with pytest.raises(ValueError, match=r"Unknown configuration 'rougeLsum'\. Use rouge1, rouge2 or rouge_l\."):
        loading._load("rouge1", config_name="rougeLsum")


def test_what_no_row_decides_is_undefined_and_not_zero(metrics):
    rows = {"predictions": ["two words"] * 7, "references": [[""]] * 7}
    for name in ("repetition", "length_ratio"):
        assert taken(metrics[name], rows) == {name: None}
        assert np.isnan(metrics[name].resample(np.ones((2, 7)), statistics=metrics[name].statistics(**rows))).all()
    found = score(model(7) | rows, metrics=("repetition", "ended"))
    assert found.scores.metrics["repetition"] is None
    assert list(found.scores.ci95) == ["ended"]


def test_all_metrics_with_intervals_around_them(good):
    assert tuple(good.scores.metrics) == METRICS_OF["sft"] == selected_answer_metrics(Eval())
    assert set(good.scores.ci95) == set(METRICS_OF["sft"])
    for name, (low, high) in good.scores.ci95.items():
        assert low <= good.scores.metrics[name] <= high
    assert (good.scores.per_class, good.scores.confusion) == ((), ())
    assert json.loads(json.dumps(as_json(good.scores), allow_nan=False))["metrics"] == good.scores.metrics


def test_without_resamples_the_same_figures_come_without_intervals(good):
    found = score(model(skill=0.9), resamples=0)
    assert (found.scores.metrics, found.scores.ci95) == (good.scores.metrics, {})


def test_the_likelihood_is_that_of_the_references(good):
    rows = model(skill=0.9)
    total = math.fsum(rows["nll"])
    assert good.scores.metrics["perplexity"] == pytest.approx(math.exp(total / sum(rows["tokens"])))
    assert good.scores.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(rows["bytes_"]))


def test_the_values_of_each_row(good):
    rows = model(skill=0.9)
    assert tuple(good.rows) == OF_A_ROW
    for name in ("exact_match", "token_f1", "rouge1", "rouge2", "rouge_l"):
        assert good.rows[name].shape == (40,)
        assert good.rows[name].mean() == pytest.approx(good.scores.metrics[name])
    first = BLEU(effective_order=True).sentence_score(rows["predictions"][0], rows["references"][0]).score
    assert good.rows["bleu"][0] == pytest.approx(first)


def test_all_metrics_see_the_same_draws(good):
    """Where an answer is right or shares no word, token F1 is exact match, resample by resample."""
    rows = model(12)
    rows["predictions"] = [texts[0] if index % 3 else "nothing" for index, texts in enumerate(rows["references"])]
    found = score(rows, metrics=("exact_match", "token_f1"))
    np.testing.assert_allclose(found.resampled["exact_match"], found.resampled["token_f1"])
    assert len(set(found.resampled["exact_match"])) > 3
    assert score(model(skill=0.9)).scores == good.scores


def test_without_generation_there_is_the_likelihood_alone(good):
    rows = model(skill=0.9) | {"predictions": None, "ended": None}
    found = score(rows, metrics=("bits_per_byte", "perplexity"))
    assert list(found.scores.metrics) == ["bits_per_byte", "perplexity"]
    assert found.scores.ci95["perplexity"] == good.scores.ci95["perplexity"]
    assert found.rows == {}
    with pytest.raises(ValueError, match=r"predictions and ended are needed together, and for bleu, ended$"):
        score(rows, metrics=("perplexity", "bleu", "ended"))


def test_a_better_model_is_found_better(good, weak):
    found = {item.metric: item for item in compare_answers(good, weak)}
    assert tuple(found) == METRICS_OF["sft"]
    assert {item.test for item in found.values()} == {"paired_bootstrap"}
    for name in ("token_f1", "rouge1", "rouge_l", "bleu", "chrf"):
        assert 0 < found[name].ci95[0] < found[name].difference < found[name].ci95[1]
        assert found[name].difference == good.scores.metrics[name] - weak.scores.metrics[name]
        assert found[name].p_value < 0.02
    assert found["perplexity"].ci95[1] < 0
    for one, other in zip(found.values(), compare_answers(weak, good), strict=True):
        assert (one.p_value, one.difference) == (other.p_value, -other.difference)
    for item in compare_answers(good, good):
        assert (item.p_value, item.difference, item.ci95) == (1, 0, (0, 0))


def test_what_is_not_paired_is_refused(good):
    rows = model(skill=0.9)
    with pytest.raises(ValueError, match="not paired: rows, resamples and seed are"):
        compare_answers(good, score(rows, seed=1))
    with pytest.raises(ValueError, match="not paired: the references of the two differ"):
        compare_answers(good, score(rows | {"references": [["other"], *rows["references"][1:]]}))


def test_other_tokens_leave_all_but_perplexity_comparable(good):
    rows = model(skill=0.9)
    found = compare_answers(good, score(rows | {"tokens": rows["tokens"] + 1}))
    assert [item.metric for item in found] == [name for name in METRICS_OF["sft"] if name != "perplexity"]


def test_few_rows_have_figures_but_no_interval_and_no_comparison():
    few = score(model(FEWEST - 1))
    assert few.scores.metrics["chrf"] is not None
    assert few.rows["chrf"].shape == (FEWEST - 1,)
    assert few.scores.ci95 == {}
    assert compare_answers(few, few) == ()
    assert "chrf" in score(model(FEWEST)).scores.ci95


@pytest.mark.parametrize(("name", "passed"), [("chrf", True), ("token_f1", True), ("repetition", False)])
def test_the_gate_knows_which_way_is_better(good, weak, name, passed):
    gate = {name: Bound(beat="baseline")}
    verdict = judge(gate, good.scores, weak.scores, compare_answers(good, weak), n=40)
    assert verdict.passed is passed
    assert not judge(gate, weak.scores, good.scores, compare_answers(weak, good), n=40).passed


def test_more_repetition_does_not_pass():
    rows = model(12)
    loops = [f"{text} " * (2 + index % 3) for index, text in enumerate(rows["predictions"])]
    fine, caught = score(rows, metrics=("repetition",)), score(rows | {"predictions": loops}, metrics=("repetition",))
    gate = {"repetition": Bound(beat="baseline")}
    assert judge(gate, fine.scores, caught.scores, compare_answers(fine, caught), n=12).passed
    assert not judge(gate, caught.scores, fine.scores, compare_answers(caught, fine), n=12).passed


def test_nothing_beats_a_baseline_in_length():
    broken = list(of_gate({"length_ratio": Bound(beat="baseline"), "chrf": Bound(beat="baseline")}, None, None, None))
    text = "length_ratio is best at 1: neither more nor less beats. Write min and max."
    assert broken == [(("length_ratio", "beat"), text)]


def test_a_metric_of_another_task_is_refused():
    with pytest.raises(RecipeError) as caught:
        selected_answer_metrics(Eval(metrics=("chrf", "f1")))
    assert str(caught.value).endswith("eval.metrics[1]   f1 is not measured for sft. Remove it.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": ["one"]}, r"1 predictions and \(3,\) ended for 3 rows"),
        ({"ended": np.array([True])}, r"3 predictions and \(1,\) ended for 3 rows"),
        ({"ended": None}, "predictions and ended are needed together"),
        ({"references": [["a"], [], ["b"]]}, "there must be rows, and a reference for each"),
        ({"references": []}, "there must be rows, and a reference for each"),
        ({"references": ["a", "b", "c"]}, "a list of texts for each row"),
        ({"tokens": np.array([1, 2])}, r"must be of shape \(3,\); they are \(3,\), \(2,\), \(3,\)"),
        ({"nll": np.array([1.0, np.inf, 1.0])}, "below 0 or not finite"),
        ({"bytes_": np.array([1, -1, 1])}, "fewer than 0 tokens or bytes"),
    ],
)
def test_mixed_up_rows_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        score(model(3) | change)


def classified(outside, **chosen):
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(2, size=(2, 30))
    return score_classification(
        references,
        np.full((30, 2), 0.5),
        predictions,
        ("no", "yes"),
        multi_label=False,
        settings=Eval(**chosen),
        seed=0,
        resamples=100,
        outside=outside,
    )


def test_out_of_label_is_measured_where_words_are_written_and_only_there():
    outside = np.arange(30) % 5 == 0
    decoder, head = classified(outside), classified(None)
    assert decoder.scores.metrics == {**head.scores.metrics, "out_of_label": pytest.approx(0.2)}
    low, high = decoder.scores.ci95["out_of_label"]
    assert 0 < low < 0.2 < high < 0.5
    assert "out_of_label" not in [item.metric for item in compare(decoder, head)]
    found = {item.metric: item for item in compare(decoder, classified(~outside))}["out_of_label"]
    assert (found.test, found.difference) == ("paired_bootstrap", pytest.approx(-0.6))
    chosen = ("out_of_label", "f1")
    assert tuple(classified(outside, metrics=chosen).scores.metrics) == chosen
    assert selected_metrics(Eval(metrics=chosen), multi_label=False) == ("f1",)
    with pytest.raises(ValueError, match=r"outside is int64 of shape \(30,\), and must be bool of shape \(30,\)"):
        classified(outside.astype(int))
