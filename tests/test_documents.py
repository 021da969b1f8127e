"""README, recipes and changelog against the program: what they show works, and what they list is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ftkit
from ftkit.recipe.load import load
from tests.conftest import sentences, write_csv

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
ON_THE_HUB = sorted((ROOT / "recipes" / "hub").glob("*.yaml"))
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every command line of the README's shell blocks, comments removed."""
    lines = (line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path not in ON_THE_HUB], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_a_shipped_recipe_holds_and_says_what_it_costs(path):
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", "check", str(path), "--json"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    costs("\n".join(head), path)


@pytest.mark.parametrize("path", ON_THE_HUB, ids=lambda path: path.name)
def test_a_recipe_for_the_hub_holds_and_its_costs_are_marked_as_planned(path):
    recipe = load(path)
    assert recipe.recipe.name == path.stem
    text = "\n".join(line for line in recipe.text.splitlines() if line.startswith("#"))
    costs(text, path)
    assert "Planned, not measured" in text


def costs(text: str, path: Path) -> None:
    """The head of a recipe says how to run it, and what that takes."""
    assert f"ftkit run {path.relative_to(ROOT).as_posix()}" in text
    assert re.search(r"\d+ (s|min)\b", text), "how long it takes"
    assert re.search(r"\d+ (MB|GB|MiB|GiB)\b", text), "how much memory it takes"
    assert re.search(r"\d{4}-\d\d-\d\d", text), "when it was measured"


def test_the_readme_s_recipe_is_planned_run_and_used_as_it_says(tmp_path):
    """The user's five lines, on a small CSV and the real MiniLM: each `ftkit` line below them, in order."""
    (recipe,) = [block for block in blocks("yaml") if block.startswith("# my.yaml")]
    (tmp_path / "my.yaml").write_text(recipe, encoding="utf-8")
    write_csv(tmp_path / "rows.csv", sentences(300, 1))
    own = [line for line in commands() if line.startswith("ftkit") and ("my.yaml" in line or " mine" in line)]
    assert [line.split()[1] for line in own] == ["check", "run", "predict", "export"]
    for line in own:
        words = shlex.split(line)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "ftkit", *words], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    run = tmp_path / "runs" / "mine" / "latest"
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    folder = next(block for block in blocks("text") if block.startswith("runs/"))
    listed = {line.split()[0].strip("/") for line in folder.splitlines()[1:]}
    assert {"README.md", "recipe.yaml", "train.jsonl", "adapter", "predictions.jsonl", "merge.json"} <= listed
    assert all((run / name).exists() for name in listed)


def test_the_readme_s_recipe_for_texts_holds(tmp_path):
    (recipe,) = [block for block in blocks("yaml") if block.startswith("# words.yaml")]
    (tmp_path / "words.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "notes").mkdir()
    for number in range(20):
        (tmp_path / "notes" / f"{number}.txt").write_text(
            f"Note {number}. " + "Words of my own. " * 9, encoding="utf-8"
        )
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", "check", "words.yaml"],
        cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "14 documents" in done.stdout


def test_the_readme_s_recipe_for_answers_holds(tmp_path):
    (recipe,) = [block for block in blocks("yaml") if block.startswith("# answers.yaml")]
    (tmp_path / "answers.yaml").write_text(recipe, encoding="utf-8")
    pairs = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", "check", "answers.yaml"],
        cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "▸It is " in done.stdout  # what is learned is marked


def test_make_targets_of_the_readme_exist():
    for line in commands():
        if line.startswith("make"):
            done = subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_pip_lines_and_makefile_install_the_same():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands():
        if "pip install" in line:
            wanted = line.partition("pip install ")[2]
            assert f"pip install --quiet {wanted}" in makefile, wanted


def test_every_folder_and_module_stands_in_the_readme_s_tree():
    tree = next(block for block in blocks("text") if block.startswith("adapters/"))
    listed = [line.split()[0] for line in tree.splitlines() if line.strip()]
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "ftkit").iterdir()
        if not path.name.startswith("_")
    }
    assert sorted(name for name in listed if name in there or name.endswith(".py")) == sorted(there)
    assert {"adapters/", "recipes/", "tests/", "docs/", "benchmarks/"} <= set(listed)


def test_the_page_of_recipe_keys_is_current():
    made = subprocess.run([sys.executable, "-m", "ftkit", "schema", "--markdown"], capture_output=True, text=True)
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == made.stdout, (
        "run: ftkit schema --markdown > docs/recipe.md"
    )


def test_the_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (Unreleased|{re.escape(ftkit.__version__)})", changelog, re.MULTILINE)


def test_the_shipped_recipe_has_the_gate_that_its_header_speaks_of():
    """The sentiment recipe is merged only where it beats the probe."""
    recipe = load(ROOT / "recipes" / "sentiment.yaml").recipe
    assert recipe.gate["f1"].beat == "baseline"
    assert recipe.gate["f1"].min == 0.80
