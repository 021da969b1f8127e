"""Prompts with columns in braces: "Summarise: {dialogue}"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PART = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<column>[^{}]+)\}|(?P<empty>\{\})|(?P<stray>[{}])")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt: literal text and, between its pieces, the columns. One text more than there are columns."""

    texts: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, prompt: str) -> Template:
        """The prompt with "{COLUMN}" for what a column holds, and "{{" and "}}" for braces.

        Raises ValueError, whose text ends with the fix, for a brace without its partner, and for braces with nothing
        between them.
        """
        texts, columns, end = [""], [], 0
        for found in _PART.finditer(prompt):
            texts[-1] += prompt[end : found.start()]
            end = found.end()
            if found["empty"]:
                raise ValueError(f"characters {end - 1} and {end} name no column. Write one between the braces.")
            if found["stray"]:
                brace, other = found["stray"], "}" if found["stray"] == "{" else "{"
                message = f"character {end} is a {brace} without its {other}. Add it, or write {brace * 2} for a brace."
                raise ValueError(message)
            if found["brace"]:
                texts[-1] += found["brace"][0]
            else:
                columns.append(found["column"])
                texts.append("")
        texts[-1] += prompt[end:]
        return cls(tuple(texts), tuple(columns))

    def fill(self, values: Mapping[str, str]) -> str:
        """The prompt of one row."""
        filled = (f"{values[column]}{text}" for column, text in zip(self.columns, self.texts[1:], strict=True))
        return self.texts[0] + "".join(filled)
