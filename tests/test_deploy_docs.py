"""docs/deploy.md against the program: every block that is not marked as "not run here" runs, in order, in one folder."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ftkit.console import Console
from ftkit.hub_card import hub_card
from ftkit.pipeline import Request, run
from tests.conftest import sentences, write_csv
from tests.conversations import carried_out, write_recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "deploy.md"
TEXT = PAGE.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block, with the text between it and what stands above it: another block or a heading."""

    language: str
    tested: bool
    code: str
    above: str

    @property
    def name(self) -> str:
        lines = [line for line in self.code.splitlines() if not line.startswith("#")]
        return " ".join(lines[0].split("#")[0].split()[:5])


def blocks() -> list[Block]:
    found, end = [], 0
    for fence in re.finditer(r"^```(\w+)( test)?\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        above = re.split(r"^#+ .*$", TEXT[end : fence.start()], flags=re.MULTILINE)[-1]
        found.append(Block(fence[1], bool(fence[2]), fence[3], above))
        end = fence.end()
    return found


TESTED = [block for block in blocks() if block.tested]
OTHERS = [block for block in blocks() if not block.tested]


@pytest.fixture(scope="module")
def folder(decoder, pico, tmp_path_factory, one_thread) -> Path:
    """A folder with the two runs that the page speaks of."""
    folder = tmp_path_factory.mktemp("deploy")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        learning = {
            "train": "{epochs: 10, batch_size: 8, learning_rate: 1e-2, seed: 7}",
            "eval": "{metrics: [perplexity]}",
        }
        carried_out(write_recipe(folder, decoder("llama"), name="helper", **learning), Path("runs/helper/1"))
        for name, rows, seed in (("train", 96, 1), ("valid", 24, 2), ("test", 60, 3)):
            write_csv(folder / f"{name}.csv", sentences(rows, seed))
        keys = {
            "name": "sentiment",
            "base": str(pico("bert")),
            "task": "{type: classify, labels: [bad, good]}",
            "data": "{train: train.csv, valid: valid.csv, test: test.csv}",
            "adapter": "{type: lora, r: 8}",
            "train": "{epochs: 2, batch_size: 8, learning_rate: 5e-3, seed: 7}",
        }
        path = folder / "sentiment.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")
        run(Request(path, out=Path("runs/sentiment/1")), Console(quiet=True, results=False))
    return folder


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("block", TESTED, ids=lambda block: block.name)
def test_a_block_does_what_the_page_says(folder, block):
    own = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{own}{os.pathsep}{os.environ['PATH']}",
        "NO_PROXY": "*",
    }
    environment.pop("FTKIT_API_KEY", None)
    code = block.code.replace("8000", free_port())
    shell = shutil.which("bash")
    assert shell is not None
    command = [sys.executable, "-c", code] if block.language == "python" else [shell, "-e", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"
    check_output(folder, block, done.stdout)


def check_output(folder: Path, block: Block, said: str) -> None:
    """What a command prints or writes, where its exit code alone does not tell."""
    match block.code.split():
        case ["ftkit", "merge", *_]:
            for name in ("helper-merged", "plain-merged"):
                assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
                    p.name for p in (folder / name).iterdir()
                }
        case ["import", *_]:
            chances = ast.literal_eval(said)
            assert set(chances) == {"bad", "good"}
            assert sum(chances.values()) == pytest.approx(1, abs=2e-3)
        case ["ftkit", "predict", *_]:
            labelled, answered = said.splitlines()
            assert re.match(r"(bad|good) +bad 0\.\d{3}  good 0\.\d{3}   Worth every cent\.", labelled)
            assert answered == "meow"
        case ["ftkit", "serve", *_]:
            # The answers follow each other without a line between.
            answers = [json.loads(f"{{{part}}}") for part in re.split(r"\}\s*\{", said.strip()[1:-1])]
            assert [answer.get("object") for answer in answers] == [None, "chat.completion", "list"]
            assert answers[1]["choices"][0]["message"]["content"]
            assert len(answers[2]["data"]) == 2
        case ["ftkit", "export", "helper", "--card", *_]:
            assert said.endswith(hub_card(folder / "runs" / "helper" / "latest"))


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.name)
def test_what_is_not_run_is_marked_so(block):
    assert "not run here" in " ".join(f"{block.above}\n{block.code}".lower().split())
    if block.language == "yaml":
        assert {"resources", "setup", "run", "file_mounts"} <= set(yaml.safe_load(block.code))


def test_own_commands_that_are_not_run_exist():
    """Those that need a network or an open port: their verbs and options at least."""
    lines = "".join(block.code for block in OTHERS).splitlines()
    own = [match[1] for line in lines if (match := re.search(r"(?:^|\s)ftkit ((?!\[)\w+.*)", line))]
    assert {line.split()[0] for line in own} == {"serve", "push"}
    for line in own:
        verb, *words = line.split("#")[0].split()
        helped = subprocess.run([sys.executable, "-m", "ftkit", verb, "--help"], capture_output=True, text=True)
        for option in (word for word in words if word.startswith("--")):
            assert option in helped.stdout, f"{verb} {option}"


def test_links_inside_the_page_lead_somewhere():
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= slugs
    assert (PAGE.parents[1] / "tests" / Path(__file__).name).exists()
