"""What a run came to, in sentences: the same words in the terminal, the card and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ftkit.evals.gate import NOTHING, rows_to_decide
from ftkit.evals.section import NEITHER_IS_BETTER
from ftkit.records import Comparison, EvalReport, GateReason, Verdict
from ftkit.report import numbers
from ftkit.report.story import Story
from ftkit.report.tables import (
    Compared,
    answer_metric,
    kind_of,
    main_metric,
    main_model,
    model_name,
    outcome,
)

_OTHERS = ("baseline", "majority", "unigram")  # what the headline compares with: the first that is there
_VERBS = {
    "better": "beats",
    "worse": "is worse than",
    "higher": "is above",
    "lower": "is below",
    "undecided": "is not shown to differ from",
}
NO_GATE = "No condition was set: the recipe has no gate, so the result was not judged."


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict: a word or two, and one sentence that says why."""

    tone: Literal["good", "bad", "open", "plain"]
    label: str
    sentence: str


def headline(story: Story) -> Headline:
    if story.eval is None:
        return _without_evaluation(story)
    tone, label = _judged(story, story.eval.gate)
    clauses = [_result(story.eval), _gate_clause(story, story.eval.gate), _proof_clause(story, story.eval.gate)]
    return Headline(tone, label, "; ".join(clause for clause in clauses if clause) + ".")


def compared_line(item: Compared, kind: str) -> str:
    """ "Adapter beats …: F1 +0.083 (95% 0.041 to 0.125), p = 0.0004"."""
    found = item.comparison
    subject = _inside(item.first, kind)
    if subject != item.first:  # a name that is given, such as a run's, stays as it is
        subject = f"{subject[0].upper()}{subject[1:]}"
    return (
        f"{subject} {_VERBS[item.outcome]} {_inside(item.second, kind)}: "
        f"{numbers.metric_name(item.metric)} {numbers.signed(found.difference)} "
        f"(95% {numbers.interval(found.ci95)}), {numbers.p_value(found.p_value)}"
    )


def reason_line(reason: GateReason) -> str:
    return f"{numbers.metric_name(reason.metric)}: need {reason.need}, got {reason.got}"


def undecided_line(verdict: Verdict, unit: str) -> str:
    """Empty where everything was decided."""
    if not verdict.undecided:
        return ""
    return f"Too few test {unit}s to decide: " + "; ".join(numbers.metric_name(item) for item in verdict.undecided)


def proof_line(merge: Mapping[str, Any], kind: str) -> str:
    """What was compared between adapter and merged model, and what came out."""
    allowed = merge.get("tolerance", {}).get("max_abs_logit_diff")
    limit = f" (allowed: {numbers.small(allowed)})" if allowed is not None else ""
    shown = "is the trained one" if merge["passed"] else "is not shown to be the trained one"
    unit = merge.get("unit", "row")
    rows = f" on {numbers.rows(merge['rows'], unit)}" if merge.get("rows") else ""
    of_tokens = "" if kind in ("classify", "words") else " of the tokens"
    metric = numbers.small(metric_diff(merge))
    alone = f" ({rounding_alone(merge)})" if "rounding" in merge else ""
    return (
        f"The merged model {shown}:{rows} the largest logit difference is "
        f"{numbers.small(merge['max_abs_logit_diff'])}{limit}, the predictions agree on "
        f"{agreement(merge['argmax_agreement'])}{of_tokens}{alone}, and the metric differs by {metric}."
        f"{_quantised_line(merge, of_tokens)}"
    )


def rounding_alone(merge: Mapping[str, Any]) -> str:
    """What rounding makes of the adapter where 16 bits are computed with; empty where it is computed in float32."""
    found = merge.get("rounding")
    if not found:
        return ""
    largest, agreed = numbers.small(found["max_abs_logit_diff"]), agreement(found["argmax_agreement"])
    return f"rounding alone, with the adapter merged in memory: {largest} and {agreed}"


def merged_into(merge: Mapping[str, Any]) -> str:
    """Which base an adapter that was trained on one in 4 bits was merged into, and why; empty for another adapter."""
    named = {"full": "the base in full precision", "dequantised": "the dequantised base"}
    if "into" not in merge:
        return ""
    into, chosen = merge["into"], merge.get("chosen_by")
    if not chosen:
        return named[into]
    other = next(base for base in named if base != into)
    figures = f"{numbers.score(chosen[into])} against {numbers.score(chosen[other])} on {named[other]}"
    return f"{named[into]} (validation {numbers.metric_inside(chosen['metric'])} {figures})"


def against_quantised(merge: Mapping[str, Any], of_tokens: str = "") -> str:
    """How the merged model differs from the adapter on its base in 4 bits; empty for another adapter."""
    found = merge.get("quantised") or {}
    if "metric" not in found:
        return ""
    return (
        f"the largest logit difference is {numbers.small(found['max_abs_logit_diff'])}, the predictions agree on "
        f"{agreement(found['argmax_agreement'])}{of_tokens}, and {numbers.metric_inside(found['metric'])} is "
        f"{numbers.score(found['merged'])} against {numbers.score(found['adapter'])}"
    )


def _quantised_line(merge: Mapping[str, Any], of_tokens: str) -> str:
    against = against_quantised(merge, of_tokens)
    return f" It was merged into {merged_into(merge)}; compared with the base in 4 bits, {against}." if against else ""


def agreement(share: float) -> str:
    """A share close to 1, which rounding must not turn into 100%."""
    return "100%" if share == 1 else f"{min(100 * share, 99.99):.2f}%"


def metric_diff(merge: Mapping[str, Any]) -> float | None:
    """The largest difference of any metric between adapter and merged model."""
    found = merge.get("metric_diff")
    if isinstance(found, Mapping):
        return max((abs(value) for value in found.values() if value is not None), default=None)
    return found


def metric_notes(story: Story) -> str:
    """What a reader must know of the metrics to read them right; empty where they need no word."""
    report = story.eval
    if report is None:
        return ""
    metrics = report.models[main_model(report)].metrics
    notes = []
    if {"precision", "recall", "f1"} & set(metrics) and report.metrics_average:
        notes.append(f"Precision, recall and F1 are {report.metrics_average} averages.")
    if kind_of(report) == "words":
        notes.append(
            "The label is the one whose word, with the end of the answer, is likeliest; with constrained generation it "
            "is the one that is written when nothing but labels may be."
        )
    if "out_of_label" in metrics:
        notes.append("Out of label: the share of answers, written freely, that are no label.")
    if report.task == "sft" and answer_metric(metrics) is not None:
        notes.append("Answers are written with the likeliest token at each place, so they are the same every time.")
    if "perplexity" in metrics and report.task == "sft":
        notes.append(
            "Perplexity is that of the reference answers, per token; it compares only between models with the same "
            "tokens."
        )
    elif "perplexity" in metrics and story.objective == "masked":
        notes.append(
            "Perplexity is that of the hidden tokens, the same ones for every model; it does not compare with the "
            "perplexity of a model that writes."
        )
    elif "perplexity" in metrics:
        notes.append("Perplexity is per token and compares only between models with the same tokens.")
    if "bits_per_byte" in metrics:
        notes.append("Bits per byte does not depend on the tokens.")
    return " ".join(notes)


def first_line(error: str) -> str:
    """The line of error.txt that says what happened: the first, or the last of a traceback."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if not lines:
        return "no reason was recorded"
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return line.removeprefix("error: ").rstrip(".")


def _without_evaluation(story: Story) -> Headline:
    product = "model" if story.from_scratch else "adapter"
    if story.error is None:
        return Headline("plain", "Not finished", "This run has no evaluation yet; what it has so far stands below.")
    if story.train is None:
        why = f"It ended with: {first_line(story.error)}. There is no {product} and nothing was measured."
        return Headline("bad", "Training failed", why)
    why = f"The {product} was trained, but its evaluation failed: {first_line(story.error)}. Nothing was measured."
    return Headline("bad", "Not evaluated", why)


def _judged(story: Story, gate: Verdict) -> tuple[Literal["good", "bad", "open", "plain"], str]:
    if story.merge is not None and not story.merge["passed"]:
        return "bad", "Not proved"
    if not gate.passed:
        open_only = all(reason.passed or reason.metric in gate.undecided for reason in gate.reasons)
        return ("open", "Gate not decided") if gate.undecided and open_only else ("bad", "Gate not met")
    if story.error is not None:
        return "bad", "Not finished"
    return ("good", "Gate met") if gate.reasons else ("plain", "No condition set")


def _inside(model: str, kind: str) -> str:
    """A model's name inside a sentence: "the linear probe on the frozen base"."""
    name = model_name(model, kind).replace(", constrained", " by constrained")
    return f"the {name[0].lower()}{name[1:]}" if name != model else name


def _result(report: EvalReport) -> str:
    model, metric = main_model(report), main_metric(report)
    name, rows = numbers.metric_name(metric), numbers.rows(report.n, f"held-out {report.unit}")
    kind = kind_of(report)
    value = numbers.score(report.models[model].metrics.get(metric))
    others = [other for other in _OTHERS if other in report.models]
    for other in others:
        found = next((c for c in report.comparison.get(f"{model}_vs_{other}", ()) if c.metric == metric), None)
        if found is not None and metric not in NEITHER_IS_BETTER:
            against = numbers.score(report.models[other].metrics.get(metric))
            figures = f"{name} {value} against {against} on {rows} ({_difference(found)})"
            return _claim(_inside(model, kind), _inside(other, kind), figures, found, report)
    interval = report.models[model].ci95.get(metric)
    beside = f" (95% {numbers.interval(interval)})" if interval else ""
    subject = _inside(model, kind)
    reached = f"{subject[0].upper()}{subject[1:]} reaches {numbers.metric_inside(metric)} {value}{beside} on {rows}"
    if not others:
        return f"{reached}, compared with no other model"
    against = numbers.score(report.models[others[0]].metrics.get(metric))
    tested = "" if metric in NEITHER_IS_BETTER else " (the difference was not tested)"
    return f"{reached}, against {against} of {_inside(others[0], kind)}{tested}"


def _claim(model: str, other: str, figures: str, found: Comparison, report: EvalReport) -> str:
    came_out = outcome(found)
    if came_out == "better":
        return f"The {model.removeprefix('the ')} beats {other}: {figures}"
    if came_out == "worse":
        return f"The {model.removeprefix('the ')} is worse than {other}: {figures}"
    ahead = found.difference if not numbers.lower_is_better(found.metric) else -found.difference
    if abs(ahead) < NOTHING:
        return f"No difference between {model} and {other} is seen: {figures}"
    needed = rows_to_decide(found, report.n)
    if needed is None:
        return f"The {model.removeprefix('the ')} does not beat {other}: {figures}, and is not shown to be worse either"
    more = f"about {numbers.count(needed)} test {report.unit}s would decide a difference of this size"
    return f"It is not decided whether {model} beats {other}: {figures}; {more}"


def _difference(found: Comparison) -> str:
    return f"difference {numbers.signed(found.difference)}, 95% {numbers.interval(found.ci95)}"


def _gate_clause(story: Story, gate: Verdict) -> str:
    if not gate.reasons:
        return "the recipe sets no condition" if gate.passed else "the gate is not met"
    if gate.passed:
        return "the gate is met"
    failed = ", ".join(reason_line(reason) for reason in gate.reasons if not reason.passed)
    return f"the gate is not met ({failed})" + ("" if story.from_scratch else ", so nothing was merged")


def _proof_clause(story: Story, gate: Verdict) -> str:
    merge = story.merge
    if merge is None:
        if gate.passed and story.error is not None:
            return f"what came after failed: {first_line(story.error)}"
        asked = story.planned("recipe", "merge") is False and not story.from_scratch
        return "it was not merged, as the recipe asks" if asked else ""
    found = f"largest logit difference {numbers.small(merge['max_abs_logit_diff'])}"
    if merge["passed"]:
        return f"the merged model is the trained one ({found})"
    allowed = merge.get("tolerance", {}).get("max_abs_logit_diff")
    limit = f", allowed {numbers.small(allowed)}" if allowed is not None else ""
    return f"the merged model is not shown to be the trained one ({found}{limit}), so there is no folder named merged"
