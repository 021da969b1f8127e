"""A first recipe for data: which columns it takes, and the recipe's text. Labelled rows, conversations, or texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ftkit.data.columns import KNOWN, Role
from ftkit.data.forms import KNOWN_ROLES, find_form
from ftkit.data.nested import items
from ftkit.data.rows import RawRow, data_error
from ftkit.data.section import Columns
from ftkit.data.source import read_rows
from ftkit.errors import DataError, Problem

BASE = "sentence-transformers/all-MiniLM-L6-v2"
TEXT_BASE = "ftkit/tiny-lm"
_LOOKED_AT = 2_000  # rows
_MOST_LABELS = 12  # that are spelled out in a recipe


@dataclass(frozen=True, slots=True)
class Look:
    """What the first rows of a source show: its columns, and the likeliest column for each role.

    ``answers``: the data.columns with which the rows are prompts with answers or conversations; None: they are not.
    """

    source: str
    columns: tuple[str, ...]
    rows: tuple[RawRow, ...]
    text: str
    label: str | None
    answers: Columns | None

    def labels(self, column: str) -> list[str]:
        """The different values of a column, sorted as text."""
        values = {row.values.get(column) for row in self.rows}
        return sorted(str(value) for value in values if value is not None and str(value).strip())


def look(source: str) -> Look:
    """Reads the first rows of a source; ``label`` is None where there is text alone. Raises DataError for neither.

    Rows with a label by the name of its column are no conversations, but for one beside no text (Dolly's category).
    """
    rows = tuple(islice(read_rows(source, Path.cwd()), _LOOKED_AT))
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    known = _known("label", columns)
    labelled = known is not None and (known.lower() in ("label", "labels") or _known("text", columns) is not None)
    answers = None if labelled else _answers(rows, columns, source)
    if answers is None and (not columns or (len(columns) == 1 and _known("text", columns) is None)):
        only = f"the only column is {columns[0]}" if columns else "there is no column"
        message = f"{only}. A text and a label are needed, or a column named text alone."
        raise data_error(source, [Problem("", "", message)])
    if len(columns) == 1:
        return Look(source, columns, rows, columns[0], None, answers)
    text = _known("text", columns) or max(columns, key=lambda name: _length(rows, name))
    others = [name for name in columns if name != text]
    label = _known("label", others) or min(others, key=lambda name: _variety(rows, name))
    return Look(source, columns, rows, text, label, answers)


def recipe_text(found: Look, *, name: str, base: str, text: str, label: str) -> str:
    """A recipe that ``ftkit check`` takes, with what one changes first spelled out."""
    labels = found.labels(label)
    listed = f", labels: [{', '.join(map(_scalar, labels))}]" if 2 <= len(labels) <= _MOST_LABELS else ""
    return (
        f"# A classifier of {found.source}. Check it: ftkit check {name}.yaml. Make it: ftkit run {name}.yaml\n"
        f"name: {_scalar(name)}\n"
        f"base: {_scalar(base)}\n"
        f"task: {{type: classify{listed}}}\n"
        "data:\n"
        f"  train: {_scalar(found.source)}\n"
        "  valid: 10%        # to choose the checkpoint on\n"
        "  test: 20%         # to measure on; better: a file of its own\n"
        f"  columns: {{text: {_scalar(text)}, label: {_scalar(label)}}}\n"
        "adapter: lora       # ftkit adapters lists the presets\n"
        "train: {epochs: 3}\n"
        "gate: {f1: {beat: baseline}}   # merged only if it is shown to beat a linear probe on the base\n"
    )


def text_recipe(found: Look, *, name: str, base: str) -> str:
    """A recipe for texts without labels that ``ftkit check`` takes."""
    return (
        f"# A language model on {found.source}. Check it: ftkit check {name}.yaml. Make it: ftkit run {name}.yaml\n"
        f"name: {_scalar(name)}\n"
        f"base: {_scalar(base)}\n"
        "task: {type: pretrain}\n"
        "data:\n"
        f"  train: {_scalar(found.source)}\n"
        "  valid: 10%        # to choose the checkpoint on\n"
        "  test: 20%         # to measure on; better: texts of their own\n"
        "adapter: lora       # ftkit adapters lists the presets\n"
        "train: {epochs: 3, batch_size: 8}\n"
        "gate: {perplexity: {beat: baseline}}   # merged only if it predicts unseen text better than its base\n"
    )


def chat_recipe(found: Look, columns: Columns, *, name: str, base: str) -> str:
    """A recipe for prompts with answers, or conversations, that ``ftkit check`` takes."""
    named = [f"{role}: {_scalar(column)}" for role, column in columns.model_dump(exclude_none=True).items()]
    listed = f"  columns: {{{', '.join(named)}}}\n" if named else ""
    return (
        f"# Answers as in {found.source}. Check it: ftkit check {name}.yaml. Make it: ftkit run {name}.yaml\n"
        f"name: {_scalar(name)}\n"
        f"base: {_scalar(base)}\n"
        "task: {type: sft}\n"
        "data:\n"
        f"  train: {_scalar(found.source)}\n"
        "  valid: 10%        # to choose the checkpoint on\n"
        "  test: 20%         # to measure on; better: a file of its own\n"
        f"{listed}"
        "adapter: lora       # ftkit adapters lists the presets\n"
        "train: {epochs: 3, batch_size: 8}\n"
        "gate: {perplexity: {beat: baseline}}   # merged only if it finds unseen answers likelier than its base does\n"
    )


def recipe_name(source: str) -> str:
    """A name that a recipe may have, from that of a source."""
    stem = Path(source.rstrip("/")).name.split(".")[0].lower()
    kept = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_") else "-" for sign in stem).strip("-_")
    return kept[:64] or "mine"


def _answers(rows: Sequence[RawRow], columns: Sequence[str], source: str) -> Columns | None:
    """The data.columns with which the rows are conversations: none, or the first of several answers."""
    parts = islice(items(rows, columns), _LOOKED_AT)
    available = list(dict.fromkeys(name for part in parts for name in part.values))
    several = [name for name in available if name.lower() in KNOWN_ROLES["completion"]]
    for tried in (Columns(), *(Columns(completion=name) for name in several[:1])):
        try:
            find_form(available, tried, None, shown=source)
        except DataError:
            continue
        return tried
    return None


def _known(role: Role, columns: Sequence[str]) -> str | None:
    return next((name for known in KNOWN[role] for name in columns if name.lower() == known), None)


def _length(rows: Sequence[RawRow], column: str) -> int:
    return sum(len(value) for row in rows if isinstance(value := row.values.get(column), str))


def _variety(rows: Sequence[RawRow], column: str) -> tuple[bool, int]:
    """Columns of one value come last: they are no label."""
    values = len({str(row.values.get(column)) for row in rows})
    return values < 2, values


def _scalar(text: str) -> str:
    """Text as one YAML scalar inside a flow list: quoted where it could be read as anything else."""
    import yaml

    return str(yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6)).strip()[1:-1]
