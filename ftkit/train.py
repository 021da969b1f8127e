"""Trains an adapter with transformers' Trainer: checkpoints, validation, resuming, and when memory runs out."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.console import Console
from ftkit.errors import Interrupted, NotFinite, Problem, TrainingFailed
from ftkit.files import write_json, writing_folder
from ftkit.interruption import after_the_step
from ftkit.models.hardware import Machine, peak_gpu_mb, peak_rss_mb, training_dtype
from ftkit.records import TrainSummary
from ftkit.rundir import RunDir, read_log
from ftkit.tasks.classify import Collate, Encoded, TrainingRows
from ftkit.tasks.section import Train
from ftkit.train_watch import watcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

Validate = Callable[["PreTrainedModel"], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Job:
    """All that one training needs. ``build`` makes the adapted model anew; ``validate`` scores it, or is None.

    ``places``: where each of ``rows`` stands, for messages. ``best_by`` names the figure of ``validate`` by which the
    exported checkpoint is chosen.
    """

    build: Callable[[], PreTrainedModel]
    rows: Sequence[Encoded]
    places: Sequence[str]
    loss: Callable[..., Any]
    validate: Validate | None
    best_by: str
    section: Train
    pad_token_id: int
    multi_label: bool
    lr_ratio: float | None
    converted: bool  # PiSSA: saved as the plain LoRA of twice the rank that it is equal to


def train(job: Job, run: RunDir, *, seed: int, machine: Machine, console: Console, resume: bool) -> TrainSummary:
    """Trains, and leaves the best checkpoint's adapter in the run's ``adapter/``.

    Where memory runs out the micro-batch is halved and the effective batch kept. Raises TrainingFailed for a loss that
    is not finite and when a single row does not fit, Interrupted after a signal, with a checkpoint saved.
    """
    micro = job.section.batch_size
    while True:
        try:
            return _Training(job, run, seed, machine, console, micro).go(resume=resume)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            if micro == 1:
                fix = "Lower train.max_length, or use the qlora preset or a smaller base."
                raise TrainingFailed("memory ran out with one row at a time", [Problem("", "train", fix)]) from error
        micro = next(size for size in range(micro // 2, 0, -1) if job.section.batch_size % size == 0)
        console.warn(f"memory ran out; {micro} rows at a time from here on, still {job.section.batch_size} a step")
        resume = False
        run.forget_checkpoints()
        gc.collect()
        _empty_gpu_cache()


class _Training:
    """One attempt with one micro-batch size."""

    def __init__(self, job: Job, run: RunDir, seed: int, machine: Machine, console: Console, micro: int) -> None:
        self.job, self.run, self.seed, self.machine, self.console = job, run, seed, machine, console
        self.micro = micro
        self.accumulate = job.section.batch_size // micro
        self.best = run.checkpoints / "best"
        self.initial = run.checkpoints / "initial"
        self.best_by = job.best_by
        self.best_note: dict[str, Any] = {}
        self.validation_seconds = self.checkpoint_seconds = self.seconds = 0.0

    def go(self, *, resume: bool) -> TrainSummary:
        import torch
        from transformers import set_seed

        checkpoint = _last_checkpoint(self.run.checkpoints) if resume else None
        if checkpoint is None:
            self.run.forget_checkpoints()
        self._keep_log_up_to(_step_of(checkpoint))
        model = self.job.build()
        if self.job.converted and not self.initial.exists():
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(self.initial)
        set_seed(self.seed)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer = self._trainer(model)
        steps = math.ceil(math.ceil(len(self.job.rows) / self.job.section.batch_size) * self.job.section.epochs)
        with (
            after_the_step() as interruption,
            self.console.progress("step", steps, done=_step_of(checkpoint)) as advance,
            self.run.train_log.open("a", encoding="utf-8") as log,
        ):
            trainer.add_callback(watcher(self, interruption, advance, log))
            try:
                result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except NotFinite as error:
                raise self.located(error, trainer.state.global_step + 1) from None
        if interruption.requested and trainer.state.global_step < steps:
            raise Interrupted(f"stopped at step {trainer.state.global_step} of {steps}; a checkpoint is saved")
        return self._finish(trainer, result.training_loss)

    def located(self, error: TrainingFailed, step: int) -> TrainingFailed:
        """The error with the step and the rows at which it came."""
        rows = TrainingRows(self.job.rows, self.job.section.batch_size, self.seed).rows_of_step(step)
        places = ", ".join(self.job.places[row] for row in rows)
        return TrainingFailed(
            f"{error.headline} at step {step}", [*error.problems, Problem("", "rows", f"of that step: {places}")]
        )

    def _trainer(self, model: PreTrainedModel) -> Trainer:
        from transformers import PrinterCallback, Trainer, TrainingArguments

        section = self.job.section
        steps = math.ceil(math.ceil(len(self.job.rows) / section.batch_size) * section.epochs)
        arguments = TrainingArguments(
            output_dir=str(self.run.checkpoints),
            num_train_epochs=section.epochs,
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=section.learning_rate,
            lr_scheduler_type=section.schedule if section.schedule != "constant" else "constant_with_warmup",
            warmup_steps=math.ceil(steps * section.warmup),
            weight_decay=section.weight_decay,
            bf16=str(training_dtype(section.precision, self.machine)) == "torch.bfloat16",
            use_cpu=self.machine.device == "cpu",
            dataloader_pin_memory=self.machine.device != "cpu",
            train_sampling_strategy="sequential",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=self.seed,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=TrainingRows(self.job.rows, section.batch_size, self.seed),
            data_collator=Collate(self.job.pad_token_id, self.job.multi_label),
            compute_loss_func=self.job.loss,
            optimizers=(self._optimiser(model), None),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

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
        """Scores the validation rows, and keeps the adapter where it is the best so far."""
        if self.job.validate is None:
            return None
        started = time.perf_counter()
        # Beneath the wrapper in which accelerate computes in bfloat16: a score is float32 wherever it is taken.
        figures = self.job.validate(model.get_base_model())
        best_file = self.run.checkpoints / "best.json"
        if not self.best_note and best_file.exists():
            self.best_note = json.loads(best_file.read_text(encoding="utf-8"))
        better = not self.best_note or figures[self.job.best_by] > self.best_note["value"]
        if better:
            self.save(model, self.best)
            self.best_note = {"step": step, "value": figures[self.job.best_by]}
            write_json(best_file, self.best_note)
        self.validation_seconds += time.perf_counter() - started
        return {"step": step, "epoch": epoch, "valid": figures, "best": better}

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes the adapter as plain PEFT."""
        with writing_folder(folder) as fresh:
            if self.job.converted:
                model.save_pretrained(fresh, path_initial_model_for_weight_conversion=str(self.initial))
                _add_head(model, fresh / "adapter_model.safetensors")
            else:
                model.save_pretrained(fresh)
            (fresh / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run has one of its own

    def _keep_log_up_to(self, step: int) -> None:
        rows = [row for row in read_log(self.run.train_log) if int(str(row["step"])) <= step]
        self.run.train_log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.seconds = max((float(str(row["seconds"])) for row in rows if "seconds" in row), default=0.0)

    def _finish(self, trainer: Trainer, loss: float) -> TrainSummary:
        model = trainer.model
        if not self.best.exists():
            self.save(model, self.best)
        self.best.replace(self.run.adapter)
        losses = [float(str(row["loss"])) for row in read_log(self.run.train_log) if "loss" in row]
        epochs = trainer.state.epoch or 0.0
        tokens = round(sum(len(row["input_ids"]) for row in self.job.rows) * epochs)
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
            best_step=self.best_note.get("step"),
            best_metric=self.job.best_by if self.best_note else None,
            best_value=self.best_note.get("value"),
        )


def _add_head(model: PreTrainedModel, file: Path) -> None:
    """Puts the head's weights beside the converted updates: peft 0.21's conversion keeps the updates alone."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for name, weight in get_peft_model_state_dict(model).items():
        if "lora_" not in name:
            weights.setdefault(name, weight.detach().cpu().contiguous())
    save_file(weights, file, metadata={"format": "pt"})


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; trainer_state.json is the last file of each."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _empty_gpu_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
