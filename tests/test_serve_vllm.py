"""What vLLM is started with for each kind of run, and what it is not started for. vLLM itself is not here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from ftkit.errors import DataError, RecipeError
from ftkit.rundir import RunDir
from ftkit.serve.vllm import Address, Launch, launch_of
from tests.conftest import sentences, write_csv
from tests.conversations import asked, carried_out, move_weights, write_recipe, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Address("127.0.0.1", 8000, None)
SHORT = "{epochs: 1, batch_size: 16, learning_rate: 3e-3, seed: 7}"
UNTRACKED = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
GREEDY = {"--override-generation-config": ['{"temperature": 0.0}']}


@pytest.fixture(scope="module")
def place(decoder, pico, tmp_path_factory) -> Path:
    """A folder with runs: adapters on a base in bfloat16, others that vLLM cannot load, and whole models."""
    folder = tmp_path_factory.mktemp("place")
    sft = {"eval": "{metrics: [perplexity], max_new_tokens: 4}", "train": SHORT, "merge": "false"}
    system = {"task": "{type: sft, system: Be short.}", "adapter": "{type: lora, r: 12, rslora: true}"}
    # The second has a system turn, and a rank that is none of vLLM's.
    runs = {
        "first": ("qwen2", sft),
        "second": ("qwen2", sft | system),
        "dora": ("qwen2", sft | {"adapter": "{type: lora, r: 4, dora: true}"}),
        "ia3": ("qwen2", sft | {"adapter": "{type: ia3}"}),
        "marks": ("qwen2", sft | {"task": "{type: sft, template: other.jinja}"}),
        "merged": ("gpt2", sft | {"merge": "true"}),
        "wide": ("llama", sft),
    }
    with contextlib.chdir(folder):
        for name in ("qwen2", "gpt2", "llama"):
            shutil.copytree(decoder(name), folder / name)
        template = (folder / "qwen2" / "chat_template.jinja").read_text(encoding="utf-8")
        (folder / "other.jinja").write_text(template.replace("<|im_end|>\n", "<|im_end|>"), "utf-8")
        for number, name in enumerate(("train", "valid", "test")):
            write_rows(folder / f"{name}.jsonl", asked(16, number))
        for name, (base, keys) in runs.items():
            carried_out(write_recipe(folder, folder / base, name=name, **keys), folder / name)
        shutil.copytree("merged", "tokens", ignore=shutil.ignore_patterns("merged"))
        _texts(folder)
        _labels(folder, pico("bert"))
    return folder


def _texts(folder: Path) -> None:
    """Models that go on with texts, and one that fills their gaps."""
    texts = [json.dumps({"text": f"{row['prompt']} {row['completion']}."}) for row in asked(40, 5)]
    (folder / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
    data = {"data": "{train: texts.jsonl, valid: 20%, test: 20%}", "train": SHORT}
    shape = "{init: llama, layers: 1, hidden: 64, vocab: 384, positions: 64}"
    for name, objective in (("texts", "causal"), ("gaps", "masked")):
        task = f"{{type: pretrain, objective: {objective}{', samples: 0' if objective == 'causal' else ''}}}"
        base = shape if objective == "causal" else shape.replace("llama", "bert")
        path = write_recipe(folder, base, task=task, name=name, **data)
        text = path.read_text(encoding="utf-8").replace("adapter: {type: lora, r: 8}\n", "")
        path.write_text(text, encoding="utf-8")
        carried_out(path, folder / name)
    on = {"task": "{type: pretrain, samples: 0}", "name": "onwards", "merge": "false"}
    carried_out(write_recipe(folder, folder / "qwen2", **on, **data), folder / "onwards")


def _labels(folder: Path, base: Path) -> None:
    for name, count, seed in (("train", 48, 1), ("test", 20, 3)):
        write_csv(folder / f"{name}.csv", sentences(count, seed))
    classify = {"task": "{type: classify, labels: [bad, good]}", "merge": "false", "name": "labels"}
    data = "{train: train.csv, valid: 0%, test: test.csv}"
    carried_out(write_recipe(folder, base, data=data, train=SHORT, **classify), folder / "labels")


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def launch(*names: str, address: Address = HERE) -> Launch:
    return launch_of([RunDir(Path(name)) for name in names], address)


def options(made: Launch) -> dict[str, list[str]]:
    """The options with their values, after ``vllm serve MODEL``."""
    found: dict[str, list[str]] = {}
    for word in made.argv[3:]:
        if word.startswith("--"):
            assert word not in found
            found[word] = values = []
        else:
            values.append(word)
    return found


def where(name: str = "8000") -> dict[str, list[str]]:
    return {"--host": ["127.0.0.1"], "--port": [name]}


def test_a_merged_model_is_served_as_it_is(place):
    made = launch("merged")
    assert made.argv[:3] == ("vllm", "serve", str(place / "merged" / "merged"))
    assert made.files == {}
    assert options(made) == {
        "--served-model-name": ["merged"],
        **where(),
        "--dtype": ["float32"],
        "--max-model-len": ["96"],
        "--chat-template": [str(place / "merged" / "merged" / "chat_template.jinja")],
        "--generation-config": ["vllm"],
        **GREEDY,
    }
    assert made.environment == UNTRACKED
    assert (made.models, made.url, made.notes) == (("merged",), "http://127.0.0.1:8000/v1", ())


def test_the_stop_tokens_of_the_template_reach_vllm(place, tmp_path):
    """Also of a merged model whose configuration knows the base's end token alone, as those of before did."""
    tokenizer = AutoTokenizer.from_pretrained(place / "merged" / "merged")
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert ends[0] != ends[1]
    assert GenerationConfig.from_pretrained(place / "merged" / "merged").eos_token_id == ends
    older = tmp_path / "older"
    shutil.copytree(place / "merged", older)
    (older / "merged" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends[1]}), encoding="utf-8")
    made = launch_of([RunDir(older)], HERE)
    ((path, text),) = made.files.items()
    assert options(made)["--generation-config"] == [str(path.parent)]
    assert not path.exists()
    (tmp_path / path.name).write_text(text, encoding="utf-8")
    assert GenerationConfig.from_pretrained(tmp_path).to_diff_dict()["eos_token_id"] == ends


def test_where_the_base_stops_as_the_template_does_nothing_is_written(place):
    made = launch("first")
    assert made.files == {}
    assert options(made)["--generation-config"] == ["vllm"]


def test_adapters_stand_beside_their_base(place):
    made = launch("first", "second", address=Address("::1", 9000, None))
    modules = [
        {"name": name, "path": str(place / name / "adapter"), "base_model_name": "base:qwen2"}
        for name in ("first", "second")
    ]
    found = options(made)
    assert made.argv[:3] == ("vllm", "serve", str(place / "qwen2"))
    assert [json.loads(word) for word in found.pop("--lora-modules")] == modules
    assert found == {
        "--served-model-name": ["base:qwen2"],
        "--host": ["::1"],
        "--port": ["9000"],
        "--dtype": ["bfloat16"],
        "--max-model-len": ["96"],
        "--chat-template": [str(place / "first" / "adapter" / "chat_template.jinja")],
        "--generation-config": ["vllm"],
        **GREEDY,
        "--tokenizer": [str(place / "first" / "adapter")],
        "--enable-lora": [],
        "--max-loras": ["2"],
        "--max-lora-rank": ["16"],
    }
    assert (made.models, made.url) == (("first", "second"), "http://[::1]:9000/v1")
    assert made.notes == (
        "second: task.system ('Be short.') is not put before messages. Send it as the system turn.",
        "The base without an adapter answers as base:qwen2, and where a request names no model.",
    )


def test_one_adapter_gets_the_smallest_rank_that_holds_it():
    found = options(launch("first"))
    assert (found["--max-loras"], found["--max-lora-rank"]) == (["1"], ["8"])


def test_a_model_from_scratch_is_served_without_a_template(place):
    made = launch("texts")
    assert made.argv[2] == str(place / "texts" / "model")
    assert options(made) == {
        "--served-model-name": ["texts"],
        **where(),
        "--dtype": ["float32"],
        "--max-model-len": ["64"],
        "--generation-config": ["vllm"],
        **GREEDY,
    }
    assert made.notes == ()


def test_what_opened_a_text_in_training_is_told(place):
    """The tokenizer of Qwen's kind writes no start token, and training began each text with its end token."""
    made = launch("onwards")
    assert "--chat-template" not in options(made)
    assert made.notes[0] == (
        "onwards: <|im_end|> is not put before a text, as it was in training. Begin each prompt with it."
    )


def test_a_key_is_in_the_environment_alone():
    made = launch("first", address=Address("0.0.0.0", 8000, "a long secret"))
    assert made.environment == UNTRACKED | {"VLLM_API_KEY": "a long secret"}
    assert "secret" not in " ".join(made.argv)
    assert "--api-key" not in made.argv


def test_remote_code_is_trusted_where_the_recipe_did(place, tmp_path):
    run = RunDir(shutil.copytree("first", tmp_path / "run"))
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    plan["recipe"]["base"]["trust_remote_code"] = True
    run.plan.write_text(json.dumps(plan), encoding="utf-8")
    made = launch_of([run], HERE)
    assert "--trust-remote-code" in made.argv
    assert "HF_HUB_OFFLINE" not in made.environment


ALONE = "ftkit serve {0} --engine vllm --port PORT"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["labels"],
            "labels cannot be served by vLLM|It gives labels, not words. Leave --engine out: ftkit serve labels",
        ),
        (["gaps"], "gaps cannot be served by vLLM|It fills gaps in texts. Use ftkit predict."),
        (
            ["dora"],
            "vLLM cannot load dora/adapter|It is DoRA, which vLLM does not compute. Merge it first: ftkit merge dora",
        ),
        (
            ["ia3"],
            "vLLM cannot load ia3/adapter|It is of type ia3, and vLLM loads LoRA only. Merge it first: ftkit merge ia3",
        ),
        (
            ["tokens"],
            "vLLM cannot load tokens/adapter|It holds the embeddings of new tokens, which vLLM does not load. "
            "Merge it first: ftkit merge tokens",
        ),
        (
            ["wide"],
            "vLLM cannot load wide/adapter|It belongs to a base in float32, and vLLM computes adapters in 16 bits. "
            "Merge it first: ftkit merge wide",
        ),
        (
            ["first", "dora"],
            "vLLM cannot load dora/adapter|It is DoRA, which vLLM does not compute. "
            f"Merge it (ftkit merge dora) and serve it alone: {ALONE.format('dora')}",
        ),
        (
            ["first", "merged"],
            "vLLM cannot load merged/adapter|It holds the embeddings of new tokens, which vLLM does not load. "
            f"Serve its merged model alone: {ALONE.format('merged')}",
        ),
        (
            ["first", "texts"],
            f"texts has no adapter|It is a model of its own. Start a server for it: {ALONE.format('texts')}",
        ),
        (
            ["first", "marks"],
            "first and marks have different chat templates or tokenizers|"
            f"A server of vLLM's has one. Start one for each: {ALONE.format('marks')}",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_vllm_cannot_serve_is_refused(names, said):
    with pytest.raises(RecipeError) as caught:
        launch(*names)
    headline, fix = said.split("|")
    assert str(caught.value) == f"error: {headline}\n  --engine   {fix}"


def changed_adapter(name: str, folder: Path, **keys: object) -> RunDir:
    """A run's copy, with other values in its adapter's configuration."""
    run = RunDir(shutil.copytree(name, folder / name))
    path = run.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")
    return run


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"rank_pattern": {"q_proj": 513}}, "has rank 513, and vLLM takes 512 at most"),
        ({"init_lora_weights": "pissa_niter_4"}, "was started with pissa_niter_4, which changed the base"),
        ({"bias": "all"}, "holds biases, which vLLM does not load"),
        ({"modules_to_save": ["lm_head"]}, "holds whole modules (lm_head), which vLLM does not load"),
    ],
    ids=["rank", "init", "bias", "modules"],
)
def test_settings_of_an_adapter_that_vllm_refuses(tmp_path, keys, why):
    run = changed_adapter("first", tmp_path, **keys)
    with pytest.raises(RecipeError) as caught:
        launch_of([run], HERE)
    assert caught.value.problems[0].message == f"It {why}. Merge it first: ftkit merge {run.folder}"


def test_tensors_that_vllm_does_not_read_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    run = changed_adapter("first", tmp_path)
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    save_file({**tensors, name.replace("lora_A", "lora_C"): tensors[name].clone()}, file)
    with pytest.raises(RecipeError, match=r"holds model\.layers\S+lora_C\.weight, which vLLM does not read"):
        launch_of([run], HERE)


def test_an_adapter_of_a_base_in_4_bits_is_refused(tmp_path):
    run = changed_adapter("first", tmp_path)
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    plan["recipe"]["adapter"]["quantize"] = "nf4"
    run.plan.write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        launch_of([run], HERE)
    why = "It was trained on a base in 4 bits, and vLLM does not load one."
    assert caught.value.problems[0].message == f"{why} Merge it first: ftkit merge {run.folder}"


def moved_base(folder: Path) -> tuple[RunDir, Path]:
    """A run's copy that has a copy of its base."""
    run, base = changed_adapter("first", folder), shutil.copytree("qwen2", folder / "qwen2")
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    plan["base"] |= {"ref": str(base), "folder": str(base)}
    run.plan.write_text(json.dumps(plan), encoding="utf-8")
    return run, base


def test_adapters_of_different_bases_are_refused(tmp_path):
    run, _ = moved_base(tmp_path)
    with pytest.raises(RecipeError, match="first and second have different bases"):
        launch_of([run, RunDir(Path("second"))], HERE)


def test_a_base_with_other_weights_is_refused(tmp_path):
    run, base = moved_base(tmp_path)
    assert launch_of([run], HERE).argv[2] == str(base)
    move_weights(base)
    with pytest.raises(DataError, match="belongs to another base"):
        launch_of([run], HERE)


STANDIN = """\
#!{python}
import json, os, sys
with open({out!r}, "w", encoding="utf-8") as file:
    json.dump({{"argv": sys.argv, "environment": dict(os.environ), "process": os.getpid()}}, file)
sys.exit(23)
"""


@pytest.fixture
def program(tmp_path) -> Path:
    """A program called vllm that notes how it was started, and the file that it notes that in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path, noted = folder / "vllm", tmp_path / "noted.json"
    path.write_text(STANDIN.format(python=sys.executable, out=str(noted)), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return noted


def ftkit(*words: str, path: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own; ``path``: a folder in front of the PATH."""
    settings = {**os.environ, **environment}
    settings.pop("VLLM_API_KEY", None)
    # The environment of a developer may have a vLLM of its own.
    settings["PATH"] = os.pathsep.join([*([str(path)] if path else []), "/usr/bin", "/bin"])
    if "FTKIT_API_KEY" not in environment:
        settings.pop("FTKIT_API_KEY", None)
    command = [sys.executable, "-m", "ftkit", "serve", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)


def test_vllm_takes_the_place_of_ftkit(program):
    started = ftkit(
        *("merged", "--engine", "vllm", "--host", "0.0.0.0", "--port", "0"),
        path=program.parent / "bin",
        FTKIT_API_KEY="a long secret",
    )
    out, said = started.communicate()
    assert started.returncode == 23, said
    noted = json.loads(program.read_text(encoding="utf-8"))
    assert noted["process"] == started.pid
    port = noted["argv"][noted["argv"].index("--port") + 1]
    assert 1024 <= int(port) < 65536
    expected = launch("merged", address=Address("0.0.0.0", int(port), "a long secret"))
    assert noted["argv"][1:] == [*expected.argv[1:]]
    assert expected.environment.items() <= noted["environment"].items()
    assert "secret" not in " ".join(noted["argv"]) + out + said
    for path, text in expected.files.items():
        assert path.read_text(encoding="utf-8") == text
    warning, line = said.splitlines()
    assert warning == (
        "vLLM asks for the key under /v1 and its like only, and answers at /invocations without it. "
        "Put a proxy before it that passes /v1 alone."
    )
    assert line.startswith(f"Starting vLLM for merged at http://0.0.0.0:{port}/v1: {noted['argv'][0]} serve ")


def refused(*words: str, path: Path | None = None) -> tuple[int, str]:
    started = ftkit(*words, path=path)
    said = started.communicate()[1]
    return started.returncode, said


def test_an_open_address_needs_a_key(program):
    code, said = refused("first", "--engine", "vllm", "--host", "0.0.0.0", path=program.parent / "bin")
    assert (code, said.splitlines()[0]) == (2, "error: anybody could use the models at 0.0.0.0")
    assert not program.exists()


def test_without_vllm_the_fix_is_told():
    code, said = refused("first", "--engine", "vllm")
    assert code == 4
    assert said == (
        "error: vllm is not installed\n  --engine   Install it into an environment of its own (pip install vllm), and "
        "put the bin folder of that on the PATH. Or leave --engine out.\n"
    )


def test_a_port_that_is_taken_is_told_before_vllm_starts(program):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        code, said = refused("first", "--engine", "vllm", "--port", port, path=program.parent / "bin")
    assert (code, said.splitlines()[0]) == (4, f"error: 127.0.0.1 port {port} cannot be had")
    assert not program.exists()


def test_another_engine_is_refused():
    code, said = refused("first", "--engine", "tgi")
    assert code == 2
    assert "'tgi' is not one of 'transformers', 'vllm'" in " ".join(said.split())
