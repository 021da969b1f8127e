"""Pages of Markdown from templates, and what the cards of a run have in common."""

from __future__ import annotations

import re
from typing import Any

from ftkit.report import answers, language, numbers, rungs, tables, untrusted, wording
from ftkit.report.story import Story


class Markdown(str):
    """Text that is Markdown already; all other text is escaped when it is printed."""

    __slots__ = ()


def page(file: str, /, **values: Any) -> str:
    """A file of ``templates/`` filled in: no empty line twice, one line end at the end."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ftkit.report"), undefined=StrictUndefined, finalize=_escaped, trim_blocks=True
    )
    environment.filters |= {"metric": numbers.metric_name, "score": numbers.score, "count": numbers.count}
    environment.filters |= {"plain": numbers.plain}
    text = environment.get_template(file).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def results(story: Story) -> dict[str, Any]:
    """The values of results.md.j2: scores, comparisons, the gate and the proof."""
    report = story.eval
    return {
        "results": tables.results(report) if report else None,
        "compared": [wording.compared_line(item, tables.kind_of(report)) for item in tables.compared(report)]
        if report
        else [],
        "reasons": [(reason.passed, wording.reason_line(reason)) for reason in report.gate.reasons] if report else [],
        "undecided": wording.undecided_line(report.gate, report.unit) if report else "",
        "no_gate": wording.NO_GATE,
        "notes": wording.metric_notes(story),
        "improved": language.improved(story),
        "against_base": answers.against_base(story),
        "seeds": tables.seed_spread(report) if report else ((), []),
        "rungs": rungs.rungs(report) if report else [],
        "rung_headings": rungs.headings(report) if report else (),
        "read_by": rungs.read_by(report) if report else "",
        "proof": wording.proof_line(story.merge, story.kind) if story.merge else "",
    }


def code(text: str) -> Markdown:
    return Markdown(untrusted.fenced(text, "python"))


def _escaped(value: Any) -> str:
    return value if isinstance(value, Markdown) else untrusted.markdown(str(value))
