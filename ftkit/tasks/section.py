"""The ``task``, ``train`` and ``merge`` sections of a recipe. A new task joins the union ``Task``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ftkit.data.section import Share
from ftkit.evals.section import MetricName
from ftkit.section import Section

Template = Annotated[
    str,
    Field(
        min_length=1,
        description="How turns become text: model (the base's own chat template; chatml where it has none), chatml, or "
        "a Jinja file beside the recipe.",
        examples=["chatml"],
    ),
]


class Words(Section):
    """A decoder answers with a word for each label; there is no head."""

    prompt: str = Field("{text}", description="What the user says; {text} stands for the row's text.")
    say: dict[str, Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="The answer for each label. Left out: the label itself."
    )
    template: Template = "model"

    def said(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The answer for each label, in their order."""
        return tuple((self.say or {}).get(label, label).strip() for label in labels)


class Classify(Section):
    """Sequence classification: with a head on the base's pooled output, or by words that a decoder answers with."""

    type: Literal["classify"] = Field(description="The task.")
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="The label set, in the head's order. Left out: the labels of train, sorted as text."
    )
    multi_label: bool = Field(False, description="A row may have any number of labels, none included.")
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "none", description="Weights of the labels in the loss: balanced (n / (k * count)) or one for each label."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all labels.")
    words: Words | None = Field(
        None, description="The labels are words that a decoder answers with, trained as instructions are. No head."
    )


class Pretrain(Section):
    """Language modelling on plain text: a base goes on learning, or a model is trained from scratch."""

    type: Literal["pretrain"] = Field(description="The task.")
    objective: Literal["causal", "masked"] = Field(
        "causal", description="causal: predict the next token; masked: predict tokens that are hidden (BERT)."
    )
    packing: bool | None = Field(
        None,
        description="Put several documents into one window, without any seeing another. Left out: where the base's "
        "attention keeps them apart.",
    )
    mask_share: float = Field(0.15, gt=0, lt=1, description="Share of the tokens to be predicted (masked objective).")
    whole_word: bool = Field(False, description="Hide all tokens of a word together (masked objective).")
    samples: int = Field(
        4, ge=0, le=100, description="Test texts whose start is continued by base and trained model, side by side."
    )


class Sft(Section):
    """Supervised fine-tuning: a decoder learns to answer, in the turns of its chat template."""

    type: Literal["sft"] = Field(description="The task.")
    prompt: str | None = Field(
        None,
        description="What the user says, with {COLUMN} for what a column holds. Left out: the columns found by name.",
        examples=["'Summarise: {dialogue}'"],
    )
    system: str | None = Field(None, min_length=1, description="A system turn for rows that have none.")
    template: Template = "model"
    train_on: Literal["answers", "last_answer", "all"] = Field(
        "answers", description="What the loss is computed on: every assistant turn, the last one, or all tokens."
    )
    too_long: Literal["drop", "error", "truncate_prompt"] = Field(
        "drop",
        description="Rows above train.max_length: left out and counted, refused, or the first user turn loses its "
        "beginning. An answer is never cut.",
    )
    max_untrained: Share = Field("0%", description="Largest share of train rows that may have no token to learn.")
    packing: bool = Field(
        default=False, description="Put several rows into one window of max_length, without any seeing another."
    )


Task = Annotated[Classify | Pretrain | Sft, Field(discriminator="type")]


class Train(Section):
    """How the adapter is trained. AdamW, gradients clipped to norm 1."""

    epochs: float = Field(3, gt=0, description="Passes over the training rows.")
    batch_size: int = Field(32, ge=1, description="Rows in one optimiser step, whatever fits in memory at once.")
    learning_rate: float = Field(5e-4, gt=0, lt=1, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd"] = Field(
        "linear", description="Learning rate after warm-up. wsd: constant, then falling over the last fifth."
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of the steps in which the rate rises from 0.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_length: int | None = Field(
        None,
        ge=1,
        description="Tokens of a row at most; what is longer is cut (sft: task.too_long; pretrain: into windows). "
        "Left out: the rows' 99.5th percentile, within the model's positions; for pretraining 1,024 at most.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of training. auto: bfloat16 where the device computes in it; on a processor float32 "
        "for a model less than 128 wide (384 where it is not AMD's), to which bfloat16 costs memory and mostly time.",
    )
    validations: int = Field(1, ge=1, description="How often an epoch scores the validation rows, evenly spread.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations without a better figure. Left out: train to the end."
    )
    best_by: MetricName | Literal["loss"] | None = Field(
        None,
        description="Figure of the validation rows by which the exported checkpoint is chosen. Left out: f1 for "
        "classify, loss for sft.",
    )
    neftune: float | None = Field(
        None, gt=0, description="NEFTune: noise of this size on the embeddings in training (Jain et al. 2023)."
    )
    checkpointing: Literal["auto", "always", "never"] = Field(
        "auto", description="Compute activations twice to save memory. auto: when a single row does not fit otherwise."
    )
    seeds: int = Field(
        1, ge=1, le=20, description="Trainings with seeds from seed on; the first is kept, the others show the spread."
    )
    seed: int = Field(42, ge=0, lt=2**31, description="Seed of splits, initialisation, order and dropout.")


Into = Literal["full", "dequantised"]
"""The base that an adapter is merged into: its weights as stored, or the values that their 4 bits stand for."""


class Merge(Section):
    """How an adapter is merged, and how far from it the merged model may be."""

    into: Literal["full", "dequantised", "auto"] = Field(
        "full",
        description="For a base in 4 bits. full: the base's own weights; dequantised: the values of the 4 bits, which "
        "the adapter was trained on; auto: the better of the two on the validation rows. LoftQ: always dequantised.",
    )
    tolerance: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="By how much the metric may differ from the adapter's: a difference for classify, a share of the "
        "perplexity for a language model. Where the base is in 4 bits, by how much it may get worse.",
    )
