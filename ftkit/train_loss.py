"""The loss of next tokens on a processor: logits are made only where a token is scored, and once.

TRL leaves the other positions out where Triton runs, and makes those that it scores twice, to hold a tile of them at a
time. Without Triton it makes them at every position. On a small model that is a third of a step (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ftkit.tasks.language import beneath, takes
from ftkit.tasks.windows import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from trl.trainer.sft_trainer import SFTTrainer

# Logits of one micro-batch that are held, with their gradient, until the backward pass: 2,048 tokens of a vocabulary
# of 8,192, or a few hundred answered tokens of one of 32,000. Where there are more TRL makes them twice, in tiles.
_HELD = 2**24
_ROWS = 128  # whose probabilities are computed in float32 at a time


@cache
def next_token_trainer() -> type[SFTTrainer]:
    """TRL's SFTTrainer, with this loss on a processor; of the same value but for the order of sums."""
    from torch.nn import functional
    from trl.trainer.sft_trainer import SFTTrainer

    class NextTokenTrainer(SFTTrainer):  # type: ignore[misc]  # trl has no type information
        def compute_loss(
            self,
            model: PreTrainedModel,
            inputs: dict[str, torch.Tensor],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> Any:
            if model.device.type != "cpu" or return_outputs or self.aux_loss_enabled:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            ahead = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)  # (B, T)
            places = (ahead != IGNORED).any(0).nonzero().flatten()  # (P,)
            if not len(places):
                return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            goals = ahead[:, places]  # (B, P)
            vocabulary = model.get_output_embeddings().weight.shape[0]
            if goals.numel() * vocabulary > _HELD or not takes(model, "logits_to_keep"):
                with _only_at(beneath(model).base_model, places):
                    return super().compute_loss(
                        model, {**inputs, "shift_labels": goals}, num_items_in_batch=num_items_in_batch
                    )
            given = {name: values for name, values in inputs.items() if name != "labels"}
            with self.accelerator.autocast():  # around the base: what accelerate wraps gives logits in float32
                logits = beneath(model)(**given, use_cache=False, logits_to_keep=places).logits  # (B, P, V)
            counted = (goals != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            return summed_nll()(logits.flatten(0, 1), goals.flatten()) / counted

        def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
            """None: nobody reads them, and the estimate goes through all parameters at each step."""
            return 0

    return NextTokenTrainer


@contextmanager
def _only_at(backbone: torch.nn.Module, places: torch.Tensor) -> Iterator[None]:
    """What the model's head is given of a sequence are these positions; their labels stand beside them."""

    def kept(_module: Any, _given: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, places]
        return output

    handle = backbone.register_forward_hook(kept)
    try:
        yield
    finally:
        handle.remove()


@cache
def summed_nll() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of logits [N, V] and goals [N]: the summed negative log-likelihood, in float32, but for IGNORED.

    Its gradient, softmax minus one-hot, is computed with it and held in the logits' number format: autograd would hold
    log-probabilities in float32, and as many gradients.
    """
    import torch

    class SummedNll(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
            gradient = torch.empty_like(logits)
            total = logits.new_zeros((), dtype=torch.float32)
            parts = (torch.split(values, _ROWS) for values in (logits, goals, gradient))
            for own, ahead, slope in zip(*parts, strict=True):
                scored = (ahead != IGNORED)[:, None]
                chosen = ahead.clamp(min=0)[:, None]
                logs = torch.log_softmax(own.float(), -1)
                total -= (logs.gather(1, chosen) * scored).sum()
                slope.copy_(logs.exp_().scatter_add_(1, chosen, -scored.float()).mul_(scored))
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
            (gradient,) = ctx.saved_tensors
            return gradient.mul_(outer[0]), None  # in its place: torch refuses a second backward pass

    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = SummedNll.apply
    return apply
