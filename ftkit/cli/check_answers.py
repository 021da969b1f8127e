"""What ``ftkit check`` prints of rows that are learned as answers: the first of them, and the facts of all.

``data`` is that part of plan.json: of conversations, or of texts whose labels are words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.cli.bars import histogram
from ftkit.data.lengths import summary
from ftkit.plan.chat import ChatPlan
from ftkit.records import Example
from ftkit.report import untrusted
from ftkit.tasks.answers import AnswerWindows

if TYPE_CHECKING:
    from rich.text import Text

_OPEN, _CLOSE = "▸", "◂"  # around what is learned, as there may be no colour


def learned(rows: Sequence[Example], data: Mapping[str, Any]) -> Text:
    """The first train rows as the model sees them, with the tokens that carry loss coloured and between marks."""
    from rich.text import Text

    shown = Text(f"The first rows as tokens give them; {_OPEN}what is learned{_CLOSE}\n")
    for row, sample in zip(rows, data["mask"]["samples"], strict=False):
        shown.append(f"\n{row.where}\n", style="bold")
        for piece, trained in sample:
            text = untrusted.visible(piece)
            shown.append(f"{_OPEN}{text}{_CLOSE}" if trained else text, style="green" if trained else "dim")
        shown.append("\n")
    return shown


def of_words(data: Mapping[str, Any]) -> Iterator[str]:
    """The answer for each label, template, and trained tokens."""
    yield "  answers:  " + ", ".join(f"{said!r} for {label}" for label, said in data["words"].items())
    yield from _template(data)


def of_conversations(plan: ChatPlan, data: Mapping[str, Any]) -> Iterator[str]:
    """Rows, template, trained tokens, lengths, and what packing does."""
    for name, side in plan.sides.items():
        left_out = f", {len(side.dropped):,} too long" if side.dropped else ""
        yield f"  {name:6} {len(side):>8,} rows   {sum(side.answers.lengths):>11,} tokens{left_out}"
    yield from _template(data)
    train = plan.sides["train"].answers
    lengths = summary(train.lengths)
    yield f"  tokens of the train rows (longest {lengths.longest:,}, mean {lengths.mean:g})"
    yield from histogram(lengths)
    yield f"  rows longer than {plan.max_length:,} tokens: task.too_long {plan.task.too_long}; answers are never cut"
    windows = AnswerWindows(train, packed=True, max_length=plan.max_length)
    full = sum(train.lengths) / (len(windows) * plan.max_length)
    does = "puts" if plan.task.packing else "would put"
    yield f"  packing {does} {len(train):,} rows into {len(windows):,} windows, {100 * full:.0f}% full"


def _template(data: Mapping[str, Any]) -> Iterator[str]:
    mask = data["mask"]
    yield f"  template: {mask['source']} (sha256 {mask['sha256'][:12]})"
    tokens = {name: " ".join(f"{each['token']} ({each['id']})" for each in own) for name, own in mask["tokens"].items()}
    yield "  tokens:   " + ", ".join(f"{name} {shown}" for name, shown in tokens.items())
    by_row = f"a row has {mask['min']:,} to {mask['max']:,}, median {mask['median']:g}"
    yield f"  learned:  {mask['trained_tokens']:,} tokens ({100 * mask['share']:.3g}%); {by_row}"
    yield f"  answers that end with a stop token: {mask['stopped']:,} of {mask['rows']:,}"
