"""The run's README.md: what it is, how good it is, how to use it, how to repeat it.

The front matter is what model hubs read. It names no licence: which one the result may have is for its owner to say.
"""

from __future__ import annotations

import re
from typing import Any

from ftkit.report import answers, facts, language, numbers, tables, untrusted, usage, wording
from ftkit.report.story import Story

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
_PIPELINES = {
    "classify": "text-classification",
    "words": "text-generation",
    "causal": "text-generation",
    "masked": "fill-mask",
    "sft": "text-generation",
}


class _Markdown(str):
    """Text that is Markdown already; all other text is escaped when it is printed."""

    __slots__ = ()


def render(story: Story) -> str:
    """The card as Markdown. The same folder gives the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ftkit.report"), undefined=StrictUndefined, finalize=_escaped, trim_blocks=True
    )
    environment.filters |= {"metric": numbers.metric_name, "score": numbers.score, "count": numbers.count}
    environment.filters |= {"plain": numbers.plain}
    report = story.eval
    page = environment.get_template("card.md.j2").render(
        story=story,
        front_matter=_Markdown(_front_matter(story)),
        headline=wording.headline(story),
        base=facts.base(story),
        data=facts.data(story),
        training=facts.training(story),
        origin=facts.origin(story),
        limits=facts.limits(story),
        labels=story.planned("data", "labels") or [],
        files=story.planned("data", "files") or [],
        results=tables.results(report) if report else None,
        compared=[wording.compared_line(item, tables.kind_of(report)) for item in tables.compared(report)]
        if report
        else [],
        reasons=[(reason.passed, wording.reason_line(reason)) for reason in report.gate.reasons] if report else [],
        undecided=wording.undecided_line(report.gate, report.unit) if report else "",
        no_gate=wording.NO_GATE,
        notes=wording.metric_notes(story),
        improved=language.improved(story),
        against_base=answers.against_base(story),
        template=facts.template(story),
        learned=facts.learned(story),
        cleaning=facts.cleaning(story),
        seeds=tables.seed_spread(report) if report else ((), []),
        proof=wording.proof_line(story.merge, story.kind) if story.merge else "",
        uses=[(what, _code(code)) for what, code in usage.uses(story)],
    )
    tidy = re.sub(r"\n{3,}", "\n\n", page).strip()
    # The recipe comes last and after the tidying: its own blank lines stay.
    return f"{tidy}\n" if story.recipe is None else f"{tidy}\n\n{untrusted.fenced(story.recipe, 'yaml')}\n"


def _escaped(value: Any) -> str:
    return value if isinstance(value, _Markdown) else untrusted.markdown(str(value))


def _code(text: str) -> _Markdown:
    return _Markdown(untrusted.fenced(text, "python"))


def _front_matter(story: Story) -> str:
    import yaml

    fields: dict[str, Any] = {"library_name": "peft", "tags": ["ftkit", "peft"]}
    if story.from_scratch:
        fields = {"library_name": "transformers", "tags": ["ftkit"]}
    base = str(story.planned("base", "ref") or "")
    if _HUB_ID.fullmatch(base) and not story.from_scratch and not usage.is_shipped(story):
        fields |= {"base_model": base.partition("@")[0], "base_model_relation": "adapter"}
    if story.eval is not None:
        fields["metrics"] = list(story.eval.models[tables.main_model(story.eval)].metrics)
    if story.kind in _PIPELINES:
        fields["pipeline_tag"] = _PIPELINES[story.kind]
    return yaml.safe_dump(fields, sort_keys=True, allow_unicode=False)
