"""Models as GGUF files: what is in them by other readers, and what is refused."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from ftkit.errors import DataError, MachineError, NotProved, RecipeError
from ftkit.export.gguf import check_gguf, write_gguf
from tests.gguf_models import FAMILIES, edit_json, edit_weights, make, sentencepiece


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, decoder):
    """A function from a family to the folder of a pico model of it."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = decoder(family) if family in ("llama", "gpt2", "qwen2") else make(
                tmp_path_factory.mktemp(family), family
            )  # fmt: skip
        return made[family]

    return find


@pytest.fixture
def copied(tmp_path: Path, model):
    """A function from a family to a copy of its pico model that a test may spoil."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(model(family), tmp_path / "model"))

    return copy


def fields(file: Path) -> dict:
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(file).fields.items()}


def tensors(file: Path) -> dict:
    """Name to type and values in float32."""
    from gguf import GGUFReader, dequantize

    return {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in GGUFReader(file).tensors}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_file_holds_the_model(model, tmp_path, family, kind):
    out = tmp_path / "model.gguf"
    written = write_gguf(model(family), out, kind)
    checked = check_gguf(model(family), out)
    found = tensors(out)
    assert written["tensors"] == checked["tensors"] == len(found)
    assert written["file_bytes"] == checked["file_bytes"] == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    for name, (held, values) in found.items():
        whole = values.ndim == 1 or name in ("rope_freqs.weight", "position_embd.weight")
        assert held == ("F32" if whole else kind), name
    if kind == "F32":
        assert checked["largest_difference"] == 0
    else:
        assert 0 <= checked["largest_difference"] < 0.05


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3", "mistral"])
def test_transformers_reads_the_same_model_from_the_file(model, tmp_path, family):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_gguf(model(family), tmp_path / "model.gguf", "F32")
    own = AutoModelForCausalLM.from_pretrained(model(family), dtype=torch.float32)
    # transformers 5.23 reads neither the width of Qwen3's heads nor the number of GPT-2's tokens from a file.
    known = {"config": own.config} if family in ("gpt2", "qwen3") else {}
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32, **known)
    ids = torch.randint(0, own.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, own(ids).logits, rtol=1e-6, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(model(family))
    held = fields(tmp_path / "model.gguf")
    assert held["tokenizer.ggml.tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert held["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id


def test_rows_of_queries_and_keys_change_places_in_llama_alone(model, tmp_path):
    from safetensors.torch import load_file

    for family, name, moved in (("llama3", "q_proj", True), ("mistral", "k_proj", True), ("qwen3", "q_proj", False)):
        write_gguf(model(family), tmp_path / "model.gguf", "F32")
        weights = load_file(model(family) / "model.safetensors")[f"model.layers.1.self_attn.{name}.weight"]
        values = tensors(tmp_path / "model.gguf")[f"blk.1.attn_{name[0]}.weight"][1]
        # Heads have 16 rows. The second row of a head is the first of its second half.
        assert values[17].tolist() == weights[24 if moved else 17].tolist()


def test_an_output_that_is_the_embedding_is_left_out(model, tmp_path):
    write_gguf(model("mistral"), tmp_path / "tied.gguf", "F16")
    write_gguf(model("llama"), tmp_path / "untied.gguf", "F16")
    assert "output.weight" not in tensors(tmp_path / "tied.gguf")
    assert "output.weight" in tensors(tmp_path / "untied.gguf")


def test_the_frequencies_of_llama_3_are_those_of_transformers(model, tmp_path):
    import torch
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    write_gguf(model("llama3"), tmp_path / "model.gguf", "F16")
    config = AutoConfig.from_pretrained(model("llama3"))
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    head, theta = config.head_dim, config.rope_parameters["rope_theta"]
    plain = 1 / theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    factors = torch.tensor(tensors(tmp_path / "model.gguf")["rope_freqs.weight"][1])
    torch.testing.assert_close(plain / factors, scaled, rtol=1e-6, atol=0)
    assert (factors.min(), factors.max(), len(set(factors.tolist())) > 2) == (1, 8, True)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_stretched_rope_is_named(copied, tmp_path, kind):
    folder = copied("llama")
    rope = {"rope_type": kind, "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 24}
    if kind == "linear":
        del rope["original_max_position_embeddings"]
    edit_json(folder / "config.json", rope_parameters=rope)
    write_gguf(folder, tmp_path / "model.gguf", "F16")
    held = fields(tmp_path / "model.gguf")
    assert held["llama.rope.scaling.type"] == kind
    assert (held["llama.rope.scaling.factor"], held["llama.rope.freq_base"]) == (4.0, 5000.0)
    assert held.get("llama.rope.scaling.original_context_length") == (24 if kind == "yarn" else None)


def test_sizes_and_special_tokens_are_in_the_file(model, tmp_path):
    write_gguf(model("qwen3"), tmp_path / "model.gguf", "F16")
    held = fields(tmp_path / "model.gguf")
    expected = {
        "general.architecture": "qwen3", "general.file_type": 1, "qwen3.block_count": 2, "qwen3.context_length": 96,
        "qwen3.embedding_length": 64, "qwen3.feed_forward_length": 128, "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32,
        "qwen3.rope.dimension_count": 32, "qwen3.vocab_size": 320, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert {key: held.get(key) for key in expected} == expected
    types = held["tokenizer.ggml.token_type"]
    assert (types[0], types[2], types[5], types[-1]) == (3, 3, 1, 5)  # control, control, normal, unused
    assert held["tokenizer.ggml.tokens"][-1] == "[PAD319]"


def test_a_sentencepiece_tokenizer_has_scores_bytes_and_a_start_token(model, tmp_path):
    write_gguf(model("mistral"), tmp_path / "model.gguf", "F16")
    held = fields(tmp_path / "model.gguf")
    tokens, types = held["tokenizer.ggml.tokens"], held["tokenizer.ggml.token_type"]
    assert held["tokenizer.ggml.model"] == "llama"
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert types[:4] == [2, 3, 3, 6]  # unknown, control, control, byte
    assert held["tokenizer.ggml.add_bos_token"] is True
    assert held["tokenizer.ggml.add_space_prefix"] is True
    scores = held["tokenizer.ggml.scores"]
    learned = [scores[index] for index, kind in enumerate(types) if kind == 1 and len(tokens[index]) > 1]
    assert learned == sorted(learned, reverse=True)


@pytest.mark.parametrize(
    ("pre", "whole", "name"),
    [(r"\p{N}", False, "qwen2"), (r"\p{N}{1,3}", True, "llama-bpe"), (r"\p{N}{1,3}", False, "smaug-bpe")],
)
def test_a_split_that_llama_cpp_has_is_named(copied, tmp_path, pre, whole, name):
    from ftkit.export.gguf.splitting import SPLITS

    folder = copied("llama")
    original = SPLITS["qwen2"].original[0].replace(r"|\p{N}|", f"|{pre}|")

    def change(described: dict) -> None:
        described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = original
        described["model"]["ignore_merges"] = whole

    edit_json(folder / "tokenizer.json", change)
    write_gguf(folder, tmp_path / "model.gguf", "F16")
    assert fields(tmp_path / "model.gguf")["tokenizer.ggml.pre"] == name


def test_an_unnamed_split_is_named_after_one_that_gives_the_same_tokens(model, tmp_path):
    """A tokenizer that ftkit trains keeps marks with their letters and digits apart: on its words GPT-2's does too."""
    written = write_gguf(model("llama"), tmp_path / "model.gguf", "F16")
    assert fields(tmp_path / "model.gguf")["tokenizer.ggml.pre"] == "gpt-2"
    assert [note[:54] for note in written["notes"]] in (
        [], ["llama.cpp splits letters with combining marks otherwise"[:54]],
    )  # fmt: skip


def refused(folder: Path, tmp_path: Path, kind: str = "F32") -> str:
    """What is said, and that nothing is left and a file that was there stays."""
    out = tmp_path / "out" / "model.gguf"
    out.parent.mkdir()
    out.write_text("before")
    with pytest.raises((DataError, MachineError, RecipeError)) as caught:
        write_gguf(folder, out, kind)
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    assert out.read_text() == "before"
    return str(caught.value).replace(str(folder), "FOLDER")


def test_another_architecture_is_refused(copied, tmp_path):
    folder = copied("llama")
    edit_json(folder / "config.json", model_type="mamba", architectures=["MambaForCausalLM"])
    assert refused(folder, tmp_path) == (
        "error: FOLDER cannot be written as GGUF\n"
        "  architecture   It is a MambaForCausalLM. Did you mean LlamaForCausalLM? Export one of LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel, or write another format."
    )


def test_a_split_that_llama_cpp_lacks_is_refused(copied, tmp_path):
    folder = copied("gpt2")
    edit_json(folder / "tokenizer.json", lambda described: described["pre_tokenizer"].update(add_prefix_space=True))
    said = refused(folder, tmp_path)
    assert said.startswith(
        "error: the tokenizer of FOLDER cannot be written as GGUF\n"
        "  tokenizer   llama.cpp has no way to split text as it does: 'Hello world' is ["
    )
    assert said.endswith("]. Write another format.")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda d: d["added_tokens"][0].update(lstrip=True),
            "its token <unk> is read with lstrip, which llama.cpp does not know. Write another format.",
        ),
        (
            lambda d: d["model"].update(byte_fallback=False),
            "it neither works on bytes nor falls back to them. Write another format.",
        ),
        (
            lambda d: d["model"].update(merges=[m for m in d["model"]["merges"] if m != ["▁", "t"]]),
            "it does not join ▁ and t, and llama.cpp would, since ▁t is a token. Write another format.",
        ),
        (
            lambda d: d["model"]["vocab"].update({"\u00e9\u00e8": 600}),
            "it has the token 600, and the model 384 embeddings. Resize the embeddings, or use the model's own "
            "tokenizer.",
        ),
        (
            lambda d: d.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "<unk>", "type_id": 0}},
                    ],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                    "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}},
                }
            ),
            "it puts other tokens around a text than start and end. Write another format.",
        ),
    ],
)
def test_a_tokenizer_that_would_come_out_wrong_is_refused(copied, tmp_path, change, why):
    folder = copied("mistral")
    edit_json(folder / "tokenizer.json", change)
    assert refused(folder, tmp_path) == (
        f"error: the tokenizer of FOLDER cannot be written as GGUF\n  tokenizer   {why}"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"hidden_act": "gelu"},
            "hidden_act   llama.cpp computes with 'silu' alone; here it is 'gelu'. Write another format.",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantization_config   The weights are quantised already. Export the model in full precision.",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
            "rope_parameters   A rope of type dynamic with factor is not carried over. Write another format.",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(copied, tmp_path, settings, said):
    folder = copied("llama")
    edit_json(folder / "config.json", **settings)
    assert refused(folder, tmp_path) == f"error: FOLDER cannot be written as GGUF\n  {said}"


def test_weights_that_are_missing_unknown_or_unfit_are_refused(model, copied, tmp_path):
    folder = copied("llama")
    down = "model.layers.1.mlp.down_proj.weight"
    for change, kind, said in (
        (lambda w: w.pop(down), "F32", "blk.1.ffn_down.weight and 0 more are not there. Fetch the model again."),
        (
            lambda w: w.update({"model.extra": w[down].clone()}),
            "F32",
            "model.extra has no place in it. Export a plain Llama",
        ),
        (lambda w: w[down].mul_(float("nan")), "F32", "has numbers that are not finite"),
        (lambda w: w[down].mul_(1e9), "F16", "F16 holds numbers up to 65,504. Write BF16."),
    ):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copy(model("llama") / "model.safetensors", folder)
        edit_weights(folder, change)
        assert said in refused(folder, tmp_path, kind)


def test_a_bias_that_llama_cpp_does_not_read_is_refused(copied, tmp_path):
    import torch

    folder = copied("qwen3")
    bias = "model.layers.1.self_attn.o_proj.bias"
    edit_weights(folder, lambda weights: weights.update({bias: torch.ones(64)}))
    assert refused(folder, tmp_path) == (
        "error: FOLDER cannot be written as GGUF\n"
        f"  weights   {bias} has no place in it. Export a plain Qwen3ForCausalLM."
    )


def test_a_type_that_is_none_and_one_without_llama_cpp(copied, tmp_path, monkeypatch):
    folder = copied("llama")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as where it is not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(folder, tmp_path, "Q80") == ("error: there is no GGUF type Q80\n  type   Did you mean Q8_0?")
    shutil.rmtree(tmp_path / "out")
    assert refused(folder, tmp_path, "Q4_K_M") == (
        "error: there is no llama-quantize\n"
        "  type   Q4_K_M is made by llama.cpp. Run pip install 'ftkit[llama]', or put its program llama-quantize on the "
        "PATH (brew install llama.cpp, or github.com/ggml-org/llama.cpp/releases), or write Q8_0."
    )


# Stands for llama.cpp's program: the same call, the types that the gguf package can make.
QUANTISE = """\
#!{python}
import sys, gguf
source, out, kind = sys.argv[1:]
if kind == "Q5_0":
    sys.exit("no room for it")
found = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(out, found.fields["general.architecture"].contents())
for key, field in found.fields.items():
    if not key.startswith("GGUF.") and key != "general.architecture":
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub)
for tensor in found.tensors:
    held = gguf.dequantize(tensor.data, tensor.tensor_type)
    if held.ndim > 1:
        if kind == "Q4_1":
            held = held[::-1].copy()
        raw = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(tensor.name, gguf.quantize(held, raw), raw_dtype=raw)
    else:
        writer.add_tensor(tensor.name, held)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


def test_other_types_are_made_by_llama_quantize_and_compared(copied, tmp_path, monkeypatch):
    folder, program = copied("llama"), tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(QUANTISE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    out = tmp_path / "made" / "model.gguf"
    written = write_gguf(folder, out, "Q4_0")
    assert written["kind"] == "Q4_0"
    assert written["notes"][-1] == "Q4_0 was made by llama-quantize."
    assert {held for held, values in tensors(out).values() if values.ndim > 1} == {"Q4_0"}
    assert 0 < check_gguf(folder, out)["largest_difference"] < 0.1
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    write_gguf(folder, out, "Q4_1")  # with its rows in another order
    with pytest.raises(NotProved, match=r"output.weight   it differs from lm_head.weight by 14\d"):
        check_gguf(folder, out)
    assert refused(folder, tmp_path, "Q5_0") == (
        "error: llama-quantize failed\n  type   It ended with 1: no room for it Try it by hand, or write Q8_0."
    )


def spoilt(model: Path, file: Path, data: bytes) -> str:
    file.write_bytes(data)
    with pytest.raises(NotProved) as caught:
        check_gguf(model, file)
    assert caught.value.exit_code == 7
    return str(caught.value).replace(str(file), "FILE")


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_one_wrong_number_is_found(model, tmp_path, kind):
    from gguf import GGUFReader

    file = tmp_path / "model.gguf"
    write_gguf(model("mistral"), file, kind)
    data = bytearray(file.read_bytes())
    tensor = next(t for t in GGUFReader(file).tensors if t.name == "blk.1.attn_k.weight")
    data[tensor.data_offset + 3] ^= 0x40
    said = spoilt(model("mistral"), file, data)
    assert said.startswith("error: FILE is not proved to be the model\n  blk.1.attn_k.weight   it differs from model.")
    assert said.endswith(". Export it again.")


def test_other_words_and_a_file_that_was_cut_off_are_found(model, tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(model("llama"), file, "F16")
    data = file.read_bytes()
    said = spoilt(model("llama"), file, data.replace(b"<tool_call>", b"<tool_cell>"))
    assert said.startswith("error: FILE is not proved to be the model\n  tokenizer.chat_template   the file says ")
    assert "it cannot be read" in spoilt(model("llama"), file, data[:-5000])
    assert "it cannot be read" in spoilt(model("llama"), file, b"GGUF")
    other = spoilt(model("qwen2"), file, data)
    assert other == (
        "error: FILE is not proved to be the model\n"
        "  qwen2.vocab_size   the file says nothing, the model 448. Export it again."
    )


def test_stop_tokens_beside_the_end_token_are_carried(copied, tmp_path):
    folder = copied("llama")
    edit_json(folder / "generation_config.json", eos_token_id=[0, 3, 7])
    write_gguf(folder, tmp_path / "model.gguf", "F16")
    held = fields(tmp_path / "model.gguf")
    named = [held.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    assert named == [3, 0, 7]
    edit_json(folder / "generation_config.json", eos_token_id=[0, 3, 7, 8])
    word = held["tokenizer.ggml.tokens"][8]
    assert write_gguf(folder, tmp_path / "model.gguf", "F16")["notes"][0] == (
        f"llama.cpp does not stop at {word} by itself. Name them as stop words."
    )


def test_the_reader_of_sentencepiece_splits_as_the_tokenizer_does(tmp_path):
    from ftkit.export.gguf.splitting import reader
    from ftkit.export.gguf.vocabulary import compare, read_tokenizer, read_vocabulary

    folder = sentencepiece(tmp_path)
    edit_json(tmp_path / "config.json", eos_token_id=2)
    read = reader(read_vocabulary(folder, 384).metadata)
    texts = [f"{a} {b}<s>{b}{a}é" for a in ("the cat", "meets", "日本", "in the") for b in ("garden", "\n", "  x")]
    assert compare(read, read_tokenizer(folder), texts) is None
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["byte_fallback"] is True


def test_gpt2_as_it_is_on_the_hub_has_shorter_names(copied, model, tmp_path):
    folder = copied("gpt2")

    def shorten(weights: dict) -> None:
        for name in [*weights]:
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = weights["wte.weight"][:4].clone()  # the mask, which old files hold

    edit_weights(folder, shorten)
    write_gguf(folder, tmp_path / "short.gguf", "F32")
    write_gguf(model("gpt2"), tmp_path / "long.gguf", "F32")
    short, long = tensors(tmp_path / "short.gguf"), tensors(tmp_path / "long.gguf")
    assert short.keys() == long.keys()
    assert all((short[name][1] == values).all() for name, (_, values) in long.items())
    check_gguf(folder, tmp_path / "short.gguf")
