"""Names of models: a folder on disk, or ``organisation/name[@revision]`` as on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A base model as a recipe names it. ``revision`` is a branch, a tag or a commit; None means the newest."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Splits ``name@revision``. A path (it holds a separator that a hub id cannot have) is never split.

        Raises ValueError where the text is neither a path nor of the form organisation/name[@revision].
        """
        if not text.strip():
            raise ValueError("is empty. Give a hub id (organisation/name) or a folder.")
        if text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1:
            return cls(text)
        name, at, revision = text.partition("@")
        if not _HUB_ID.match(name) or (at and not revision):
            raise ValueError(
                f"got {text!r}. Write a hub id (organisation/name or organisation/name@revision) or a folder."
            )
        return cls(name, revision or None)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name
