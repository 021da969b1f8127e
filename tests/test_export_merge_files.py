"""What a merge leaves on disk: a whole model or nothing, from whole and fitting files only, in little memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from ftkit.errors import DataError, FtkitError, MachineError, NotProved
from ftkit.export import tensors
from ftkit.export.methods import LowRank
from ftkit.export.stream import merge_streamed
from ftkit.export.tensors import read_index
from ftkit.export.updates import changes_of, read_adapter
from ftkit.export.verify import check_merged
from ftkit.models.locate import BaseFiles
from tests.test_export_merge import CASES, Made, llama, logits, lora, make, merge, reloaded, written

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Models this small wait for threads longer than they compute."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A sharded bfloat16 Llama with a LoRA adapter."""
    folder = tmp_path_factory.mktemp("original")
    return make(CASES["lora"], folder, dtype=torch.bfloat16, shard="60KB")


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    """A copy that a test may damage."""
    shutil.copytree(original.base, tmp_path / "base")
    shutil.copytree(original.adapter, tmp_path / "adapter")
    return Made(tmp_path / "base", tmp_path / "adapter", original.model)


def refusal(made: Made, out: Path, kind: type[FtkitError] = DataError, **more) -> str:
    """The error's text, with folders shortened; nothing may stand under the final name."""
    before = sorted(out.iterdir()) if out.exists() else None
    with pytest.raises(kind) as caught:
        merge(made, out, **more)
    assert (sorted(out.iterdir()) if out.exists() else None) == before
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return str(caught.value).replace(str(made.base), "BASE").replace(str(made.adapter), "ADAPTER")


def change(file: Path, name: str, how) -> None:
    held = load_file(file)
    names = [key for key in held if name in key]
    assert names
    for key in names:
        held[key] = how(held[key])
    save_file(held, file, {"format": "pt"})


def test_shards_are_laid_out_as_the_base_s_are(made: Made, tmp_path: Path) -> None:
    done = merge(made, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == len([*made.base.glob("*.safetensors")]) > 2
    assert not (tmp_path / "out" / "model.safetensors").exists()
    index = json.loads((tmp_path / "out" / tensors.INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert written(tmp_path / "out").keys() == written(made.base).keys()
    assert done.bytes_written == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert reloaded(made, tmp_path / "out").dtype == torch.bfloat16
    assert done.dtype == "bfloat16"


def test_one_file_stays_one_and_a_limit_is_kept(tmp_path: Path) -> None:
    made = make(CASES["lora"], tmp_path)
    merge(made, tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    merge(made, tmp_path / "several", shard_bytes=100_000)
    assert len([*(tmp_path / "several").glob("*.safetensors")]) > 2
    one, several = written(tmp_path / "one"), written(tmp_path / "several")
    assert one.keys() == several.keys()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_what_is_not_changed_keeps_its_bytes_and_its_number_format(made: Made, tmp_path: Path) -> None:
    """Norms in float32, whole numbers, and numbers that are not finite: nothing is decoded."""
    index = json.loads((made.base / tensors.INDEX).read_text())["weight_map"]
    odd = torch.tensor([float("nan"), float("-inf"), 1.5])
    norm = made.base / index["model.norm.weight"]
    held = load_file(norm)
    held["model.norm.weight"] = held["model.norm.weight"].float()
    held |= {"odd": odd, "places": torch.arange(5), "bytes": torch.arange(3, dtype=torch.uint8)}
    save_file(held, norm, {"format": "pt"})
    for name in ("odd", "places", "bytes"):
        index[name] = norm.name
    (made.base / tensors.INDEX).write_text(json.dumps({"weight_map": index}))
    done = merge(made, tmp_path / "out")
    base, found = read_index(made.base), read_index(tmp_path / "out")
    touched = [name for name in base if b"".join(map(bytes, base[name].blocks())) !=
               b"".join(map(bytes, found[name].blocks()))]  # fmt: skip
    assert len(touched) == done.touched == 14
    assert all("_proj" in name for name in touched)
    assert done.copied == len(base) - 14
    assert {found[name].dtype for name in ("odd", "places", "bytes", "model.norm.weight")} == {"F32", "I64", "U8"}


def test_the_base_is_hashed_as_it_is_read(made: Made, tmp_path: Path) -> None:
    """One pass gives the fingerprint that training wrote; another base is refused."""
    files = BaseFiles("pico", "folder", made.base, None)
    assert merge(made, tmp_path / "out").base_sha256 == files.sha256()
    text = refusal(made, tmp_path / "other", base_sha256="0123456789abcdef")
    assert text == (
        "error: BASE is another base\n"
        f"  --base   SHA-256 {files.sha256()[:12]}, and the adapter was trained on 0123456789ab. Name that base."
    )


def test_bases_that_cannot_be_read(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard = sorted(made.base.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "is damaged\n  weights   it has" in refusal(made, out)
    shard.write_bytes(whole[:9])
    assert refusal(made, out).endswith("it is cut off, or no safetensors file. Fetch or make the file again.")
    shard.write_bytes(whole[:8] + b"x" + whole[9:])
    assert refusal(made, out).endswith("its header cannot be read. Fetch or make the file again.")
    shard.unlink()
    assert refusal(made, out) == (
        "error: BASE has not all of its weights\n"
        f"  base   {tensors.INDEX} names {shard.name}, which is not there. Fetch the model again."
    )
    for file in made.base.glob("*.safetensors*"):
        file.unlink()
    (made.base / "pytorch_model.bin").write_bytes(b"pickled")
    assert refusal(made, out) == (
        "error: BASE has no safetensors weights\n"
        "  base   It has pickled weights (.bin) only, which can run code. Save it anew with transformers' "
        "save_pretrained."
    )


def test_adapters_that_cannot_be_read(made: Made, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", made.adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "is damaged" in refusal(made, out)
    weights.rename(made.adapter / "adapter_model.bin")
    assert refusal(made, out) == (
        "error: ADAPTER has no safetensors weights\n"
        "  adapter   It has pickled weights (.bin) only, which can run code. Save it anew with peft's save_pretrained."
    )
    weights.write_bytes(whole)
    change(weights, "layers.0.self_attn.q_proj.lora_B", lambda held: held * float("nan"))
    assert refusal(made, out) == (
        "error: the adapter seems to be broken\n"
        "  adapter   model.layers.0.self_attn.q_proj.weight would hold values that are no finite numbers. Train or "
        "fetch the adapter again."
    )
    change(weights, "layers.0.self_attn.q_proj.lora_B", lambda held: held.nan_to_num() * 0 + 3e38)
    assert "would hold values that are no finite numbers" in refusal(made, out)
    (made.adapter / "adapter_config.json").write_text("{")
    assert refusal(made, out) == (
        "error: ADAPTER/adapter_config.json cannot be read\n  adapter   Fetch or save the adapter again."
    )
    (made.adapter / "adapter_config.json").unlink()
    assert refusal(made, out) == (
        "error: ADAPTER is no adapter\n"
        "  adapter   It has no adapter_config.json. Name a folder that PEFT saved an adapter into."
    )


def test_an_adapter_that_changes_nothing_is_an_error(made: Made, tmp_path: Path) -> None:
    change(made.adapter / "adapter_model.safetensors", "lora_B", torch.zeros_like)
    assert refusal(made, tmp_path / "out") == (
        "error: the adapter changes nothing\n"
        "  adapter   In the base's number format no value becomes another. Train the adapter, or name another."
    )


def test_an_adapter_of_other_modules_is_an_error(made: Made, tmp_path: Path) -> None:
    weights = made.adapter / "adapter_model.safetensors"
    renamed = {name.replace("self_attn", "attention"): held for name, held in load_file(weights).items()}
    save_file(renamed, weights, {"format": "pt"})
    text = refusal(made, tmp_path / "out")
    assert text.startswith("error: ADAPTER does not fit the base\n  --base   model.layers.0.attention.k_proj, ")
    assert text.endswith(" and 5 more: the base has nothing of these names. Name the base that it was trained on.")


def test_an_adapter_of_other_shapes_is_an_error(made: Made, tmp_path: Path) -> None:
    change(made.adapter / "adapter_model.safetensors", "up_proj.lora_B", lambda held: held[:-1].clone())
    assert refusal(made, tmp_path / "out") == (
        "error: ADAPTER does not fit the base\n"
        "  --base   model.layers.0.mlp.up_proj.weight is (128, 64) there, and (127, 64) for the adapter. Name the base "
        "that it was trained on."
    )


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda"])
def test_an_adapter_of_a_base_that_its_start_changed(made: Made, tmp_path: Path, start: str) -> None:
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    assert refusal(made, tmp_path / "out") == (
        "error: ADAPTER cannot be merged into the base\n"
        f"  init_lora_weights   {start} changed the base before training, and the adapter was saved as it is. Save it "
        "anew with model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL)."
    )


def test_an_adapter_that_started_with_loftq(made: Made, tmp_path: Path) -> None:
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "loftq"}))
    assert refusal(made, tmp_path / "out").endswith(
        "LoftQ's update holds what quantising the base lost, so it belongs to the quantised base, not to the one on "
        "disk. Merge the run that trained it: ftkit merge RUN."
    )


def test_pissa_converted_to_lora_is_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "base")
    base = t.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, lora(target_modules=["q_proj"], init_lora_weights="pissa")()).eval()
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    expected = logits(model)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    made = Made(tmp_path / "base", tmp_path / "adapter", model)
    merge(made, tmp_path / "out")
    torch.testing.assert_close(logits(reloaded(made, tmp_path / "out")), expected, rtol=1e-4, atol=1e-5)


def test_no_space_is_known_before_the_first_byte(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(tensors.shutil, "disk_usage", lambda _: used._replace(free=100_000))
    text = refusal(made, tmp_path / "out", MachineError)
    assert text.startswith(f"error: no space left for {tmp_path / 'out'}\n  disk   0.00 GiB are needed and 0.00 are")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_largest_values_of_a_format_are_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    """Their sum exceeds what float32 holds."""
    made, most = make(CASES["lora"], tmp_path, dtype=dtype), torch.finfo(dtype).max
    change(made.base / "model.safetensors", "q_proj", lambda held: torch.full_like(held, most))
    merge(made, tmp_path / "out")
    found = written(tmp_path / "out")["model.layers.0.self_attn.q_proj.weight"]
    assert bool(found.isfinite().all())
    assert float(found.float().max()) == most


def test_an_update_that_only_float32_can_hold_is_refused(tmp_path: Path) -> None:
    made = make(CASES["lora"], tmp_path, dtype=torch.float16)
    factors = made.adapter / "adapter_model.safetensors"
    change(factors, "layers.0.self_attn.q_proj.lora", lambda held: torch.full_like(held, 300.0))
    assert "model.layers.0.self_attn.q_proj.weight would hold values that are no finite" in refusal(
        made, tmp_path / "out"
    )


class _Stops(LowRank):
    """An update that fails when half of the model is written."""

    def __init__(self) -> None:
        pass

    def rows(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        raise KeyboardInterrupt


def test_an_interrupted_merge_leaves_the_output_of_before(made: Made, tmp_path: Path) -> None:
    merge(made, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    changes = changes_of(read_adapter(made.adapter), read_index(made.base))
    changes.updates[[*changes.updates][-1]] = _Stops()
    with pytest.raises(KeyboardInterrupt):
        merge_streamed(made.base, changes, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_one_changed_byte_is_found(made: Made, tmp_path: Path, name: str) -> None:
    """Of a tensor that was copied, and of one that was computed."""
    changes = changes_of(read_adapter(made.adapter), read_index(made.base))
    merge_streamed(made.base, changes, tmp_path / "out")
    check_merged(made.base, changes, tmp_path / "out")
    stored = read_index(tmp_path / "out")[name]
    with stored.file.open("r+b") as file:
        file.seek(stored.begin + 77)
        byte = file.read(1)[0]
        file.seek(stored.begin + 77)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(NotProved) as caught:
        check_merged(made.base, changes, tmp_path / "out")
    assert str(caught.value) == (
        "error: the merged model is not what was to be written\n"
        f"  merge   {name} differs in the bytes from 0 on. Check the disk, and merge again."
    )


def test_a_missing_and_a_strange_tensor_are_found(made: Made, tmp_path: Path) -> None:
    changes = changes_of(read_adapter(made.adapter), read_index(made.base))
    merge_streamed(made.base, changes, tmp_path / "out", shard_bytes=2**40)
    file = tmp_path / "out" / "model.safetensors"
    held = load_file(file)
    save_file(held | {"strange": torch.zeros(1)}, file)
    with pytest.raises(NotProved, match=r"strange does not belong there\."):
        check_merged(made.base, changes, tmp_path / "out")
    held.pop("model.norm.weight")
    save_file(held, file)
    with pytest.raises(NotProved, match=r"model.norm.weight is missing\."):
        check_merged(made.base, changes, tmp_path / "out")
    save_file(held | {"model.norm.weight": torch.zeros(64)}, file)
    with pytest.raises(NotProved, match=r"model.norm.weight is F32 \(64,\), and BF16 \(64,\) was to be written\."):
        check_merged(made.base, changes, tmp_path / "out")
