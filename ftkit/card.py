"""The run's README.md: what it is, how good it is, how to use it, how to repeat it.

The front matter is what model hubs read. It names no licence: which one the result may have is for its owner to say.
"""

from __future__ import annotations

import re
from typing import Any

from ftkit.report import facts, markdown, tables, untrusted, usage, wording
from ftkit.report.story import Story

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


def render(story: Story) -> str:
    """The card as Markdown. The same folder gives the same bytes."""
    shared = markdown.results(story)
    if shared["proof"]:
        shared["proof"] += " The figures are in merge.json."
    page = markdown.page(
        "card.md.j2",
        **shared,
        story=story,
        front_matter=markdown.Markdown(_front_matter(story)),
        headline=wording.headline(story),
        base=facts.base(story),
        data=facts.data(story),
        training=facts.training(story),
        origin=facts.origin(story),
        limits=facts.limits(story),
        labels=story.planned("data", "labels") or [],
        files=story.planned("data", "files") or [],
        template=facts.template(story),
        learned=facts.learned(story),
        cleaning=facts.cleaning(story),
        uses=[(what, markdown.code(code)) for what, code in usage.uses(story)],
    )
    # The recipe comes last and after the tidying: its own blank lines stay.
    return page if story.recipe is None else f"{page}\n{untrusted.fenced(story.recipe, 'yaml')}\n"


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
    if story.kind in usage.PIPELINES:
        fields["pipeline_tag"] = usage.PIPELINES[story.kind]
    return yaml.safe_dump(fields, sort_keys=True, allow_unicode=False)
