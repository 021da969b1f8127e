"""The base of every recipe section: frozen, strict, and refusing keys it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe that parses straight into the object that does the work.

    Each field has a description: it is the key's documentation in ``ftkit schema``, in editors and in docs/recipe.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
