"""The ``data`` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ftkit.section import Section


def parse_share(text: str) -> float | None:
    """The share that a text such as 10% gives; None where the text is not a percentage."""
    if not text.endswith("%"):
        return None
    try:
        return float(text[:-1]) / 100
    except ValueError:
        return None


def _share(text: str) -> str:
    value = parse_share(text)
    if value is None or not 0 <= value < 1:
        raise ValueError(f"got {text!r}. Write a percentage such as 10%.")
    return text


def _share_or_source(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return _share(value) if isinstance(value, str) and value.endswith("%") else value


Share = Annotated[str, AfterValidator(_share)]
Sources = str | Annotated[tuple[str, ...], Field(min_length=1)]
ShareOrSources = Annotated[Sources, AfterValidator(_share_or_source)]


class Columns(Section):
    """Which columns hold what. Left out, they are found by name and the choice is printed."""

    text: str | None = Field(default=None, description="The column with the text.")
    label: str | None = Field(default=None, description="The column with the label or labels.")


class Data(Section):
    """Where the rows come from and how they are split."""

    train: Sources = Field(
        description="File(s), folder or hub id of the training rows, relative to the recipe.",
        examples=["data/train.csv"],
    )
    valid: ShareOrSources = Field(
        "10%", description="Rows to choose the checkpoint on: sources, or a share of train (10%)."
    )
    test: ShareOrSources = Field(
        "20%", description="Rows to measure on: sources, or a share of train (20%). Read once."
    )
    columns: Columns = Field(Columns(), description="Column names, where they are not found by themselves.")
    group: str | None = Field(None, description="A column whose equal values stay on one side of a split.")
    quoting: Literal["minimal", "none"] | None = Field(
        None, description="Quotes in CSV and TSV: minimal ('\"' quotes a field) or none. CSV: minimal, TSV: none."
    )
    label_separator: str = Field(
        "|", min_length=1, description="Separates the labels of a multi-label row in a text cell."
    )
    licence: str | None = Field(None, description="Licence of the rows, to stand in the card.")
    max_leakage: Share = Field(
        "1%", description="Largest share of test or valid rows that may stand in train word for word."
    )
    max_near_leakage: Share | None = Field(
        None, description="Largest share of test rows that may nearly stand in train. Left out: reported only."
    )

    @model_validator(mode="after")
    def _leaves_train_rows(self) -> Data:
        shares = [parse_share(value) or 0.0 for value in (self.valid, self.test) if isinstance(value, str)]
        if sum(shares) >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} leave no row to train on. Write smaller shares.")
        if isinstance(self.test, str) and parse_share(self.test) == 0:
            raise ValueError(f"test is {self.test}, so nothing can be measured. Write a share such as 20%, or a file.")
        return self
