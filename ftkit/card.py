"""The run's README.md: what it is, how good it is, how to use it, how to repeat it.

The front matter is what model hubs read. It names no licence: which one the result may have is for its owner to say.
"""

from __future__ import annotations

import re
from typing import Any

from ftkit.report import facts, numbers, tables, untrusted, wording
from ftkit.report.story import Story

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
_PIPELINES = {"classify": "text-classification"}


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
        compared=[wording.compared_line(item, report.task) for item in tables.compared(report)] if report else [],
        reasons=[(reason.passed, wording.reason_line(reason)) for reason in report.gate.reasons] if report else [],
        undecided=wording.undecided_line(report.gate) if report else "",
        no_gate=wording.NO_GATE,
        seeds=tables.seed_spread(report) if report else ((), []),
        proof=wording.proof_line(story.merge) if story.merge else "",
        use_adapter=_code(_use_adapter(story)),
        use_merged=_code(_use_merged(story)),
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
    base = str(story.planned("base", "ref") or "")
    if _HUB_ID.fullmatch(base):
        fields |= {"base_model": base.partition("@")[0], "base_model_relation": "adapter"}
    if story.eval is not None:
        fields["metrics"] = list(story.eval.models[tables.main_model(story.eval)].metrics)
    if _task(story) in _PIPELINES:
        fields["pipeline_tag"] = _PIPELINES[_task(story)]
    return yaml.safe_dump(fields, sort_keys=True, allow_unicode=False)


def _task(story: Story) -> str:
    return story.eval.task if story.eval else str(story.planned("recipe", "task", "type") or "")


def _multi_label(story: Story) -> bool:
    return story.eval.multi_label if story.eval else bool(story.planned("recipe", "task", "multi_label"))


def _use_adapter(story: Story) -> str:
    """Plain peft: nothing of ftkit is needed."""
    name, _, revision = str(story.planned("base", "ref") or "the base model").partition("@")
    folder = story.planned("base", "folder")
    if folder:
        name, revision = str(folder), ""
    base = untrusted.visible(name)
    pinned = str(story.planned("base", "revision") or revision)
    at = f", revision={_quoted(untrusted.visible(pinned))}" if pinned else ""
    length = story.planned("data", "lengths", "max_length")
    cut = f", max_length={int(length)}" if length else ""
    scores = "logits.sigmoid()" if _multi_label(story) else "logits.softmax(-1)"
    return f"""\
import json
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

labels = json.load(open("adapter/labels.json", encoding="utf-8"))["labels"]
names = dict(enumerate(labels))
base = AutoModelForSequenceClassification.from_pretrained({_quoted(base)}{at}, num_labels=len(labels), id2label=names)
model = PeftModel.from_pretrained(base, "adapter").eval()
tokenizer = AutoTokenizer.from_pretrained("adapter")

with torch.no_grad():
    logits = model(**tokenizer("your text", return_tensors="pt", truncation=True{cut})).logits
print(dict(zip(labels, {scores}[0].tolist())))
"""


def _use_merged(story: Story) -> str:
    """Plain transformers."""
    length = story.planned("data", "lengths", "max_length")
    cut = f", truncation=True, max_length={int(length)}" if length else ", truncation=True"
    many = ', function_to_apply="sigmoid"' if _multi_label(story) else ""
    return f"""\
from transformers import pipeline

classifier = pipeline("text-classification", model="merged", tokenizer="merged")
print(classifier("your text", top_k=None{many}{cut}))
"""


def _quoted(text: str) -> str:
    """A Python string in double quotes, ASCII only: JSON's escapes are Python's too."""
    import json

    return json.dumps(text)
