"""What the report shows of a language model alone: texts side by side, the hardest, and how they were cleaned."""

from __future__ import annotations

from typing import Any

from ftkit.report import facts, numbers, untrusted
from ftkit.report.story import Story
from ftkit.report.texts import Hard, Sample

SHOWN_TEXT = 320
SHOWN_PROMPT = 240


def sections(story: Story) -> dict[str, Any]:
    """The values of those sections by name; empty for another task."""
    texts = story.texts
    return {
        "samples": [_sample(sample) for sample in texts.samples] if texts else [],
        "hardest": [_hard(document) for document in texts.worst] if texts else [],
        "improved": improved(story),
        "cleaning": facts.cleaning(story),
    }


def improved(story: Story) -> str:
    """How many windows the model predicts better than the base; empty where there is no base."""
    texts = story.texts
    if texts is None or texts.improved is None:
        return ""
    share = numbers.percent(texts.improved, texts.windows)
    against = "the base" if story.eval is None or "baseline" in story.eval.models else "token frequencies"
    return (
        f"Window by window: the model predicts {numbers.count(texts.improved)} of "
        f"{numbers.rows(texts.windows, 'window')} ({share}) better than {against}."
    )


def _sample(sample: Sample) -> dict[str, Any]:
    """The end of the prompt, which is what the model goes on from, and what each said."""
    said = (
        ("The base wrote", sample.baseline),
        ("The trained model wrote", sample.prediction),
        ("The text says", sample.reference),
    )
    return {
        "id": sample.id,
        "cut": len(sample.prompt) > SHOWN_PROMPT,
        "prompt": sample.prompt[-SHOWN_PROMPT:],
        "said": [(who, *untrusted.clip(text, SHOWN_TEXT)) for who, text in said if text is not None],
    }


def _hard(document: Hard) -> dict[str, Any]:
    start, rest = untrusted.clip(document.text, SHOWN_TEXT)
    return {
        "id": document.id,
        "cut": document.cut,
        "start": start,
        "rest": rest,
        "perplexity": numbers.score(document.perplexity),
        "baseline": None if document.baseline is None else numbers.score(document.baseline),
    }
