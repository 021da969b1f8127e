"""The loss of next tokens has TRL's value and gradient, and makes no logits where nothing is scored."""

import random
from pathlib import Path

import pytest
import torch
import transformers as t
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import SFTTrainer

from ftkit import train_loss
from ftkit.tasks.language import Collate
from ftkit.tasks.windows import IGNORED
from ftkit.train_loss import next_token_trainer, summed_nll
from tests.conftest import pico_config, sft_trainer

VOCAB = 77  # no width of the model, so that a product with the vocabulary is known by its shape
PAD = 0


def config_of(family: str):
    """gemma2 bends its logits, granite scales them, mixtral has a loss beside this one."""
    shape = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 64, "head_dim": 16}
    match family:
        case "gemma2":
            return t.Gemma2Config(**shape, final_logit_softcapping=2.0, sliding_window=64)
        case "granite":
            return t.GraniteConfig(**shape, logits_scaling=0.25)
        case "mixtral":
            return t.MixtralConfig(**shape, num_local_experts=2, num_experts_per_tok=1, output_router_logits=True)
    config = pico_config(family)
    config.vocab_size = VOCAB
    return config


def model_of(family: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def trainer_of(kind, family: str, folder: Path, tokenizer: Path):
    """A trainer whose model drops nothing out."""
    made = sft_trainer(kind, model_of(family), Collate(PAD, None), folder, tokenizer)
    made.model.eval()
    made.current_gradient_accumulation_steps = 1  # set when it trains
    return made


def batch_of(arranged: str, lengths=(20, 9, 31, 14), answered=0.3) -> dict[str, torch.Tensor]:
    """Rows whose last part is learned, in the middle of which one token is not."""
    chance = random.Random(5)
    rows = []
    for length in lengths:
        ids = [chance.randrange(4, VOCAB) for _ in range(length)]
        prompt = round(length * (1 - answered))
        labels = [IGNORED] * prompt + ids[prompt:]
        labels[prompt + 1] = IGNORED
        rows.append({"input_ids": ids, "labels": labels, "position_ids": [*range(length)]})
    return Collate(PAD, None, arranged=arranged)(rows)


def loss_and_gradients(trainer, batch, count):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in trainer.model.named_parameters()}


class Heads(TorchDispatchMode):
    """Counts, of every product with the vocabulary's matrix, the positions."""

    def __init__(self):
        super().__init__()
        self.positions: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out) and made.shape[-1] == VOCAB:
            self.positions.append(made.shape[0])
        return made


@pytest.mark.parametrize("held", [train_loss._HELD, 0], ids=["held", "tiled"])
@pytest.mark.parametrize("arranged", ["alone", "windows", "line"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "granite", "mixtral"])
def test_loss_and_gradient_are_those_of_trl(family, arranged, held, tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(train_loss, "_HELD", held)
    theirs = trainer_of(SFTTrainer, family, tmp_path / "theirs", tokenizer_folder)
    ours = trainer_of(next_token_trainer(), family, tmp_path / "ours", tokenizer_folder)
    batch = batch_of(arranged)
    for count in (None, torch.tensor(50)):  # of the whole effective batch, of which this is a part
        expected, slopes = loss_and_gradients(theirs, batch, count)
        found, own = loss_and_gradients(ours, batch, count)
        assert found == pytest.approx(expected, rel=1e-6)
        for name, slope in slopes.items():
            assert (own[name] is None) == (slope is None)
            if slope is not None:
                torch.testing.assert_close(own[name], slope, rtol=1e-4, atol=2e-6 * max(1.0, float(slope.abs().max())))
    assert any(slope is not None and slope.abs().max() > 1e-3 for slope in slopes.values())


@pytest.mark.parametrize(("held", "products"), [(train_loss._HELD, 1), (0, 2)], ids=["held", "tiled"])
def test_logits_are_made_where_a_token_is_scored_and_nowhere_else(
    held, products, tmp_path, tokenizer_folder, monkeypatch
):
    monkeypatch.setattr(train_loss, "_HELD", held)
    trainer = trainer_of(next_token_trainer(), "llama", tmp_path, tokenizer_folder)
    batch = batch_of("line")
    scored = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert scored < batch["labels"].numel() / 3
    with Heads() as heads:
        loss_and_gradients(trainer, batch, None)
    assert heads.positions[:products] == [scored] * products
    assert all(positions == scored for positions in heads.positions)


def test_the_plain_trainer_makes_them_everywhere(tmp_path, tokenizer_folder):
    """Else there would be nothing to gain, and this module could go."""
    trainer = trainer_of(SFTTrainer, "llama", tmp_path, tokenizer_folder)
    batch = batch_of("line")
    with Heads() as heads:
        loss_and_gradients(trainer, batch, None)
    assert heads.positions[:2] == [batch["labels"].numel() - 1] * 2


def test_a_micro_batch_without_a_scored_token_has_no_loss(tmp_path, tokenizer_folder):
    trainer = trainer_of(next_token_trainer(), "llama", tmp_path, tokenizer_folder)
    batch = batch_of("line")
    batch["labels"].fill_(IGNORED)
    loss, slopes = loss_and_gradients(trainer, batch, torch.tensor(7))
    assert loss == 0
    assert all(slope is None or not slope.any() for slope in slopes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_summed_nll_is_cross_entropy(dtype):
    torch.manual_seed(0)
    goals = torch.randint(0, VOCAB, (train_loss._ROWS * 2 + 9,))
    goals[::5] = IGNORED
    logits = (torch.randn(len(goals), VOCAB) * 4).to(dtype).requires_grad_()
    usual = functional.cross_entropy(logits.float(), goals, reduction="sum", ignore_index=IGNORED)
    (expected,) = torch.autograd.grad(usual / 7, logits)
    found = summed_nll()(logits, goals)
    (own,) = torch.autograd.grad(found / 7, logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, usual, rtol=1e-6, atol=0)
    assert own.dtype == dtype
    torch.testing.assert_close(own, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-7)
    assert not own[::5].any()
