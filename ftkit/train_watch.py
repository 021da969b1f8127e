"""What happens between the steps of a training: the log, validation, checkpoints, and heeding a signal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Protocol

from ftkit.console import Console
from ftkit.errors import Problem, TrainingFailed
from ftkit.interruption import Interruption
from ftkit.tasks.batches import NOT_FINITE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SECONDS_BETWEEN_CHECKPOINTS = 300.0


class Training(Protocol):
    """What the watcher needs of a training. ``seconds`` of optimiser steps, validation and checkpoints aside."""

    console: Console
    best_by: str
    seconds: float
    checkpoint_seconds: float

    def begin_epoch(self, step: int) -> None: ...

    def marks(self) -> frozenset[int]: ...

    def validate(self, model: PreTrainedModel, step: int, epoch: float) -> dict[str, Any] | None: ...

    def out_of_patience(self) -> bool: ...

    def located(self, error: TrainingFailed, step: int) -> TrainingFailed: ...


def watcher(training: Training, interruption: Interruption, advance: Callable[..., None], log: IO[str]) -> Any:
    """The callback that logs each step, validates when it is due, asks for checkpoints, and heeds a signal."""
    from transformers import TrainerCallback

    marks = training.marks()

    class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers has no type information here
        started = saved = asked = 0.0
        paused = 0.0
        before = training.seconds
        status = ""  # of the step before: the Trainer logs a step after it has ended

        def _elapsed(self) -> float:
            return self.before + time.perf_counter() - self.started - self.paused

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = self.saved = time.perf_counter()

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.begin_epoch(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.seconds = self._elapsed()
            advance(1, self.status)
            self.asked = time.perf_counter()
            if interruption.requested and state.global_step < state.max_steps:
                control.should_save = control.should_training_stop = True
            elif self.asked - self.saved > _SECONDS_BETWEEN_CHECKPOINTS:
                control.should_save = True

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any
        ) -> None:
            if not logs or "loss" not in logs:
                return
            for name in ("loss", "grad_norm"):
                if not math.isfinite(logs[name]):
                    what = f"the {'gradient' if name == 'grad_norm' else name} is {logs[name]}"
                    raise training.located(TrainingFailed(what, [Problem("", "train", NOT_FINITE)]), state.global_step)
            row = {"step": state.global_step, "epoch": round(state.epoch, 4)}
            row |= {name: logs[name] for name in ("loss", "learning_rate", "grad_norm")}
            _append(log, {**row, "seconds": round(training.seconds, 3)})
            self.status = f"loss {logs['loss']:.3f}"
            # Also of a training that stops here: the one that goes on from here must know what this step was worth.
            if state.global_step in marks:
                self._validate(state, control, model)

        def _validate(self, state: Any, control: Any, model: Any) -> None:
            before, ended = time.perf_counter(), state.global_step == state.max_steps
            row = training.validate(model, state.global_step, round(state.epoch, 4))
            if row:
                _append(log, row)
                training.console.note(_said(row, training.best_by))
                if training.out_of_patience():
                    training.console.note("no better for as long as train.patience allows: training ends here")
                    ended = True
            self.asked = time.perf_counter()
            self.paused += self.asked - before
            control.should_save = not ended
            control.should_training_stop = ended or interruption.requested

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saved = time.perf_counter()
            training.checkpoint_seconds += self.saved - self.asked
            self.paused += self.saved - self.asked

    return Watcher()


def _said(row: dict[str, Any], best_by: str) -> str:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in row["valid"].items())
    return f"epoch {row['epoch']:g}: validation {figures}{', the best so far' if row['best'] else ''}"


def _append(log: IO[str], row: dict[str, Any]) -> None:
    log.write(json.dumps(row, allow_nan=False) + "\n")
    log.flush()
