"""The run's README.md: what it is, how good it is, how to use it, how to repeat it.

The front matter is what model hubs read. It names no licence: which one the result may have is for its owner to say.
"""

from __future__ import annotations

import re
from typing import Any

from ftkit.report import facts, language, numbers, tables, untrusted, wording
from ftkit.report.story import Story

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
_PIPELINES = {"classify": "text-classification", "causal": "text-generation", "masked": "fill-mask"}


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
        undecided=wording.undecided_line(report.gate, report.unit) if report else "",
        no_gate=wording.NO_GATE,
        notes=wording.metric_notes(story),
        improved=language.improved(story),
        cleaning=facts.cleaning(story),
        seeds=tables.seed_spread(report) if report else ((), []),
        proof=wording.proof_line(story.merge) if story.merge else "",
        uses=_uses(story),
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
    if _HUB_ID.fullmatch(base) and not story.from_scratch and not _shipped(story):
        fields |= {"base_model": base.partition("@")[0], "base_model_relation": "adapter"}
    if story.eval is not None:
        fields["metrics"] = list(story.eval.models[tables.main_model(story.eval)].metrics)
    kind = _kind(story)
    if kind in _PIPELINES:
        fields["pipeline_tag"] = _PIPELINES[kind]
    return yaml.safe_dump(fields, sort_keys=True, allow_unicode=False)


def _kind(story: Story) -> str:
    """What the model does: a task, or a language model's objective."""
    return story.objective if story.task == "pretrain" else story.task


def _multi_label(story: Story) -> bool:
    return story.eval.multi_label if story.eval else bool(story.planned("recipe", "task", "multi_label"))


def _uses(story: Story) -> list[tuple[str, _Markdown]]:
    """What there is to load, and the code that does it without ftkit."""
    adapter, folder = {
        "causal": (_causal_adapter, _causal_folder),
        "masked": (_masked_adapter, _masked_folder),
    }.get(_kind(story), (_classifier_adapter, _classifier_folder))
    found = []
    if story.has_adapter:
        found.append(("the adapter on its base", adapter(story)))
        if story.has_merged:
            found.append(("the merged model", folder(story, "merged")))
    elif story.has_model:
        found.append(("the model", folder(story, "model")))
    return [(what, _code(code)) for what, code in found]


def _shipped(story: Story) -> bool:
    """Whether the base is the one that ftkit carries in its package."""
    return str(story.planned("base", "source") or "").startswith("ftkit ")


def _imports(story: Story) -> str:
    return "from importlib.resources import files\n\n" if _shipped(story) else ""


def _base_arguments(story: Story) -> str:
    """The base that was trained on, at its commit, as arguments of ``from_pretrained``."""
    if _shipped(story):
        return 'str(files("ftkit") / "tiny_lm")'
    name, _, revision = str(story.planned("base", "ref") or "the base model").partition("@")
    folder = story.planned("base", "folder")
    if folder:
        name, revision = str(folder), ""
    pinned = str(story.planned("base", "revision") or revision)
    at = f", revision={_quoted(untrusted.visible(pinned))}" if pinned else ""
    return _quoted(untrusted.visible(name)) + at


def _classifier_adapter(story: Story) -> str:
    """Plain peft: nothing of ftkit is needed."""
    length = story.planned("data", "lengths", "max_length")
    cut = f", max_length={int(length)}" if length else ""
    scores = "logits.sigmoid()" if _multi_label(story) else "logits.softmax(-1)"
    base = _base_arguments(story)
    return f"""\
{_imports(story)}import json
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

labels = json.load(open("adapter/labels.json", encoding="utf-8"))["labels"]
names = dict(enumerate(labels))
base = AutoModelForSequenceClassification.from_pretrained({base}, num_labels=len(labels), id2label=names)
model = PeftModel.from_pretrained(base, "adapter").eval()
tokenizer = AutoTokenizer.from_pretrained("adapter")

with torch.no_grad():
    logits = model(**tokenizer("your text", return_tensors="pt", truncation=True{cut})).logits
print(dict(zip(labels, {scores}[0].tolist())))
"""


def _classifier_folder(story: Story, folder: str) -> str:
    """Plain transformers."""
    length = story.planned("data", "lengths", "max_length")
    cut = f", truncation=True, max_length={int(length)}" if length else ", truncation=True"
    many = ', function_to_apply="sigmoid"' if _multi_label(story) else ""
    return f"""\
from transformers import pipeline

classifier = pipeline("text-classification", model="{folder}", tokenizer="{folder}")
print(classifier("your text", top_k=None{many}{cut}))
"""


_WRITE = """
start = tokenizer("The start of a text", return_tensors="pt")
written = model.generate(input_ids=start.input_ids, attention_mask=start.attention_mask, max_new_tokens=50)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""


def _causal_adapter(story: Story) -> str:
    return f"""\
{_imports(story)}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({_base_arguments(story)})
model = PeftModel.from_pretrained(base, "adapter").eval()
tokenizer = AutoTokenizer.from_pretrained("adapter")
{_WRITE}"""


def _causal_folder(_story: Story, folder: str) -> str:
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")
{_WRITE}"""


def _masked_adapter(story: Story) -> str:
    return f"""\
import torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM, AutoTokenizer

base = AutoModelForMaskedLM.from_pretrained({_base_arguments(story)})
model = PeftModel.from_pretrained(base, "adapter").eval()
tokenizer = AutoTokenizer.from_pretrained("adapter")

text = tokenizer(f"A text with a hidden {{tokenizer.mask_token}} in it.", return_tensors="pt")
with torch.no_grad():
    logits = model(**text).logits[text.input_ids == tokenizer.mask_token_id]
for chance, token in zip(*logits.softmax(-1)[0].topk(5)):
    print(f"{{chance:.3f}} {{tokenizer.decode(token)}}")
"""


def _masked_folder(_story: Story, folder: str) -> str:
    return f"""\
from transformers import pipeline

fill = pipeline("fill-mask", model="{folder}", tokenizer="{folder}")
print(fill(f"A text with a hidden {{fill.tokenizer.mask_token}} in it."))
"""


def _quoted(text: str) -> str:
    """A Python string in double quotes, ASCII only: JSON's escapes are Python's too."""
    import json

    return json.dumps(text)
