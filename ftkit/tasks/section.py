"""The ``task`` and ``train`` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftkit.section import Section


class Classify(Section):
    """Sequence classification with a head on the base's pooled output."""

    type: Literal["classify"] = Field(description="The task.")
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="The label set, in the head's order. Left out: the labels of train, sorted as text."
    )
    multi_label: bool = Field(False, description="A row may have any number of labels, none included.")
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "none", description="Weights of the labels in the loss: balanced (n / (k * count)) or one for each label."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all labels.")


Task = Classify


class Train(Section):
    """How the adapter is trained. AdamW, gradients clipped to norm 1."""

    epochs: float = Field(3, gt=0, description="Passes over the training rows.")
    batch_size: int = Field(32, ge=1, description="Rows in one optimiser step, whatever fits in memory at once.")
    learning_rate: float = Field(5e-4, gt=0, lt=1, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after warm-up.")
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of the steps in which the rate rises from 0.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_length: int | None = Field(
        None, ge=1, description="Tokens a row is cut to. Left out: the 99.5th percentile, within the model's positions."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of training. auto: bfloat16 where the device computes in it."
    )
    seeds: int = Field(
        1, ge=1, le=20, description="Trainings with seeds from seed on; the first is kept, the others show the spread."
    )
    seed: int = Field(42, ge=0, lt=2**31, description="Seed of splits, initialisation, order and dropout.")
