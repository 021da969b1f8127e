"""report.html: one self-contained page. What is shown is decided here, how it looks in templates/report.html.j2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftkit.evals.gate import rows_to_decide
from ftkit.records import EvalReport
from ftkit.report import answers, charts, facts, language, numbers, rungs, tables, untrusted, wording
from ftkit.report.story import Mistake, Story

if TYPE_CHECKING:
    from jinja2 import Environment

_UNTRAINED = ("majority", "unigram", "baseline_plain", "baseline")
LARGEST_MATRIX = 40
WITH_SHARES = 12
LISTED_PAIRS = 20
SHOWN_CLASSES = 20
SHOWN_TEXT = language.SHOWN_TEXT
SHOWN_ANSWER = 80


def render(story: Story) -> str:
    """The page. The same folder gives the same bytes."""
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            story=story,
            headline=wording.headline(story),
            errors=[_error(mistake) for mistake in story.predictions.worst] if story.predictions else [],
            base=facts.base(story),
            data=facts.data(story),
            training=facts.training(story),
            proof=facts.proof(story),
            origin=facts.origin(story),
            limits=facts.limits(story),
            unit=story.unit,
            data_unit=story.data_unit,
            **language.sections(story),
            **answers.sections(story),
            **_results(story),
            **_labels(story.eval),
            **_charts(story),
            **_data_tables(story),
        )
    )
    return page.strip() + "\n"


def _environment() -> Environment:
    """Everything that a template prints is made visible, then escaped; only charts are marked as markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) else untrusted.visible(str(value))

    environment = Environment(
        loader=PackageLoader("ftkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": numbers.metric_name,
        "score": numbers.score,
        "count": numbers.count,
        "percent": numbers.percent,
        "plain": numbers.plain,
    }
    return environment


def _results(story: Story) -> dict[str, Any]:
    report = story.eval
    if report is None:
        nothing: dict[str, Any] = {"results": None, "compared": [], "gate": [], "undecided": "", "rungs": []}
        return nothing | {"seeds": ((), []), "against": None}
    return {
        "results": tables.results(report),
        "rungs": rungs.rungs(report),
        "rung_headings": rungs.headings(report),
        "read_by": rungs.read_by(report),
        "lower": {metric: numbers.lower_is_better(metric) for metric in tables.results(report).metrics},
        "compared": [_compared(item, report) for item in tables.compared(report)],
        "gate": report.gate.reasons,
        "undecided": wording.undecided_line(report.gate, report.unit),
        "no_gate": wording.NO_GATE,
        "notes": wording.metric_notes(story),
        "seeds": tables.seed_spread(report),
        "against": story.predictions.against_baseline if story.predictions else None,
    }


def _compared(item: tables.Compared, report: EvalReport) -> dict[str, Any]:
    found, kind = item.comparison, tables.kind_of(report)
    needed = rows_to_decide(found, report.n) if item.outcome == "undecided" else None
    return {
        "models": f"{tables.model_name(item.first, kind)} against {tables.model_name(item.second, kind)}",
        "metric": item.metric,
        "difference": numbers.signed(found.difference),
        "interval": numbers.interval(found.ci95),
        "p": numbers.p_value(found.p_value),
        "test": {"mcnemar": "McNemar", "paired_bootstrap": "paired bootstrap"}[found.test],
        "outcome": item.outcome,
        "needed": numbers.count(needed) if needed else "",
    }


def _labels(report: EvalReport | None) -> dict[str, Any]:
    """Figures by label: precision and recall, and what was taken for what."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("per_class", "more_classes", "averages", "pairs", "label_tables", "labels"), ()
    )
    nothing["matrix"] = None
    if report is None:
        return nothing | {"multi_label": False, "baseline_f1": {}}
    scores = report.models[tables.main_model(report)]
    baseline = report.models.get("baseline")
    listed = list(scores.per_class)
    if len(listed) > LARGEST_MATRIX:
        listed = tables.weakest_first(listed)
    shown = SHOWN_CLASSES if len(listed) > LARGEST_MATRIX else len(listed)
    out = nothing | {
        "per_class": listed[:shown],
        "more_classes": listed[shown:],
        "averages": scores.averages,
        "baseline_f1": {item.label: item.f1 for item in baseline.per_class} if baseline else {},
        "baseline_name": "base" if tables.kind_of(report) == "words" else "probe",
        "multi_label": report.multi_label,
        "labels": report.labels,
        "with_shares": len(report.labels) <= WITH_SHARES,
    }
    if report.multi_label:
        return out | {"label_tables": list(zip(report.labels, scores.confusion, strict=False))}
    pairs = tables.confused_pairs(report.labels, scores.confusion, LISTED_PAIRS)
    matrix = tables.confusion_cells(scores.confusion) if len(report.labels) <= LARGEST_MATRIX else None
    return out | {"matrix": matrix, "pairs": pairs if len(report.labels) > 2 else []}


def _charts(story: Story) -> dict[str, Any]:
    """Inline SVG by place; None where there is nothing to draw."""
    from markupsafe import Markup

    drawn = {
        "scores_chart": _scores_chart(story.eval),
        "reliability_chart": _reliability_chart(story.eval),
        "lengths_chart": _lengths_chart(story),
        **_progress_charts(story),
    }
    return {name: Markup(svg) if svg else None for name, svg in drawn.items()}


def _scores_chart(report: EvalReport | None) -> str | None:
    if report is None:
        return None
    metric = tables.main_metric(report)
    found = []
    for model in tables.ordered_models(report):
        value = report.models[model].metrics.get(metric)
        if value is not None:
            name = untrusted.visible(tables.model_name(model, tables.kind_of(report)))
            found.append((name, value, report.models[model].ci95.get(metric), model not in _UNTRAINED))
    return charts.scores(metric, found) if found else None


def _reliability_chart(report: EvalReport | None) -> str | None:
    if report is None:
        return None
    bins = {
        tables.model_name(model, tables.kind_of(report)): report.models[model].reliability
        for model in (tables.main_model(report), "baseline")
        if model in report.models and report.models[model].reliability
    }
    return charts.reliability(bins) if bins else None


def _lengths_chart(story: Story) -> str | None:
    lengths = story.planned("data", "lengths") or {}
    if not lengths.get("histogram"):
        return None
    limit = facts.limit_of_lengths(story)
    limit = f"{limit[0].lower()}{limit[1:]}"
    return charts.lengths(lengths["histogram"], lengths.get("max_length"), limit=limit, unit=story.data_unit)


def _progress_charts(story: Story) -> dict[str, str | None]:
    log = story.train_log
    if log is None or not log.loss:
        return {"losses_chart": None, "validation_chart": None}
    chosen = story.train.best_metric if story.train else None
    losses = ("loss", "log_loss")  # a language model's validation loss, and a classifier's
    valid = next((log.valid[name] for name in losses if name in log.valid), ())
    metric = next((name for name in (chosen, *log.valid) if name in log.valid and name not in losses), None)
    from_zero = story.task != "pretrain"
    return {
        "losses_chart": charts.losses(log.loss, valid, log.best_step, from_zero=from_zero),
        "validation_chart": charts.validation(metric, log.valid[metric], log.best_step, unit=story.unit)
        if metric
        else None,
    }


def _data_tables(story: Story) -> dict[str, Any]:
    per_label = story.planned("data", "per_label") or {}
    return {
        "splits": list(per_label),
        "label_counts": tables.label_counts(per_label, story.planned("data", "labels") or []),
        "files": story.planned("data", "files") or [],
        "findings": story.planned("data", "findings") or [],
        "decisions": story.planned("decisions") or [],
    }


def _error(mistake: Mistake) -> dict[str, Any]:
    start, rest = untrusted.clip(mistake.text, SHOWN_TEXT)
    said = None if mistake.said is None else untrusted.clip(mistake.said, SHOWN_ANSWER)[0]
    return {"row": mistake, "start": start, "rest": rest, "sure": numbers.percent(mistake.confidence), "said": said}
