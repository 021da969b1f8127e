"""Bad input through the real command line: exact words, exit code, no traceback, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import sentences, write_csv

CASES = yaml.safe_load((Path(__file__).parent / "cases" / "bad_input.yaml").read_text(encoding="utf-8"))
SOUND = {
    "name": "pico",
    "base": "{base}",
    "task": "{type: classify}",
    "data": "{train: train.csv, test: test.csv}",
    "adapter": "lora",
}
# Written where a case's recipe names them and its files do not hold them.
PAIRS = {
    "train.jsonl": [{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(6)],
    "test.jsonl": [{"question": "Which is it?", "answer": "This."}, {"question": "Where is it?", "answer": "There."}],
}
# What a run says of its own accord before it refuses: stages, notes, and warnings about the data.
_PROGRESS = re.compile(r"^(\[.*|          .*|warning: .*)\n", re.MULTILINE)


def prepare(folder: Path, case: dict[str, Any], base: Path) -> None:
    folder.mkdir()
    train = write_csv(folder / "train.csv", sentences(60, 1))
    write_csv(folder / "test.csv", sentences(60, 3))
    (folder / "data").mkdir()
    (folder / "data" / "notes.md").write_text("x")
    lines = case.get("lines", [])
    kept = [f"{key}: {value}" for key, value in SOUND.items() if not any(line.startswith(f"{key}:") for line in lines)]
    recipe = case.get("recipe", "\n".join([*kept, *lines]) + "\n")
    (folder / "recipe.yaml").write_text(recipe.replace("{base}", str(base)), encoding="utf-8")
    for name, rows in PAIRS.items():
        if name in recipe and name not in case.get("files", {}):
            (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for name, text in case.get("files", {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace("{train}", train.read_text()), encoding="utf-8")
    for name, text in case.get("latin1", {}).items():
        (folder / name).write_bytes(text.encode("latin-1"))


def inside(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=[case["about"] for case in CASES])
def test_bad_input_is_told_exactly_and_leaves_nothing(case, tmp_path, pico):
    folder, base = tmp_path / "case", pico("bert")
    prepare(folder, case, base)
    before = inside(folder)
    command = [sys.executable, "-m", "ftkit", *case["command"].split()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment)
    said = done.stderr.replace(str(folder.resolve()), "HERE").replace(str(folder), "HERE").replace(str(base), "{base}")
    assert (_PROGRESS.sub("", said), done.returncode) == (case["says"], case["code"])
    assert done.stdout == ""
    assert inside(folder) == before


def test_the_table_covers_every_code_that_input_can_cause():
    assert len(CASES) >= 40
    assert {case["code"] for case in CASES} == {2, 3, 4}
    assert len({case["about"] for case in CASES}) == len(CASES)
