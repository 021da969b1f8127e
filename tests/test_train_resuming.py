"""A training that is stopped, or killed, at any point goes on to what an undisturbed one gives."""

from __future__ import annotations

import json
import os
import signal
import warnings
from contextlib import contextmanager

import pytest
import torch

from ftkit.console import Console
from ftkit.errors import Interrupted, NotProved
from ftkit.models.adapters import Lora
from ftkit.models.locate import BaseFiles
from ftkit.rundir import RunDir
from tests.trainings import losses, make_base, quiet, run, same, weights

EPOCH, STEPS = 4, 12
# Both draw random numbers: dropout at each step, PiSSA's conversion whenever it is saved.
KEYS = {"adapter": Lora(r=4, alpha=8, init="pissa", dropout=0.2), "epochs": 3}


class Killed(BaseException):
    """Where the process would be gone: nothing in ftkit may catch it."""


class Watching(Console):
    """Does something after a step, or when a validation was noted."""

    def __init__(self, *, after_step=None, noted=None, do) -> None:
        super().__init__(quiet=True, results=False)
        self.after_step, self.noted, self.do = after_step, noted, do
        self.steps = self.notes = 0

    @contextmanager
    def progress(self, title, total, *, done=0):
        self.steps = done
        yield self._advance

    def _advance(self, n=1, status=""):
        self.steps += n
        if self.steps == self.after_step:
            self.do()

    def note(self, text):
        if "validation" in text:
            self.notes += 1
            if self.notes == self.noted:
                self.do()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def die(*_) -> None:
    raise Killed


def worth(log) -> list[tuple[int, float, bool]]:
    """Of each validation: its step, the loss, and whether it was the best until then."""
    return [(row["step"], row["valid"]["loss"], row["best"]) for row in log if "valid" in row]


def summary(folder) -> dict:
    """train.json without what a clock or the system says."""
    read = json.loads((folder / "train.json").read_text())
    return {key: value for key, value in read.items() if "seconds" not in key and "_mb" not in key and "_s" not in key}


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


@pytest.fixture(scope="module")
def base(tokenizer_folder, tmp_path_factory) -> BaseFiles:
    return make_base(tmp_path_factory.mktemp("llama"), tokenizer_folder)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with quiet():
        return (*run(base, folder, **KEYS), folder)


def check_like(whole, log, adapter, folder) -> None:
    assert losses(log) == losses(whole[0])
    assert worth(log) == worth(whole[0])
    assert [step for step, *_ in worth(log)] == [EPOCH, 2 * EPOCH, STEPS]
    assert same(adapter, whole[1])
    assert summary(folder) == summary(whole[2])


@pytest.mark.parametrize("step", [1, EPOCH - 1, EPOCH, EPOCH + 1, 2 * EPOCH, STEPS - 1])
def test_stopped_after_a_step(base, whole, tmp_path, step):
    """Also after the last one of an epoch, whose validation belongs to it."""
    with pytest.raises(Interrupted, match=f"stopped at step {step} of {STEPS}; a checkpoint is saved"):
        run(base, tmp_path, console=Watching(after_step=step, do=stop), **KEYS)
    assert not (tmp_path / "train.json").exists()
    check_like(whole, *run(base, tmp_path, **KEYS), tmp_path)


def test_stopped_while_validation_runs(base, whole, tmp_path):
    """It ends there: not one step more is made."""
    with pytest.raises(Interrupted, match=f"stopped at step {EPOCH} of {STEPS}"):
        run(base, tmp_path, console=Watching(noted=1, do=stop), **KEYS)
    check_like(whole, *run(base, tmp_path, **KEYS), tmp_path)


def test_stopped_after_the_last_step(base, whole, tmp_path):
    """The signal is heeded when what was trained is kept: nothing is left to train."""
    with pytest.raises(Interrupted, match=f"stopped at step {STEPS} of {STEPS}; the training is done, and kept"):
        run(base, tmp_path, console=Watching(after_step=STEPS, do=stop), **KEYS)
    assert summary(tmp_path) == summary(whole[2])
    assert same(RunDir(tmp_path).adapter, whole[1])


def test_stopped_where_patience_runs_out(base, tmp_path):
    """The training ended by itself, so it is not gone on with."""
    keys = {"learning_rate": 1e-9, "epochs": 3, "patience": 1}
    log, _ = run(base, tmp_path / "whole", **keys)
    assert [step for step, *_ in worth(log)] == [EPOCH, 2 * EPOCH]
    with pytest.raises(Interrupted, match=f"stopped at step {2 * EPOCH} of {STEPS}; the training is done, and kept"):
        run(base, tmp_path / "cut", console=Watching(noted=2, do=stop), **keys)
    assert summary(tmp_path / "cut") == summary(tmp_path / "whole")
    assert summary(tmp_path / "cut")["stopped_early"]


@pytest.mark.parametrize("noted", [1, 2, 3])
def test_killed_between_a_validation_and_its_checkpoint(base, whole, tmp_path, noted):
    """What is best was noted of a step that comes again."""
    with pytest.raises(Killed):
        run(base, tmp_path, console=Watching(noted=noted, do=die), **KEYS)
    check_like(whole, *run(base, tmp_path, **KEYS), tmp_path)


@pytest.mark.parametrize("epochs", [1, 3])  # the first has no checkpoint to go on from
def test_killed_before_the_training_is_noted_as_done(base, tmp_path, epochs):
    """The adapter stands under its name by then, half complete."""
    keys = KEYS | {"epochs": epochs}
    expected = run(base, tmp_path / "whole", **keys)
    with pytest.raises(Killed):
        run(base, tmp_path / "cut", complete=die, **keys)
    assert RunDir(tmp_path / "cut").adapter.exists()
    log, adapter = run(base, tmp_path / "cut", **keys)
    assert losses(log) == losses(expected[0])
    assert same(adapter, expected[1])
    assert summary(tmp_path / "cut") == summary(tmp_path / "whole")


def test_saving_does_not_move_the_training(base, whole, tmp_path):
    """Scored and saved four times as often, each step is the same."""
    log, _ = run(base, tmp_path, **KEYS, validations=4)
    assert len(worth(log)) == STEPS
    assert losses(log) == losses(whole[0])


def test_new_tokens_go_on_from_their_checkpoint(base, tmp_path):
    """The Trainer's own checkpoints hold the adapter and its new rows, not the embeddings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Setting `save_embedding_layers`")
        _, folder = run(base, tmp_path, vocab=67)
    first = weights(folder)
    (checkpoint,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    assert set(weights(checkpoint)) == set(first)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.folder)
    log, folder = run(base, tmp_path, vocab=67)
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 9))
    for name, weight in weights(folder).items():
        torch.testing.assert_close(weight, first[name], atol=1e-5, rtol=0)


def test_best_weights_that_changed_before_the_end_are_refused(base, tmp_path):
    from safetensors.torch import save_file

    best = tmp_path / "checkpoints" / "best"

    def move() -> None:
        save_file({name: weight + 1 for name, weight in weights(best).items()}, best / "adapter_model.safetensors")

    with pytest.raises(NotProved, match="the best checkpoint was changed on disk"):
        run(base, tmp_path, console=Watching(noted=3, do=move), **KEYS)
    assert not RunDir(tmp_path).adapter.exists()
