"""``ftkit merge`` of an adapter from anywhere: a whole folder, what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from ftkit.cli.merge import merge_adapters
from ftkit.errors import DataError, FtkitError, NotProved, RecipeError
from ftkit.export.agree import compare_logits
from ftkit.models.adapters import Lora
from ftkit.models.fingerprint import write_fingerprint
from ftkit.models.locate import BaseFiles
from tests.conftest import pico_config
from tests.test_export_merge import CASES, Case, Made, llama, logits, lora, make, reloaded

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Models this small wait for threads longer than they compute."""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(CASES["lora"], tmp_path)


def run(made: Made, out: Path | None, *, base: str | None = None, prove: bool = False) -> None:
    merge_adapters([str(made.adapter)], base, out, None, None, prove=prove, json=True)


def refusal(kind: type[FtkitError], *args, **more) -> str:
    with pytest.raises(kind) as caught:
        run(*args, **more)
    return str(caught.value)


def test_the_base_is_the_one_that_the_adapter_names(made: Made, tmp_path: Path, capsys) -> None:
    run(made, tmp_path / "out")
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert printed == {"path": str(tmp_path / "out"), **stored}
    assert stored["tensors"] == {"changed": 14, "copied": 7, "added": 0, "left_out": []}
    assert (stored["method"], stored["merge"], stored["dtype"], stored["proof"]) == (
        "lora", "streamed", "float32", "tensors",
    )  # fmt: skip
    assert stored["base_sha256"] == BaseFiles("pico", "folder", made.base, None).sha256()
    assert stored["max_abs_logit_diff"] is stored["metric_diff"] is None
    assert stored["passed"] is True
    torch.testing.assert_close(logits(reloaded(made, tmp_path / "out")), logits(made.model), rtol=1e-4, atol=1e-5)


def test_logits_are_compared_in_a_fresh_process(made: Made, tmp_path: Path) -> None:
    run(made, tmp_path / "out", base=str(made.base), prove=True)
    stored = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert stored["proof"] == "logits"
    assert stored["max_abs_logit_diff"] < 1e-5
    assert stored["argmax_agreement"] == 1.0
    # The comparison sees a weight that is another one.
    file = tmp_path / "out" / "model.safetensors"
    held = load_file(file)
    held["model.layers.0.mlp.up_proj.weight"] += 0.01
    save_file(held, file, {"format": "pt"})
    assert compare_logits(made.base, made.adapter, tmp_path / "out").max_abs_logit_diff > 1e-3
    file.unlink()
    with pytest.raises(NotProved, match="the merged model cannot be used from disk"):
        compare_logits(made.base, made.adapter, tmp_path / "out")


def test_the_folder_is_complete_with_the_tokenizer_that_was_trained(
    made: Made, tmp_path: Path, tokenizer_folder: Path
) -> None:
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, made.base)
    (made.base / "vocab.txt").write_text("of another tokenizer")
    tokenizer = t.AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.model_max_length = 33
    tokenizer.save_pretrained(made.adapter)
    t.GenerationConfig(max_new_tokens=7).save_pretrained(made.base)
    out = tmp_path / "out"
    run(made, out)
    found = t.AutoTokenizer.from_pretrained(out)
    assert (found.chat_template, found.model_max_length) == ("{{ messages }}", 33)
    assert t.GenerationConfig.from_pretrained(out).max_new_tokens == 7
    assert not (out / "vocab.txt").exists()
    assert not [path.name for path in out.iterdir() if path.name.startswith("adapter")]


def test_a_classifier_over_a_language_model(tmp_path: Path) -> None:
    """Its head is added, that of the language model left out, and labels have their names."""
    torch.manual_seed(0)
    t.BertForMaskedLM(pico_config("bert")).save_pretrained(tmp_path / "base")
    base = t.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    model = peft.get_peft_model(base, lora(task_type="SEQ_CLS", target_modules=["query"])()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "labels.json").write_text(json.dumps({"labels": ["a", "b", "c"], "multi_label": False}))
    made = Made(tmp_path / "base", tmp_path / "adapter", model)
    # The pooler of the classifier is new and was not trained: nothing on disk has it.
    text = refusal(DataError, made, tmp_path / "out")
    assert "are no whole model" in text
    assert "Neither has bert.pooler.dense.weight. Name the base that the adapter was trained on." in text
    held = load_file(tmp_path / "base" / "model.safetensors")
    held |= {name: weight.contiguous() for name, weight in base.state_dict().items() if "pooler" in name}
    save_file(held, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    run(made, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert stored["tensors"]["added"] == 2
    assert stored["tensors"]["left_out"]
    assert all(name.startswith("cls.") for name in stored["tensors"]["left_out"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert config["label2id"] == {"a": 0, "b": 1, "c": 2}
    assert config["problem_type"] == "single_label_classification"
    torch.testing.assert_close(logits(reloaded(made, tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5)


def test_embeddings_that_grew_in_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    base = t.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(67)
    config = lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 64, 65, 66]})
    model = peft.get_peft_model(base, config()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    made = Made(tmp_path / "base", tmp_path / "adapter", model)
    run(made, tmp_path / "out", prove=True)
    merged = reloaded(made, tmp_path / "out")
    assert merged.config.vocab_size == 67
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_of_a_larger_tokenizer_trained_whole(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    base = t.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(67)
    config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=tied)
    model = peft.get_peft_model(base, config()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path / "adapter")
    made = Made(tmp_path / "base", tmp_path / "adapter", model)
    run(made, tmp_path / "out", prove=not tied)
    merged = reloaded(made, tmp_path / "out")
    assert merged.config.vocab_size == 67
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tied
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


def test_a_module_trained_whole_of_another_shape_is_an_error(tmp_path: Path) -> None:
    made = make(Case(llama, lora(target_modules=["q_proj"], modules_to_save=["norm"])), tmp_path)
    file = made.adapter / "adapter_model.safetensors"
    held = load_file(file)
    held["base_model.model.model.norm.weight"] = torch.ones(60)
    save_file(held, file, {"format": "pt"})
    assert refusal(DataError, made, tmp_path / "out") == (
        f"error: {made.adapter} does not fit the base\n"
        "  --base   model.norm.weight is (64,) there, and (60,) for the adapter. Name the base that it was trained on."
    )


def test_another_base_than_the_one_of_training_is_refused(made: Made, tmp_path: Path) -> None:
    write_fingerprint(made.adapter, BaseFiles("pico", "folder", made.base, None), Lora())
    run(made, tmp_path / "out")
    before = BaseFiles("pico", "folder", made.base, None).sha256()
    file = made.base / "model.safetensors"
    held = load_file(file)
    held["model.norm.weight"] += 1
    save_file(held, file, {"format": "pt"})
    text = refusal(DataError, made, tmp_path / "other")
    assert text.startswith(f"error: {made.base} is another base\n  --base   SHA-256 ")
    assert text.endswith(f"the adapter was trained on {before[:12]}. Name that base.")
    assert not (tmp_path / "other").exists()


def test_what_only_peft_can_merge(tmp_path: Path, capsys) -> None:
    config = lambda: peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])  # noqa: E731
    made = make(Case(llama, config), tmp_path)
    run(made, tmp_path / "out")
    said = (
        "warning: PEFT merges adapters of the type LOHA with the whole model in memory: there is no way by single "
        "tensors\n"
    )
    assert said in capsys.readouterr().err
    stored = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (stored["method"], stored["merge"], stored["proof"]) == ("loha", "peft", "logits")
    torch.testing.assert_close(logits(reloaded(made, tmp_path / "out")), logits(made.model), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_merged_at_all(tmp_path: Path) -> None:
    made = make(Case(llama, lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)), tmp_path)
    assert refusal(DataError, made, tmp_path / "out") == (
        f"error: {made.adapter} cannot be merged\n"
        "  PROMPT_TUNING   It changes what the model is given, not its weights. Use it with PEFT on its base."
    )


ADAPTION = lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)  # noqa: E731
POLY = lambda: peft.PolyConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], n_tasks=2, n_skills=2)  # noqa: E731
LILY = lambda: peft.LilyConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])  # noqa: E731
LOHA = lambda: peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])  # noqa: E731
NO_FIT = "It does not fit the base's modules. Name the base that it was trained on."


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (ADAPTION, {}, "PEFT has no merge for it. Use it with PEFT on its base."),
        (POLY, {}, "PEFT has no merge for it. Use it with PEFT on its base."),
        (LILY, {}, "This method is not supported for Lily. Use it with PEFT on its base."),
        (LOHA, {"peft_type": "NEW"}, f"PEFT {peft.__version__} does not know it. Merge it with the PEFT that saved it."),
        (LOHA, {"target_modules": ["x"]}, "Target modules {'x'} not found in the base model. Please check the target "
         "modules and try again. Use it with PEFT on its base."),
        (LOHA, {"target_modules": ["norm"]}, NO_FIT),
        (LOHA, {"r": 4}, NO_FIT),
        (LOHA, {"r": -1}, "`r` should be a positive integer value but the value passed is -1. Use it with PEFT on its "
         "base."),
    ],
)  # fmt: skip
def test_what_peft_refuses_is_told(tmp_path: Path, config, change, message) -> None:
    made = make(Case(llama, config), tmp_path)
    file = made.adapter / "adapter_config.json"
    stored = json.loads(file.read_text()) | change
    file.write_text(json.dumps(stored))
    assert refusal(DataError, made, tmp_path / "out") == (
        f"error: {made.adapter} cannot be merged\n  {stored['peft_type']}   {message}"
    )
    assert not (tmp_path / "out").exists()


def test_layers_that_share_their_weights(made: Made, tmp_path: Path) -> None:
    file = made.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_replication": [[0, 2], [1, 2]]}))
    assert refusal(DataError, made, tmp_path / "out") == (
        f"error: {made.adapter} cannot be merged\n"
        "  LORA   Its replicated layers share their weights. Use it with PEFT on its base."
    )


@pytest.mark.parametrize("kind", [AttributeError, KeyError, TypeError, RuntimeError])
def test_a_bug_in_what_peft_runs_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind) -> None:
    """Wherever it is, when the adapter is loaded or when it is merged: a traceback, not an answer about the adapter."""
    from peft.tuners.loha.layer import LoHaLayer

    def broken(*arguments, **options):
        raise kind("of the code's own making")

    made = make(Case(llama, LOHA), tmp_path)
    for method in ("update_layer", "merge"):
        with monkeypatch.context() as patch:
            patch.setattr(LoHaLayer, method, broken)
            with pytest.raises(kind, match="of the code's own making"):
                run(made, tmp_path / "out")


def test_options_that_do_not_fit(made: Made, tmp_path: Path) -> None:
    assert refusal(RecipeError, made, None) == (
        "error: nowhere to write to\n  --out   Name a folder for the merged model."
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert refusal(RecipeError, made, tmp_path / "mine") == (
        f"error: {tmp_path / 'mine'} is not empty\n"
        "  --out   It holds no earlier merge (merge.json). Choose a folder of its own."
    )
    config = made.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    assert refusal(RecipeError, made, tmp_path / "out") == (
        "error: the base is not known\n  --base   The adapter does not name it. Name it."
    )
    with pytest.raises(RecipeError, match="Leave it out, or name several"):
        merge_adapters([str(made.adapter)], None, tmp_path / "out", "ties", None, prove=False, json=False)
    with pytest.raises(RecipeError, match=r"0\.5;1 is no list of numbers"):
        merge_adapters([str(made.adapter)] * 2, None, tmp_path / "out", "ties", "0.5;1", prove=False, json=False)


LOFTQ = (
    "error: {} cannot be merged into the base\n"
    "  adapter   LoftQ's update holds what quantising the base lost, so it belongs to the quantised base, not to the one "
    "on disk. Merge the run that trained it: ftkit merge RUN."
)


def test_a_loftq_adapter_within_its_run(made: Made, tmp_path: Path) -> None:
    """One from before this was noted beside the adapter."""
    (tmp_path / "plan.json").write_text(json.dumps({"recipe": {"adapter": {"type": "lora", "init": "loftq"}}}))
    assert refusal(DataError, made, tmp_path / "out") == LOFTQ.format(made.adapter)


def test_a_loftq_adapter_away_from_its_run(made: Made, tmp_path: Path) -> None:
    """Its own configuration does not tell, the note beside it does; and so for one of several, and as llama.cpp's."""
    base = BaseFiles("pico", "folder", made.base, None)
    away = tmp_path / "elsewhere" / "adapter"
    shutil.copytree(made.adapter, away)
    assert json.loads((away / "adapter_config.json").read_text())["init_lora_weights"] is True
    write_fingerprint(made.adapter, base, Lora())
    write_fingerprint(away, base, Lora(r=8, alpha=8, init="loftq", quantize="nf4"))
    assert json.loads((away / "ftkit.json").read_text())["init"] == "loftq"
    assert refusal(DataError, Made(made.base, away, None), tmp_path / "out") == LOFTQ.format(away)
    for method in ("linear", "svd"):
        with pytest.raises(DataError) as caught:
            merge_adapters(
                [str(made.adapter), str(away)], str(made.base), tmp_path / "out", method, None, prove=False, json=False
            )
        assert str(caught.value) == LOFTQ.format(away)
    assert not (tmp_path / "out").exists()


def test_a_note_from_before_it_told_the_start(made: Made, tmp_path: Path) -> None:
    write_fingerprint(made.adapter, BaseFiles("pico", "folder", made.base, None), Lora())
    note = made.adapter / "ftkit.json"
    before = json.loads(note.read_text())
    assert before.pop("init") == "default"
    note.write_text(json.dumps(before))
    run(made, tmp_path / "out")
    assert (tmp_path / "out" / "merge.json").exists()


KILLED = """
import os, signal
from ftkit.cli import main
from ftkit.export.tensors import Shards

copy, done = Shards.write, []

def write(self, name, blocks):
    copy(self, name, blocks)
    done.append(name)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Shards.write = write
main()
"""

PEAK = """
import sys
from pathlib import Path
import torch
from ftkit.cli.merge import merge_adapters

def held(what):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024

imported = held("VmRSS")
merge_adapters([sys.argv[1]], None, Path(sys.argv[2]), None, None, prove=False, json=True)
print(held("VmHWM") - imported, "transformers" in sys.modules, "peft" in sys.modules)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A base of 190 MB in bfloat16, of which the largest tensor has 50, and an adapter: by their names alone."""
    folder, hidden, inner = tmp_path_factory.mktemp("large"), 1024, 2816
    layer = {"self_attn.q_proj": (hidden, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    shapes = {f"model.layers.{number}.{name}": shape for number in range(6) for name, shape in layer.items()}
    base = {f"{name}.weight": torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    base |= {name: torch.zeros(25_000, hidden, dtype=torch.bfloat16) for name in ("model.embed_tokens", "lm_head")}
    adapter = {}
    for name, (outputs, inputs) in shapes.items():
        adapter[f"base_model.model.{name}.lora_A.weight"] = torch.randn(16, inputs)
        adapter[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, 16)
    for place, held in (("base/model", base), ("adapter/adapter_model", adapter)):
        (folder / place).parent.mkdir()
        save_file(held, folder / f"{place}.safetensors", {"format": "pt"})
    (folder / "base" / "config.json").write_text("{}")
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "base_model_name_or_path": str(folder / "base")}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return Made(folder / "base", folder / "adapter", None)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told there")
def test_memory_does_not_grow_with_the_model(large: Made, tmp_path: Path) -> None:
    """Beyond what importing torch takes; and neither transformers nor peft are imported.

    53 to 64 MiB on two cores of an Intel Xeon, whose products hold copies for each thread; less on an AMD EPYC. A
    tensor of 25,000 rows in float32 would be 98 MiB, the base 180.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(large.adapter), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, transformers, with_peft = done.stdout.splitlines()[-1].split()
    assert sum(path.stat().st_size for path in large.base.glob("*.safetensors")) > 180e6
    assert float(grown) < 80
    assert (transformers, with_peft) == ("False", "False")


def test_a_killed_merge_leaves_the_output_of_before(large: Made, tmp_path: Path) -> None:
    """Whenever it ends: nothing half-written may stand under the final name."""
    out = tmp_path / "out"
    run(large, out)
    before = {path.name: (path.stat().st_ino, path.stat().st_size) for path in out.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, "merge", str(large.adapter), "--out", str(out)])
    assert done.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.glob(".*.out.*/*.safetensors") if path.stat().st_size > 2**20]
    assert {path.name: (path.stat().st_ino, path.stat().st_size) for path in out.iterdir()} == before
