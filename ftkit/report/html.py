"""report.html: one file, no network, no script; every text from outside is escaped by the template engine."""

from __future__ import annotations

from typing import Any

from ftkit.report import charts, numbers, tables, wording
from ftkit.report.story import Story
from ftkit.report.untrusted import clip, visible

_MATRIX_LABELS = 40
_PAIRS = 20
_CLIP = 240


def render_html(story: Story) -> str:
    """The page; parts whose stage did not run are left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ftkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "count": numbers.count,
        "metric": numbers.metric_name,
        "plain": numbers.plain,
    }
    return environment.get_template("report.html.j2").render(
        story=story,
        headline=wording.headline(story),
        numbers=numbers,
        evaluation=_evaluation(story),
        charts=_charts(story),
        mistakes=_mistakes(story),
        proof=None if story.merge is None else wording.proof_line(story.merge),
    )


def _evaluation(story: Story) -> dict[str, Any] | None:
    report = story.eval
    if report is None:
        return None
    main = report.models[tables.main_model(report)]
    small = not report.multi_label and len(report.labels) <= _MATRIX_LABELS
    return {
        "n": report.n,
        "labels": report.labels,
        "multi_label": report.multi_label,
        "results": tables.results(report),
        "compared": [wording.compared_line(item, report.task) for item in tables.compared(report)],
        "reasons": [(wording.reason_line(reason), reason.passed) for reason in report.gate.reasons],
        "no_gate": wording.NO_GATE,
        "undecided": wording.undecided_line(report.gate),
        "per_class": tables.weakest_first(main.per_class),
        "confusion": tables.confusion_cells(main.confusion) if small else None,
        "pairs": None if small or report.multi_label else tables.confused_pairs(report.labels, main.confusion, _PAIRS),
        "tables": list(zip(report.labels, main.confusion, strict=True)) if report.multi_label else None,
        "thresholds": list(zip(report.labels[-len(report.thresholds) :], report.thresholds, strict=True))
        if report.thresholds
        else [],
    }


def _charts(story: Story) -> dict[str, Any]:
    """Drawings that matplotlib made; it escapes the text in them."""
    from markupsafe import Markup

    drawn: dict[str, list[str]] = {"scores": [], "reliability": [], "curves": [], "lengths": []}
    report, log = story.eval, story.train_log
    if report is not None:
        metric = tables.main_metric(report)
        found = [
            (tables.model_name(model, report.task), value, report.models[model].ci95.get(metric))
            for model in tables.ordered_models(report)
            if (value := report.models[model].metrics.get(metric)) is not None
        ]
        drawn["scores"].append(charts.scores(metric, found))
        bins = {
            tables.model_name(model, report.task): report.models[model].reliability
            for model in ("baseline", "adapter")
            if model in report.models and report.models[model].reliability
        }
        if bins:
            drawn["reliability"].append(charts.reliability(bins))
    if log is not None and log.loss:
        drawn["curves"].append(
            charts.losses(log.loss, log.valid.get("loss", log.valid.get("log_loss", ())), log.best_step)
        )
        named = [name for name in log.valid if name not in ("loss", "log_loss")]
        drawn["curves"] += [charts.validation(name, log.valid[name], log.best_step) for name in named]
    histogram = story.planned("data", "lengths", "histogram")
    if histogram:
        drawn["lengths"].append(charts.lengths(histogram, story.planned("data", "lengths", "max_length")))
    return {name: [Markup(svg) for svg in found] for name, found in drawn.items()}


def _mistakes(story: Story) -> list[dict[str, Any]]:
    if story.predictions is None:
        return []
    found = []
    for mistake in story.predictions.worst:
        start, rest = clip(visible(mistake.text), _CLIP)
        found.append(
            {"mistake": mistake, "start": start, "rest": rest, "confidence": numbers.percent(mistake.confidence)}
        )
    return found
