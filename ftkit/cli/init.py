"""``ftkit init``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ftkit.console import Console
from ftkit.errors import Problem, RecipeError, did_you_mean
from ftkit.files import write_text
from ftkit.starter import BASE, TEXT_BASE, Look, chat_recipe, look, recipe_name, recipe_text, text_recipe


def write_recipe(data: str, text: str | None, label: str | None, base: str | None) -> None:
    """Writes NAME.yaml for a data file, asking on a terminal for what no option gives; never over another file.

    Raises RecipeError for a column that is not there and a file that is, DataError for data that cannot be read.
    """
    console = Console()
    found = look(data)
    name = recipe_name(data)
    path = Path(f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} exists", [Problem("", "DATA", "Rename it, or edit it by hand.")])
    if found.answers is not None and text is None and label is None:
        base = base or _asked(console, "Which base model?", TEXT_BASE)
        write_text(path, chat_recipe(found, found.answers, name=name, base=base))
        console.note(f"prompts with answers: instruction tuning, base {base}")
        console.result(f"{path} is written. Next: ftkit check {path}")
        return
    if found.label is None and label is None:
        if text is not None:
            _column(console, found, "text", text, found.text, "")
        base = base or _asked(console, "Which base model?", TEXT_BASE)
        write_text(path, text_recipe(found, name=name, base=base))
        console.note(f"texts without labels: a language model, base {base}")
        console.result(f"{path} is written. Next: ftkit check {path}")
        return
    text = _column(console, found, "text", text, found.text, "Which column is the text?")
    label = _column(console, found, "label", label, found.label or "", "Which column is the label?")
    base = base or _asked(console, "Which base model?", BASE)
    write_text(path, recipe_text(found, name=name, base=base, text=text, label=label))
    labels = found.labels(label)
    console.note(f"text {text}, label {label} ({', '.join(labels[:8])}{', …' if len(labels) > 8 else ''}), base {base}")
    if len(labels) > len(found.rows) / 4:
        console.warn(f"{label} has {len(labels):,} values in {len(found.rows):,} rows: is it a label?")
    console.result(f"{path} is written. Next: ftkit check {path}")


def _column(console: Console, found: Look, option: str, given: str | None, likely: str, question: str) -> str:
    answer = given or _asked(console, f"{question} {', '.join(found.columns)}", likely)
    if answer not in found.columns:
        raise RecipeError(f"{found.source} has no column {answer}", [_unknown(option, answer, found.columns)])
    return answer


def _unknown(option: str, answer: str, columns: Sequence[str]) -> Problem:
    hint = did_you_mean(answer, columns)
    return Problem("", f"--{option}", " ".join(filter(None, (hint, f"Columns here: {', '.join(columns)}."))))


def _asked(console: Console, question: str, likely: str) -> str:
    """The answer on a terminal, an empty line for the likely one; the likely one where nobody can answer."""
    return console.ask(question, likely) if sys.stdin.isatty() else likely
