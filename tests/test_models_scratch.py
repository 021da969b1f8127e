"""A model from nothing: the size that is told is the size that is made, and each scheme draws what it promises."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from ftkit.models.initialise import initialise
from ftkit.models.scratch import Scratch, build, config, scratch_parameters
from ftkit.models.train_tokenizer import train_tokenizer

ARCHITECTURES = ("llama", "gpt2", "bert")
SCHEMES = ("default", "xavier", "he", "gpt2")
# The names that the families give to what feeds the residual stream.
RESIDUAL = (".o_proj", ".down_proj", "attn.c_proj", "mlp.c_proj", "attention.output.dense", ".output.dense")


def scratch(init: str = "llama", **keys) -> Scratch:
    return Scratch(**({"init": init, "layers": 2, "hidden": 64, "vocab": 320, "positions": 32} | keys))


def wide(init: str, **keys) -> Scratch:
    """Matrices of so many values that their variance is known to about a hundredth."""
    return scratch(init, hidden=256, positions=128, **keys)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """A tokenizer of 320 tokens for each architecture."""
    words = [
        f"{left}{middle}{right}" for left in "bdfgkl" for middle in ("oo", "ee", "ai") for right in ("st", "nd", "rk")
    ]
    causal, masked = (train_tokenizer(words * 2, vocab=320, max_length=32, masked=it) for it in (False, True))
    return {"llama": causal, "gpt2": causal, "bert": masked}


def refusal(**keys) -> str:
    """The text of the first rule of the section that the keys break."""
    with pytest.raises(ValidationError) as error:
        scratch(**keys)
    return str(error.value.errors()[0]["ctx"]["error"])


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"hidden": 200}, "got 200, which is no multiple of 64. Write 192 or 256."),
        ({"intermediate": 100}, "got 100, which is no multiple of 64. Write 64 or 128."),
        ({"vocab": 321}, "got 321, which is no multiple of 64. Write 320 or 384."),
        ({"hidden": 256, "heads": 5}, "heads is 5, which does not divide hidden 256 into heads of even width. Write 4 or 8."),
        ({"heads": 64}, "heads is 64, which does not divide hidden 64 into heads of even width. Write 32."),
        ({"heads": 4, "kv_heads": 3}, "kv_heads is 3, which does not divide heads 4. Write 2 or 4."),
        ({"heads": 4, "kv_heads": 8}, "kv_heads is 8, which does not divide heads 4. Write 4."),
        ({"init": "bert", "kv_heads": 1}, "kv_heads is a key of init: llama, not of bert. Remove kv_heads."),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused_with_the_nearest_that_do(keys, text):
    assert refusal(**keys) == text


@pytest.mark.parametrize(
    "keys",
    [{"vocab": 256}, {"hidden": 0}, {"layers": 0}, {"layers": 201}, {"positions": 15}, {"weights": "glorot"}, {"init": "t5"}],
)  # fmt: skip
def test_numbers_out_of_range_and_unknown_names_are_refused(keys):
    with pytest.raises(ValidationError):
        scratch(**keys)


def test_what_is_left_out_is_decided_by_the_architecture():
    llama, gpt2 = scratch(hidden=256), scratch("gpt2", hidden=256)
    assert (llama.attention_heads, llama.key_value_heads, llama.inner) == (4, 4, 704)
    assert (gpt2.attention_heads, gpt2.inner) == (4, 1024)
    assert scratch(hidden=192).inner == 512  # 8/3 of it is a multiple of 64: nothing to round up
    given = scratch(hidden=256, heads=8, kv_heads=2, intermediate=128)
    assert (given.attention_heads, given.key_value_heads, given.inner) == (8, 2, 128)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("init", "keys"),
    [
        ("llama", {}),
        ("llama", {"hidden": 128, "heads": 8, "kv_heads": 2, "intermediate": 192, "layers": 3}),
        ("gpt2", {}),
        ("gpt2", {"hidden": 128, "heads": 8, "intermediate": 192, "vocab": 384, "positions": 48}),
        ("bert", {}),
        ("bert", {"hidden": 128, "heads": 8, "intermediate": 192, "vocab": 384, "positions": 48}),
    ],
)
def test_the_told_size_is_that_of_the_model(tokenizers, init, keys, tied):
    section = scratch(init, **keys, tied=tied)
    model = build(section, tokenizers[init], seed=1)
    assert scratch_parameters(section) == sum(weight.numel() for weight in model.parameters())


def test_the_size_is_told_without_loading_a_library():
    code = (
        "import sys; from ftkit.models.scratch import Scratch, scratch_parameters\n"
        "print(scratch_parameters(Scratch(init='llama', layers=6, hidden=256, vocab=4096)))\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("5868800\n", "")


@pytest.mark.parametrize("init", ARCHITECTURES)
def test_the_configuration_is_that_of_the_section_and_of_the_tokenizer(tokenizers, init):
    made = config(scratch(init, heads=2, intermediate=192, tied=False), tokenizers[init])
    tokenizer = tokenizers[init]
    assert (made.model_type, made.vocab_size, made.hidden_size, made.num_hidden_layers) == (init, 320, 64, 2)
    assert (made.num_attention_heads, made.max_position_embeddings, made.tie_word_embeddings) == (2, 32, False)
    assert (made.n_inner if init == "gpt2" else made.intermediate_size) == 192
    special = (made.pad_token_id, made.bos_token_id, made.eos_token_id)
    assert special == tuple(tokenizer.convert_tokens_to_ids(["<|pad|>", "<|bos|>", "<|im_end|>"]))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tokenizers):
    tokenizer = train_tokenizer(["good food"] * 3, vocab=260, max_length=8)
    tokenizer.add_tokens([f"word{number}" for number in range(61)])
    with pytest.raises(ValueError, match=r"^the tokenizer has 321 tokens, the model 320\.$"):
        config(scratch(), tokenizer)


def promised(scheme: str, init: str, name: str, module: torch.nn.Module, layers: int) -> float:
    """The standard deviation that the scheme's paper gives for a matrix, written here a second time."""
    if isinstance(module, torch.nn.Embedding):
        return 0.02
    inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
    outputs = outputs // 3 if name.endswith("c_attn") else outputs
    scaled = name.endswith(RESIDUAL) and (scheme == "gpt2" or init == "gpt2")
    return {
        "default": 0.02 / (2 * layers) ** 0.5 if scaled else 0.02,
        "gpt2": 0.02 / (2 * layers) ** 0.5 if scaled else 0.02,
        "xavier": (2 / (inputs + outputs)) ** 0.5,
        "he": (2 / inputs) ** 0.5,
    }[scheme]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("init", ARCHITECTURES)
def test_every_matrix_has_the_spread_of_its_scheme(tokenizers, init, scheme, tied):
    keys = {"heads": 4, "kv_heads": 2} if init == "llama" else {}
    model = build(wide(init, weights=scheme, tied=tied, **keys), tokenizers[init], seed=3)
    head = model.get_output_embeddings()
    seen, residual = 0, 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or (tied and module is head):
            continue
        rows = weight.detach()
        if (pad := getattr(module, "padding_idx", None)) is not None:
            assert rows[pad].abs().max() == 0
            rows = torch.cat([rows[:pad], rows[pad + 1 :]])
        close = 0.2 if rows.shape[0] == 2 else 0.03  # the two token types of BERT are 512 values only
        assert float(rows.std()) == pytest.approx(promised(scheme, init, name, module, 2), rel=close), name
        assert abs(float(rows.mean())) < float(rows.std()) * close, name
        # A uniform ends at sqrt(3) standard deviations; a normal of thousands of values goes far beyond.
        uniform = float(rows.abs().max() / rows.std()) < 1.8
        assert uniform == (scheme == "xavier" and not isinstance(module, torch.nn.Embedding)), name
        seen, residual = seen + 1, residual + name.endswith(RESIDUAL)
    assert residual == 4  # two in each layer
    assert seen == {"llama": 7 * 2 + 1, "gpt2": 4 * 2 + 2, "bert": 6 * 2 + 4}[init] + (not tied)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("init", ARCHITECTURES)
def test_biases_are_zero_and_norms_one(tokenizers, init, scheme):
    model = build(scratch(init, weights=scheme), tokenizers[init], seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(7.0)  # what is not set anew would show
    initialise(model, scheme, seed=1, layers=2)
    for name, weight in model.named_parameters():
        assert weight.dim() == 2 or torch.all(weight == (0.0 if name.endswith("bias") else 1.0)), name
        assert not torch.any(weight == 7.0), name


@pytest.mark.parametrize("init", ARCHITECTURES)
def test_the_default_spreads_as_transformers_does(tokenizers, init):
    section = wide(init)
    model = build(section, tokenizers[init], seed=1)
    kind = AutoModelForMaskedLM if init == "bert" else AutoModelForCausalLM
    torch.manual_seed(1)
    theirs = dict(kind.from_config(config(section, tokenizers[init])).named_parameters())
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, theirs[name]), name
        elif weight.shape[0] > 2:
            assert float(weight.detach().std()) == pytest.approx(float(theirs[name].detach().std()), rel=0.03), name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("init", ARCHITECTURES)
def test_weights_depend_on_the_seed_alone(tokenizers, init, scheme):
    section = scratch(init, weights=scheme)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build(section, tokenizers[init], seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = build(section, tokenizers[init], seed=5).state_dict()
    other = build(section, tokenizers[init], seed=6).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    matrices = [name for name, weight in first.items() if weight.dim() == 2]
    assert matrices
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ARCHITECTURES)
def test_a_saved_model_is_the_same_and_tied_as_before(tokenizers, init, tied, tmp_path):
    model = build(scratch(init, tied=tied, weights="xavier"), tokenizers[init], seed=2).eval()
    model.save_pretrained(tmp_path)
    kind = AutoModelForMaskedLM if init == "bert" else AutoModelForCausalLM
    reloaded = kind.from_pretrained(tmp_path)
    for one in (model, reloaded):
        assert (one.get_output_embeddings().weight is one.get_input_embeddings().weight) == tied
        assert {weight.dtype for weight in one.parameters()} == {torch.float32}
    ids = torch.tensor([[1, 50, 60, 70]])
    with torch.no_grad():
        torch.testing.assert_close(reloaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_matrix_of_an_unknown_kind_is_refused(tokenizers):
    model = build(scratch(), tokenizers["llama"], seed=1)
    model.extra = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(
        ValueError, match=r"^extra\.weight has the shape \(2, 2, 2\), for which no initialisation is known\.$"
    ):
        initialise(model, "he", seed=1, layers=2)


@pytest.mark.parametrize("init", ARCHITECTURES)
def test_a_new_model_learns(tokenizers, init):
    """The loss starts at that of a guess among all tokens, and falls."""
    torch.manual_seed(0)
    model = build(scratch(init), tokenizers[init], seed=1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.tensor([[1, 50, 60, 70, 80, 90, 100, 110]])
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(320), abs=0.3)
    assert losses[-1] < losses[0] - 1
