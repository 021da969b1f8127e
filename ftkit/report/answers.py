"""What the report shows of a decoder that answers: answers side by side, row by row, and what was learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.report import facts, numbers, untrusted
from ftkit.report.replies import Against, Reply
from ftkit.report.story import Story

SHOWN_TEXT = 320
SHOWN_ROWS = 5
# Of a training row: the ends of a long text that is not learned, and the start of one that is.
SHOWN_END = 160
SHOWN_LEARNED = 800
SHOWN_PIECES = 40
_NOT_ENDED = "did not end by itself"


def sections(story: Story) -> dict[str, Any]:
    """The values of those sections by name; empty for another task."""
    replies = story.replies
    return {
        "against_base": against_base(story),
        "replies": replies,
        "reply_groups": _groups(story),
        "template": facts.template(story),
        "learned": facts.learned(story),
        "learned_rows": learned_rows(story),
    }


def against_base(story: Story) -> list[str]:
    """How many rows the model does better and worse than the base, in sentences."""
    return [_against(found) for found in story.replies.against] if story.replies else []


def learned_rows(story: Story) -> list[list[tuple[str, bool]]]:
    """The first training rows as pieces of text, with whether the loss is on them. Long pieces are shortened."""
    rows = story.planned("data", "mask", "samples") or []
    return [_shortened(row) for row in rows[:SHOWN_ROWS]]


def _against(found: Against) -> str:
    of = f"of {numbers.rows(found.rows)}"
    if found.metric == "perplexity":
        share = numbers.percent(found.better, found.rows)
        return (
            f"Row by row: the reference is likelier to this model than to the base in {numbers.count(found.better)} "
            f"{of} ({share})."
        )
    return (
        f"Row by row, by {numbers.metric_inside(found.metric)}: this model does better than the base on "
        f"{numbers.count(found.better)} {of}, worse on {numbers.count(found.worse)} and as well on "
        f"{numbers.count(found.equal)}."
    )


def _groups(story: Story) -> list[dict[str, Any]]:
    """Titled lists of rows, those without rows left out."""
    replies = story.replies
    if replies is None:
        return []
    by = numbers.metric_inside(replies.by)
    found = (
        (
            "Furthest ahead of the base",
            f"The rows that gained most by {by}: read whether the answers are better as well.",
            replies.gains,
        ),
        ("Worst rows", f"The rows with the worst {by}: look for wrong references in the data first.", replies.worst),
        ("Drawn at random", "What to expect of a row; the same ones every time.", replies.samples),
    )
    return [
        {"title": title, "why": why, "rows": [_reply(reply, replies.by) for reply in rows]}
        for title, why, rows in found
        if rows
    ]


def _reply(reply: Reply, by: str) -> dict[str, Any]:
    said = (
        ("Base", reply.baseline, reply.baseline_ended),
        ("Trained model", reply.prediction, reply.ended),
    )
    names = sorted(dict.fromkeys((*reply.scores, *reply.baseline_scores)), key=lambda name: name != by)
    return {
        "id": reply.id,
        "prompt": untrusted.clip(reply.prompt, SHOWN_TEXT),
        "references": [untrusted.clip(reference, SHOWN_TEXT) for reference in reply.references],
        "said": [
            (who, *untrusted.clip(text, SHOWN_TEXT), _NOT_ENDED if ended is False else "")
            for who, text, ended in said
            if text is not None
        ],
        "scores": [
            (
                numbers.metric_name(name),
                numbers.score(reply.scores.get(name)),
                numbers.score(reply.baseline_scores[name]) if name in reply.baseline_scores else "",
            )
            for name in names
        ],
    }


def _shortened(row: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
    out = []
    for text, trained in row[:SHOWN_PIECES]:
        if trained and len(text) > SHOWN_LEARNED:
            text = f"{text[:SHOWN_LEARNED]} […]"
        elif not trained and len(text) > 3 * SHOWN_END:
            text = f"{text[:SHOWN_END]} […] {text[-SHOWN_END:]}"
        out.append((str(text), bool(trained)))
    return out if len(row) <= SHOWN_PIECES else [*out, (" […]", False)]
