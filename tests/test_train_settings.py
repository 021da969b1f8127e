"""What the keys of a training do, each on its own: pico models trained for a few steps through the real trainers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit import train_arguments
from ftkit.console import Console
from ftkit.errors import TrainingFailed
from ftkit.models.adapters import Lora
from ftkit.models.base import with_saved_adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles
from ftkit.tasks.section import Train
from tests.trainings import CPU, QUICK, load, loss_of, losses, make_base, quiet, run, same, weights


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


@pytest.fixture(scope="module")
def base(tokenizer_folder, tmp_path_factory) -> BaseFiles:
    return make_base(tmp_path_factory.mktemp("llama"), tokenizer_folder)


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """The training that the others differ from by one key."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(base, tmp_path_factory.mktemp("plain"))


def test_the_same_keys_train_the_same(base, plain, tmp_path):
    log, folder = run(base, tmp_path / "again")
    assert losses(log) == losses(plain[0])
    assert same(folder, plain[1])


@pytest.mark.parametrize(
    ("keys", "adapter"),
    [
        ({"neftune": 20}, {}),
        ({"weight_decay": 0.5}, {}),
        ({"learning_rate": 1e-3}, {}),
        ({"warmup": 0.5}, {}),
        ({"schedule": "wsd"}, {}),
        ({}, {"dropout": 0.5}),
        ({}, {"alpha": 16}),
        ({}, {"rslora": True}),
        ({}, {"lr_ratio": 16}),
        ({}, {"dora": True}),
        ({}, {"targets": ("q_proj",)}),
        ({}, {"modules_to_save": ("lm_head",)}),
    ],
    ids=str,
)
def test_a_key_changes_what_is_trained(base, plain, tmp_path, keys, adapter):
    _, folder = run(base, tmp_path / "changed", adapter=Lora(**{"r": 4, "alpha": 8} | adapter), **keys)
    assert not same(folder, plain[1])


def test_weight_decay_shrinks_and_noise_raises_the_loss_of_training_alone(base, plain, tmp_path):
    _, decayed = run(base, tmp_path / "decayed", weight_decay=5.0)
    norms = [sum(float(own.norm()) for name, own in weights(folder).items() if "lora_A" in name)
             for folder in (plain[1], decayed)]  # fmt: skip
    assert norms[1] < norms[0]
    # At a rate that changes nothing the model is scored as it is without noise, while it is trained on noise.
    still, noisy = (run(base, tmp_path / name, learning_rate=1e-9, **keys)[0]
                    for name, keys in (("still", {}), ("noisy", {"neftune": 500})))  # fmt: skip
    np.testing.assert_allclose(*([row["valid"]["loss"] for row in log if "valid" in row] for log in (still, noisy)))
    assert np.abs(np.array(losses(still)) - losses(noisy)).min() > 1e-3


class Counter:
    """Counts how often the first layer's MLP is computed while the model is trained."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model) -> None:
        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(self._count)

    def _count(self, module, *_) -> None:
        self.calls += module.training


@pytest.mark.parametrize("adapter", [Lora(r=4, alpha=8), Lora(r=4, alpha=8, quantize="nf4"), Lora(r=4, dropout=0.3)],
                         ids=["lora", "qlora", "dropout"])  # fmt: skip
def test_activations_are_computed_twice_and_the_gradients_stay(base, tmp_path, adapter):
    found = {}
    for way in ("never", "always"):
        counter = Counter()
        log, folder = run(base, tmp_path / way, adapter=adapter, checkpointing=way, watch=counter)
        found[way] = (counter.calls, log, weights(folder))
    assert (found["never"][0], found["always"][0]) == (8, 16)
    for figure in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            *([row[figure] for row in found[way][1] if figure in row] for way in ("never", "always")), rtol=1e-5
        )
    for name, one in found["never"][2].items():
        torch.testing.assert_close(one, found["always"][2][name], atol=1e-6, rtol=0)


def full(model) -> None:
    """A device whose memory is full unless activations are computed twice."""

    def refuse(module, *_) -> None:
        if module.training and not model.get_base_model().is_activation_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(refuse)


def test_memory_that_runs_out_switches_it_on_at_last(base, plain, tmp_path, capsys):
    log, _ = run(base, tmp_path, watch=full, console=Console(results=False))
    assert [line for line in capsys.readouterr().err.splitlines() if "memory" in line] == [
        "warning: memory ran out; 2 rows at a time from here on, still 4 a step",
        "warning: memory ran out; 1 rows at a time from here on, still 4 a step",
        "warning: memory ran out with one row at a time; activations are computed twice from here on",
    ]
    np.testing.assert_allclose(losses(log), losses(plain[0]), rtol=1e-3)


def test_memory_that_does_not_suffice_is_told(base, tmp_path):
    rest = "Lower train.max_length, or use the qlora preset or a smaller base."
    with pytest.raises(TrainingFailed) as error:
        run(base, tmp_path / "never", watch=full, checkpointing="never")
    assert str(error.value) == (
        f"error: memory ran out with one row at a time\n  train   Write train.checkpointing: auto. {rest}"
    )

    def never(model) -> None:
        def refuse(module, *_) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(refuse)

    with pytest.raises(TrainingFailed) as error:
        run(base, tmp_path / "always", watch=never, checkpointing="always")
    assert error.value.exit_code == 6
    assert str(error.value) == f"error: memory ran out with one row at a time\n  train   {rest}"


def test_a_base_that_cannot_compute_them_twice_is_told(base, tmp_path):
    def old(model) -> None:
        model.get_base_model().supports_gradient_checkpointing = False

    with pytest.raises(TrainingFailed) as error:
        run(base, tmp_path, watch=old, checkpointing="always")
    assert str(error.value) == (
        "error: LlamaForCausalLM cannot compute its activations twice\n"
        "  train.checkpointing   Write never, and lower train.max_length where memory runs out."
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_adapter_of_a_quantised_base_is_trained_in_float32_and_scores_from_disk_as_in_memory(
    base, tmp_path, precision
):
    adapter = Lora(r=4, alpha=8, quantize="nf4")
    log, folder = run(base, tmp_path, adapter=adapter, precision=precision, vocab=67)
    own = weights(folder)
    assert {weight.dtype for weight in own.values()} == {torch.float32}
    assert all(not torch.equal(weight, weight.bfloat16().float()) for weight in own.values())
    best = [row["valid"]["loss"] for row in log if row.get("best")][-1]
    again = with_saved_adapter(load(base, vocab=67, quantize=True, seed=4).model, folder)
    assert loss_of(again)["loss"] == pytest.approx(best, abs=1e-5)


def test_a_quantised_base_on_a_gpu_has_the_paged_optimiser():
    def settings(**keys):
        section = Train(**QUICK | keys.pop("section", {}))
        given = {"recomputing": False, "paged": False} | keys
        return train_arguments.settings(
            section,
            dtype=torch.float32,
            steps=8,
            micro_batch=4,
            machine=CPU,
            seed=3,
            folder=Path("checkpoints"),
            **given,
        )

    assert "optim" not in settings()
    assert settings(paged=True)["optim"] == "paged_adamw_8bit"
    assert settings(section={"neftune": 5})["neftune_noise_alpha"] == 5


@pytest.mark.gpu
def test_a_quantised_base_trains_on_a_gpu(base, tmp_path):
    machine = Machine("a processor", 2, 2, 8.0, "a GPU", 8.0, bfloat16=True)
    log, _ = run(base, tmp_path, adapter=Lora(r=4, quantize="nf4"), machine=machine, precision="auto")
    assert losses(log)[-1] < losses(log)[0]
