"""The ``data`` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


def _share_or_source(value: Any) -> Any:
    return _share(value) if isinstance(value, str) and value.endswith("%") else value


Share = Annotated[
    str,
    AfterValidator(_share),
    Field(json_schema_extra={"pattern": r"^[0-9.]+%$", "patternErrorMessage": "a percentage such as 10%"}),
]


class Docstrings(Section):
    """A source: the documentation of installed Python packages, read from their files without importing them."""

    docstrings: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Names of packages; stdlib: the whole standard library with its help topics.",
        examples=["[json, pathlib]"],
    )
    form: Literal["text", "questions", "summaries"] = Field(
        "text",
        description="text: a document for each documented object; questions: what does X do, and its answer; "
        "summaries: the documentation of an object, and its first sentence.",
    )

    def __str__(self) -> str:
        return f"docstrings of {', '.join(self.docstrings)}"


Source = str | Docstrings
Sources = Source | Annotated[tuple[Source, ...], Field(min_length=1)]
ShareOrSources = Annotated[Sources, AfterValidator(_share_or_source)]


class Clean(Section):
    """What is done to the texts of a corpus before they are used; each step is counted in the report."""

    unicode: Literal["NFC", "NFKC"] | None = Field(None, description="Unicode normal form to bring texts into.")
    html: bool = Field(default=False, description="Remove HTML: tags, scripts and comments out, entities decoded.")
    control: bool = Field(default=True, description="Remove control characters but tabs and line ends.")
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Keep documents in these languages (ISO 639-1 codes such as en)."
    )
    min_chars: int | None = Field(None, ge=1, description="Drop documents with fewer characters.")
    max_chars: int | None = Field(None, ge=1, description="Drop documents with more characters.")
    max_repetition: float | None = Field(
        None, gt=0, le=1, description="Drop documents with a larger share of characters in repeated lines."
    )
    duplicates: Literal["keep", "exact", "near"] = Field(
        "exact", description="Drop documents that stand earlier in train: word for word, or nearly."
    )
    test_overlap: Literal["keep", "exact", "near"] = Field(
        "exact", description="Drop train documents that also stand in valid or test: word for word, or nearly."
    )


class Columns(Section):
    """Which columns hold what. Left out, they are found by name and the choice is printed."""

    text: str | None = Field(default=None, description="The column with the text.")
    label: str | None = Field(default=None, description="The column with the label or labels.")
    prompt: str | None = Field(default=None, description="The column with what the user says.")
    completion: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="The column with the answer, or several: those that a source has hold equally good answers, and "
        "the first is trained.",
    )
    messages: str | None = Field(default=None, description="The column with whole conversations.")
    tools: str | None = Field(default=None, description="The column with the tools that the model may call.")


class Data(Section):
    """Where the rows come from and how they are split."""

    train: Sources = Field(
        description="File(s), folder, hub id or {docstrings: […]} of the training rows, relative to the recipe.",
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
    split: Literal["document", "line", "paragraph"] = Field(
        "document", description="What one document of a text file is: the file, a line, or a paragraph."
    )
    clean: Clean = Field(Clean(), description="How the texts of a corpus are cleaned.")
    max_rows: int | None = Field(None, ge=1, description="Read so many rows of each train source at most.")
    max_tokens: int | None = Field(
        None, ge=1, description="Read train until it has so many tokens, counted before cleaning."
    )
    weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)] | None = Field(
        None, description="Share of each train source in the tokens of an epoch; sources are repeated to reach it."
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
