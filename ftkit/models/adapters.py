"""Adapters: one class for each PEFT method, holding its recipe keys and making PEFT's configuration.

Adding a method is one class here plus its name in the ``Adapter`` union at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ftkit.errors import Problem, RecipeError
from ftkit.section import Section

if TYPE_CHECKING:
    from peft import PeftConfig

Targets = Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]


class Lora(Section):
    """LoRA and its variants. W' = W + (alpha / r) B A, with A (r x in) and B (out x r) trained (Hu et al. 2021)."""

    type: Literal["lora"] = Field("lora", description="The PEFT method.")
    r: int = Field(16, ge=1, le=1024, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="Scale of the update: it is multiplied by alpha / r.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input. Costs a quarter of a CPU step."
    )
    targets: Targets = Field("all-linear", description="all-linear (all but the head), or endings of module names.")
    dora: bool = Field(False, description="Train magnitude and direction apart (Liu et al. 2024).")
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(r), which keeps high ranks stable (Kalajdzievski 2023)."
    )
    init: Literal["default", "pissa", "loftq"] = Field(
        "default",
        description="default: B = 0; pissa: the principal singular vectors of W (Meng et al. 2024); loftq: those of "
        "what quantising to 4 bits loses (Li et al. 2023; needs a GPU).",
    )
    lr_ratio: float | None = Field(
        None, ge=1, description="LoRA+: learning rate of B over that of A (Hayou et al. 2024)."
    )
    quantize: Literal["nf4"] | None = Field(
        None, description="nf4: keep the base in 4 bits with double quantisation (QLoRA, Dettmers et al. 2023)."
    )
    modules_to_save: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Endings of module names that are trained whole, and saved whole beside the update."
    )

    @model_validator(mode="after")
    def _pissa_stands_alone(self) -> Lora:
        if self.init == "pissa" and self.dora:
            # Executed with peft 0.21.2: converted to plain LoRA, PiSSA with DoRA gives other outputs than were trained.
            raise ValueError("init: pissa and dora: true cannot be saved as one adapter. Remove one of the two.")
        if self.init == "pissa" and self.quantize is not None:
            raise ValueError("init: pissa needs the base's full weights, not 4 bits. Remove init or quantize.")
        return self

    @model_validator(mode="after")
    def _loftq_fits(self) -> Lora:
        if self.init != "loftq":
            return self
        if self.quantize is None:
            raise ValueError("init: loftq starts from what 4 bits lose. Add quantize: nf4.")
        if self.dora:
            # The magnitudes would be those of the base without the update that LoftQ starts with.
            raise ValueError("init: loftq and dora: true do not fit together. Remove one of the two.")
        unscaled = self.r**0.5 if self.rslora else float(self.r)
        if self.alpha != unscaled:
            # peft 0.21.2 decomposes the error itself, whatever the update is multiplied by.
            raise ValueError(f"init: loftq needs an update that is scaled by 1. Write alpha: {unscaled:g}.")
        return self

    def peft_config(
        self,
        task_type: str | None,
        whole: Sequence[str],
        exclude: Sequence[str],
        *,
        transposed: bool,
        biases: bool,
        rows: Mapping[str, Sequence[int]],
        tied: bool,
    ) -> PeftConfig:
        """PEFT's configuration. ``task_type``: PEFT's name of the task, None where it has none (masked models).

        ``whole``: modules trained whole and saved with the adapter; ``exclude``: modules that get no update;
        ``transposed``: the base keeps its weights as (in x out), as GPT-2 does; ``biases``: the base's biases are
        trained too, which is how a new output bias is reached, as PEFT saves modules or all biases. ``rows``: the
        tokens of an embedding whose rows are trained. ``tied``: among ``whole`` is an embedding that is the output too.
        """
        from peft import LoraConfig

        return LoraConfig(
            task_type=task_type,
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            exclude_modules=list(exclude),
            modules_to_save=list(whole) or None,
            trainable_token_indices={name: list(tokens) for name, tokens in rows.items()} or None,
            ensure_weight_tying=tied,
            fan_in_fan_out=transposed,
            use_dora=self.dora,
            use_rslora=self.rslora,
            init_lora_weights="pissa" if self.init == "pissa" else True,
            bias="all" if biases else "none",
        )


class Ia3(Section):
    """(IA)^3: learned vectors that rescale keys, values and feed-forward activations (Liu et al. 2022)."""

    type: Literal["ia3"] = Field(description="The PEFT method.")
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Endings of the modules to rescale. Left out: PEFT's choice for the model type."
    )
    feedforward: tuple[str, ...] | None = Field(
        None, description="Those of the targets whose input is rescaled instead of their output."
    )

    def peft_config(
        self,
        task_type: str | None,
        whole: Sequence[str],
        exclude: Sequence[str],
        *,
        transposed: bool,
        biases: bool,
        rows: Mapping[str, Sequence[int]],
        tied: bool,
    ) -> PeftConfig:
        """As ``Lora.peft_config``; (IA)^3 trains no biases, so a new output bias stays 0.

        Raises RecipeError for ``rows``, which PEFT cannot train beside (IA)^3.
        """
        from peft import IA3Config

        if rows:
            fix = "(IA)^3 cannot train the rows of new tokens. Use a lora preset, or a template without new tokens."
            raise RecipeError("the adapter does not fit the base", [Problem("", "adapter.type", fix)])
        return IA3Config(
            task_type=task_type,
            target_modules=None if self.targets is None else list(self.targets),
            feedforward_modules=None if self.feedforward is None else list(self.feedforward),
            exclude_modules=list(exclude),
            modules_to_save=list(whole) or None,
            fan_in_fan_out=transposed,
        )

    @property
    def lr_ratio(self) -> None:
        """LoRA+ is LoRA's alone."""
        return None

    @property
    def quantize(self) -> None:
        """Four-bit bases are LoRA's alone."""
        return None

    @property
    def init(self) -> Literal["default"]:
        """(IA)^3 starts from ones."""
        return "default"

    @property
    def modules_to_save(self) -> None:
        """Other modules trained whole are LoRA's alone."""
        return None

    @model_validator(mode="after")
    def _feedforward_is_targeted(self) -> Ia3:
        missing = [name for name in self.feedforward or () if name not in (self.targets or ())]
        if missing:
            raise ValueError(f"feedforward names {', '.join(missing)}, which targets does not. Add it to targets.")
        return self


Adapter = Annotated[Lora | Ia3, Field(discriminator="type")]
