"""The ladder as a table: from the base over adapter and merged model to each export, on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from ftkit.records import EvalReport
from ftkit.report import numbers, tables

NOTICEABLE = 0.005  # a fall of the metric from which on it is told


@dataclass(frozen=True, slots=True)
class Rung:
    """One model; figures as shown. ``agreement``: share of answers, or tokens, like those of what it was made from."""

    name: str
    score: str
    interval: str
    size: str
    speed: str
    logit_diff: str
    agreement: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Below ``headings``, the name left out."""
        return self.score, self.interval, self.size, self.speed, self.logit_diff, self.agreement


def headings(report: EvalReport) -> tuple[str, ...]:
    metric = numbers.metric_name(tables.main_metric(report))
    return "Model", metric, "95% interval", "Size", f"{report.unit.capitalize()}s/s", "Logit difference", "Same answers"


def rungs(report: EvalReport) -> list[Rung]:
    """A rung for each model, and for each export that was not scored; empty where nothing was exported."""
    if not report.exports:
        return []
    unscored = [name for name in report.exports if name not in report.models]
    return [_rung(report, name) for name in (*tables.ordered_models(report), *unscored)]


def fallen(report: EvalReport) -> list[str]:
    """A sentence for each export that is worse than the model it was made from."""
    out = []
    for name, facts in report.exports.items():
        if facts.metric is None or facts.metric_fall is None or facts.metric_fall <= NOTICEABLE:
            continue
        made = next(each for each in ("merged", "model") if each in report.exports)
        ours, before = (_figure(report, each, facts.metric) for each in (name, made))
        metric = numbers.metric_name(facts.metric)
        out.append(f"{name} is worse than the model it was made from: {metric} {ours} against {before}.")
    return out


def read_by(report: EvalReport) -> str:
    """By which program each model was read that was timed; empty where none was."""
    found: dict[str, list[str]] = {}
    for name in tables.ordered_models(report):
        facts = report.exports.get(name)
        if facts is not None and facts.reader:
            found.setdefault(facts.reader, []).append(tables.model_name(name, tables.kind_of(report)))
    said = "; ".join(f"{reader}: {', '.join(names)}" for reader, names in found.items())
    return f"Read and timed by {said}." if said else ""


def _figure(report: EvalReport, name: str, metric: str) -> str:
    """Of a model from a later merge there may be none."""
    scores = report.models.get(name)
    return numbers.score(scores.metrics.get(metric) if scores else None)


def _rung(report: EvalReport, name: str) -> Rung:
    metric = tables.main_metric(report)
    scores, facts = report.models.get(name), report.exports.get(name)
    compared = facts is not None and facts.max_abs_logit_diff is not None
    return Rung(
        name=tables.model_name(name, tables.kind_of(report)),
        score=_figure(report, name, metric),
        interval=numbers.interval(scores.ci95.get(metric) if scores else None),
        size=numbers.size(facts.bytes) if facts else numbers.NOTHING,
        speed=numbers.count(facts.rows / facts.seconds) if facts and facts.rows and facts.seconds else numbers.NOTHING,
        logit_diff=numbers.small(facts.max_abs_logit_diff) if facts and compared else numbers.NOTHING,
        agreement=_share(facts.argmax_agreement) if facts and compared else numbers.NOTHING,
    )


def _share(value: float | None) -> str:
    """With two decimals where it is not all of them, so that few do not read as none."""
    return numbers.NOTHING if value is None else "100%" if value == 1 else f"{min(100 * value, 99.99):.2f}%"
