"""Trains an adapter, or a model from scratch: checkpoints, validation, resuming, and when memory runs out.

Heads and masked tokens train with transformers' Trainer and a loss of our own, next tokens with TRL's SFTTrainer.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit import checkpoints, train_arguments
from ftkit.checkpoints import Checkpoints
from ftkit.console import Console
from ftkit.data.lengths import percentile
from ftkit.errors import Interrupted, NotFinite, Problem, TrainingFailed
from ftkit.files import write_json, write_jsonl
from ftkit.interruption import after_the_step
from ftkit.models.hardware import Machine, peak_gpu_mb, peak_rss_mb
from ftkit.models.placement import empty_gpu_cache, out_of_memory
from ftkit.models.quantise import is_quantised
from ftkit.records import TrainSummary, as_json
from ftkit.rundir import RunDir, read_log
from ftkit.tasks.batches import Encoded, Rows, TrainingRows
from ftkit.tasks.section import Train
from ftkit.train_loss import next_token_trainer
from ftkit.train_watch import watcher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Validate = Callable[["PreTrainedModel"], dict[str, float]]


_MOVED = 0.01  # share by which the loss must have fallen over a training to have moved
_LISTED = 8  # rows that a message names
_PARTS = 4  # the first of so many parts of the steps is compared with the last


@dataclass(frozen=True, slots=True)
class Job:
    """All that one training needs. ``build`` makes the model anew; ``validate`` scores it, or is None.

    ``adapted``: the model is a PEFT adapter on its base, and the adapter is what is saved. ``lengths``: tokens of each
    of ``rows``; ``mixed``: they share batches whatever their length; ``places``: where row n stands, for messages.
    ``collate``: from the model to what makes a batch of rows. ``loss``: None for TRL's own, on next tokens. ``best_by``
    names the figure of ``validate`` by which the exported checkpoint is chosen, ``lowest`` whether less is better.
    ``dtype``: the number format of the training. ``tokens_at_once``: what a micro-batch may hold, padding included;
    None for a whole batch. ``complete`` adds to what was trained all that it cannot be used without.
    """

    build: Callable[[], PreTrainedModel]
    adapted: bool
    rows: Rows
    lengths: Sequence[int]
    mixed: bool
    places: Callable[[int], str]
    collate: Callable[[PreTrainedModel], Callable[[Sequence[Encoded]], Any]]
    loss: Callable[..., Any] | None
    validate: Validate | None
    best_by: str
    lowest: bool
    section: Train
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    lr_ratio: float | None
    tokens_at_once: int | None
    converted: bool  # PiSSA: saved as the plain LoRA of twice the rank that it is equal to
    complete: Callable[[Path], None]


def train(job: Job, run: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
    """Trains, and leaves the best checkpoint in the run's ``adapter/``, or ``model/`` from scratch, and train.json.

    Goes on from the last checkpoint in the run's folder. Where memory runs out the micro-batch is halved and the
    effective batch kept; then activations are computed twice.
    Raises TrainingFailed for a loss that is not finite and when a single row does not fit, Interrupted after a signal,
    with a checkpoint saved or the training at its end.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    micro, recomputing = _micro_batch(job), job.section.checkpointing == "always"
    while True:
        try:
            _Training(job, run, seed, machine, console, micro, recomputing=recomputing).go()
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            if micro == 1 and (recomputing or job.section.checkpointing == "never"):
                fix = "Lower train.max_length, or use the qlora preset or a smaller base."
                if not recomputing:
                    fix = "Write train.checkpointing: auto. " + fix
                raise TrainingFailed("memory ran out with one row at a time", [Problem("", "train", fix)]) from error
        if micro > 1:
            micro = _divisor(job.section.batch_size, micro // 2)
            console.warn(f"memory ran out; {micro} rows at a time from here on, still {job.section.batch_size} a step")
        else:
            recomputing = True
            console.warn("memory ran out with one row at a time; activations are computed twice from here on")
        run.forget_checkpoints()
        gc.collect()
        empty_gpu_cache()


def _micro_batch(job: Job) -> int:
    """Rows at once to begin with: a whole batch, or what may be held.

    Batches of like rows must fit where rows are long, as nine in ten are not; mixed ones hold the mean.
    """
    batch = job.section.batch_size
    if job.tokens_at_once is None:
        return batch
    length = sum(job.lengths) // len(job.lengths) if job.mixed else percentile(sorted(job.lengths), 90)
    return _divisor(batch, max(1, min(batch, job.tokens_at_once // max(1, length))))


def _divisor(batch: int, most: int) -> int:
    """The largest size of at most ``most`` rows into which a batch can be cut."""
    return next(size for size in range(most, 0, -1) if batch % size == 0)


class _Training:
    """One attempt with one micro-batch size, its activations kept or, ``recomputing``, computed twice."""

    def __init__(
        self, job: Job, run: RunDir, seed: int, machine: Machine, console: Console, micro: int, *, recomputing: bool
    ) -> None:
        self.job, self.run, self.seed, self.machine, self.console = job, run, seed, machine, console
        self.micro, self.recomputing = micro, recomputing
        product = run.adapter if job.adapted else run.model
        self.kept = Checkpoints(run.checkpoints, product, lowest=job.lowest, converted=job.converted)
        self.best_by = job.best_by
        self.ordered = TrainingRows(job.rows, job.lengths, job.section.batch_size, seed, mixed=job.mixed)
        self.epoch_steps = math.ceil(len(job.rows) / job.section.batch_size)
        self.steps = math.ceil(self.epoch_steps * job.section.epochs)
        self.scored: PreTrainedModel | None = None
        self.stopped_early = False
        self.validation_seconds = self.checkpoint_seconds = self.seconds = 0.0

    def go(self) -> None:
        import torch
        from transformers import set_seed

        checkpoint = self.kept.resume()
        self._keep_log_up_to(checkpoints.step_of(checkpoint))
        model = self.job.build()
        self.scored = self._to_score(model)
        if self.recomputing and not self.scored.supports_gradient_checkpointing:
            fix = "Write never, and lower train.max_length where memory runs out."
            kind = type(self.scored).__name__
            raise TrainingFailed(
                f"{kind} cannot compute its activations twice", [Problem("", "train.checkpointing", fix)]
            )
        if self.job.adapted:
            checkpoints.forget_base(model)
        if self.kept.initial is not None:
            checkpoints.save_start(model, self.kept.initial)
        set_seed(self.seed)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer = self._trainer(model)
        with (
            after_the_step() as interruption,
            self.console.progress("step", self.steps, done=checkpoints.step_of(checkpoint)) as advance,
            self.run.train_log.open("a", encoding="utf-8") as log,
        ):
            trainer.add_callback(watcher(self, interruption, advance, log))
            try:
                result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except NotFinite as error:
                raise self.located(error, trainer.state.global_step + 1) from None
            ended = self.stopped_early or trainer.state.global_step == self.steps
            if ended:
                self._finish(trainer, result.training_loss)
        if interruption.requested:
            kept = "the training is done, and kept" if ended else "a checkpoint is saved"
            raise Interrupted(f"stopped at step {trainer.state.global_step} of {self.steps}; {kept}")

    def located(self, error: TrainingFailed, step: int) -> TrainingFailed:
        """The error with the step and the rows at which it came, which are written to failed_batch.jsonl."""
        rows = self.ordered.rows_of_step(step)
        write_jsonl(
            self.run.failed_batch,
            ({"step": step, "where": self.job.places(row), **_plain(self.job.rows[row])} for row in rows),
        )
        places = ", ".join(self.job.places(row) for row in rows[:_LISTED]) + (", …" if len(rows) > _LISTED else "")
        written = f"of that step: {places}. They are written to {self.run.failed_batch}."
        return TrainingFailed(f"{error.headline} at step {step}", [*error.problems, Problem("", "rows", written)])

    def marks(self) -> frozenset[int]:
        """The steps after which the validation rows are scored: evenly spread over each epoch, and the last."""
        parts = self.job.section.validations
        ends = {round(self.epoch_steps * part / parts) for part in range(1, parts + 1)} - {0}
        epochs = range(math.ceil(self.job.section.epochs))
        return frozenset({epoch * self.epoch_steps + end for epoch in epochs for end in ends} | {self.steps})

    def _to_score(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model beneath the wrapper in which accelerate computes in bfloat16: scores are float32 everywhere.

        An adapted model has its base for that. One from scratch gets a twin that shares its weights.
        """
        if self.job.adapted:
            found: PreTrainedModel = model.get_base_model()
            return found
        twin = self.job.build()
        # The parameters themselves, tied ones under each of their names, so that both models stay one.
        for name, weight in model.named_parameters(remove_duplicate=False):
            module, _, own = name.rpartition(".")
            twin.get_submodule(module).register_parameter(own, weight)
        return twin

    def _trainer(self, model: PreTrainedModel) -> Trainer:
        from datasets import Dataset
        from transformers import PrinterCallback, Trainer, TrainingArguments

        section = self.job.section
        paged = self.machine.device == "cuda" and is_quantised(model) and self.job.lr_ratio is None
        if paged:
            self.console.note("AdamW holds its state in 8 bits, paged: the base is quantised, and there is a GPU")
        settings = train_arguments.settings(
            section,
            dtype=self.job.dtype,
            steps=self.steps,
            micro_batch=self.micro,
            recomputing=self.recomputing,
            paged=paged,
            machine=self.machine,
            seed=self.seed,
            folder=self.run.checkpoints,
        )
        given: dict[str, Any] = {
            "model": model,
            # TRL takes nothing but a Dataset: it holds positions, and the rows come from ``ordered``.
            "train_dataset": Dataset.from_dict({"position": range(len(self.job.rows))}),
            "data_collator": self._collator(model),
            "optimizers": (self._optimiser(model), None),
        }
        if self.job.loss is None:
            from trl.trainer.sft_config import SFTConfig

            # The rows are token ids that ftkit made and counted: TRL has nothing to prepare, cut or drop.
            arguments = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
            trained = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
            trainer: Trainer = next_token_trainer()(args=arguments, processing_class=self.job.tokenizer, **given)
            for weight, values in trained:
                weight.data = values  # TRL rounds the adapter of a quantised base to bfloat16, in which steps get lost
        else:
            trainer = Trainer(args=TrainingArguments(**settings), compute_loss_func=self.job.loss, **given)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _collator(self, model: PreTrainedModel) -> Callable[[Sequence[dict[str, int]]], Any]:
        collate = self.job.collate(model)
        return lambda items: collate([self.ordered[item["position"]] for item in items])

    def begin_epoch(self, step: int) -> None:
        """Arranges the rows for the epoch that goes on after ``step``."""
        self.ordered.set_epoch(step // self.epoch_steps)

    def _optimiser(self, model: PreTrainedModel) -> Any:
        """LoRA+'s optimiser, or None for the Trainer's own AdamW."""
        if self.job.lr_ratio is None:
            return None
        import torch
        from peft.optimizers import create_loraplus_optimizer

        section = self.job.section
        return create_loraplus_optimizer(
            model,
            optimizer_cls=torch.optim.AdamW,
            lr=section.learning_rate,
            loraplus_lr_ratio=self.job.lr_ratio,
            loraplus_weight_decay=section.weight_decay,
        )

    def validate(self, model: PreTrainedModel, step: int, epoch: float) -> dict[str, Any] | None:
        """Scores the validation rows, and keeps the model where it is the best so far."""
        if self.job.validate is None or self.scored is None:
            return None
        started = time.perf_counter()
        figures = self.job.validate(self.scored)
        value = figures.get(self.job.best_by)
        if value is None:
            fix = (
                f"{self.job.best_by} is undefined on the validation rows. Write another figure, or a larger data.valid."
            )
            raise TrainingFailed("no checkpoint can be chosen", [Problem("", "train.best_by", fix)])
        better = self.kept.keep_best(model, step, value)
        self.validation_seconds += time.perf_counter() - started
        return {"step": step, "epoch": epoch, "valid": figures, "best": better}

    def out_of_patience(self) -> bool:
        """Whether so many validations as the recipe allows have passed since the best one."""
        patience = self.job.section.patience
        if patience is None:
            return False
        validations = [bool(row["best"]) for row in read_log(self.run.train_log) if "valid" in row]
        self.stopped_early = len(validations) > patience and not any(validations[-patience:])
        return self.stopped_early

    def _keep_log_up_to(self, step: int) -> None:
        rows = [row for row in read_log(self.run.train_log) if int(str(row["step"])) <= step]
        self.run.train_log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.seconds = max((float(str(row["seconds"])) for row in rows if "seconds" in row), default=0.0)

    def _finish(self, trainer: Trainer, loss: float) -> None:
        self.kept.deliver(trainer.model)
        self.job.complete(self.kept.product)
        write_json(self.run.train, as_json(self._summary(trainer, loss)))

    def _summary(self, trainer: Trainer, loss: float) -> TrainSummary:
        model, best = trainer.model, self.kept.best
        losses = [float(str(row["loss"])) for row in read_log(self.run.train_log) if "loss" in row]
        epochs = trainer.state.epoch or 0.0
        tokens = round(sum(self.job.lengths) * epochs)
        moved = _moved(losses)
        if not moved:
            self.console.warn(
                "the loss did not move: it was as high at the end as at the start. Raise train.learning_rate, and look "
                "at what is trained: ftkit check"
            )
        return TrainSummary(
            steps=trainer.state.global_step,
            epochs=round(epochs, 4),
            train_loss=sum(losses) / len(losses) if losses else loss,
            seconds=round(self.seconds, 3),
            validation_seconds=round(self.validation_seconds, 3),
            checkpoint_seconds=round(self.checkpoint_seconds, 3),
            rows=len(self.job.rows),
            tokens=tokens,
            tokens_per_s=round(tokens / max(self.seconds, 1e-9), 1),
            peak_rss_mb=peak_rss_mb(),
            peak_gpu_mb=peak_gpu_mb(),
            trainable_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            total_parameters=sum(weight.numel() for weight in model.parameters()),
            micro_batch_size=self.micro,
            best_step=best.get("step"),
            best_metric=self.job.best_by if best else None,
            best_value=best.get("value"),
            best_sha256=checkpoints.weights_sha256(self.kept.product),
            stopped_early=self.stopped_early,
            loss_moved=moved,
        )


def _moved(losses: Sequence[float]) -> bool:
    """Whether the mean loss of the last quarter of the steps is below that of the first; true of too few to tell."""
    part = len(losses) // _PARTS
    if part < 2:
        return True
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return last < first * (1 - _MOVED)


def _plain(row: Encoded) -> dict[str, Any]:
    """A row as JSON can hold it."""
    return {name: value for name, value in row.items() if isinstance(value, list | int | float | str)}
