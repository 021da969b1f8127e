"""The command line in fresh processes: predict, the lists, --json, the card's own code, and how a run is interrupted."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit import __version__
from tests.conftest import sentences, write_csv

RECIPE = """\
name: pico
base: {base}
task: {{type: classify, labels: [bad, good]}}
data: {{train: train.csv, valid: valid.csv, test: test.csv}}
adapter: lora
train: {{epochs: 4, batch_size: 8, learning_rate: 5e-3, seed: 7}}
gate: {{accuracy: {{min: 0.5}}}}
"""
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def ftkit(*words: str, folder: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftkit", *words]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, encoding="utf-8", env=ENVIRONMENT)


def prepare(folder: Path, base: Path) -> None:
    for name, rows, seed in (("train", 96, 1), ("valid", 24, 2), ("test", 60, 3)):
        write_csv(folder / f"{name}.csv", sentences(rows, seed))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base), encoding="utf-8")


@pytest.fixture(scope="module")
def place(pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run is finished, made by the command line; its output stands in done.json."""
    folder = tmp_path_factory.mktemp("place")
    prepare(folder, pico("bert"))
    done = ftkit("run", "recipe.yaml", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "done.json").write_text(done.stdout, encoding="utf-8")
    assert "Traceback" not in done.stderr
    return folder


def test_json_of_a_run_is_json_alone(place):
    printed = json.loads((place / "done.json").read_text(encoding="utf-8"))
    assert set(printed["models"]) == {"majority", "baseline", "adapter", "merged"}
    stored = json.loads((place / printed["run"] / "eval.json").read_text(encoding="utf-8"))
    assert {name: value for name, value in printed.items() if name != "run"} == stored
    assert printed["gate"]["passed"]
    for scores in stored["models"].values():
        assert [item["average"] for item in scores["averages"]] == ["macro", "micro", "weighted"]
        assert scores["averages"][0]["f1"] == pytest.approx(scores["metrics"]["f1"])


def test_predict_labels_texts_from_everywhere_alike(place):
    texts = ["the film was great", 'a, comma and "quotes"', "the soup was awful"]
    given = ftkit("predict", "pico", *[word for text in texts for word in ("--text", text)], "--json", folder=place)
    expected = [json.loads(line) for line in given.stdout.splitlines()]
    assert [row["input"] for row in expected] == texts
    assert [row["prediction"] for row in expected] == [[max(row["scores"], key=row["scores"].get)] for row in expected]
    assert all(sum(row["scores"].values()) == pytest.approx(1) for row in expected)
    piped = ftkit("predict", "pico", "--json", folder=place, stdin="\n".join(texts) + "\n")
    assert piped.stdout == given.stdout
    write_csv(place / "in.csv", [(text, "") for text in texts])
    (place / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for source, target in (("in.csv", "out.jsonl"), ("in.jsonl", "out.csv")):
        assert ftkit("predict", "pico", "--in", source, "--out", target, folder=place).returncode == 0
    lines = (place / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == expected
    with (place / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], [row["prediction"]], float(row["bad"])) for row in rows] == [
        (row["input"], row["prediction"], row["scores"]["bad"]) for row in expected
    ]


def test_predict_leaves_no_half_written_file(place):
    (place / "broken.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n', encoding="utf-8")
    done = ftkit("predict", "pico", "--in", "broken.jsonl", "--out", "half.csv", folder=place)
    assert done.returncode == 3
    assert "line 2" in done.stderr
    assert [path.name for path in place.iterdir() if "half" in path.name] == []


def test_predict_holds_few_rows_at_a_time(place):
    """What is read ahead of an answer is bounded, so memory does not grow with the input."""
    from ftkit.models.hardware import settle_machine
    from ftkit.predict import load_predictor
    from ftkit.rundir import RunDir

    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "the film was great"

    run = RunDir(place / json.loads((place / "done.json").read_text())["run"])
    answers = load_predictor(run, settle_machine()).predict(endless())
    for answered in range(1, 5000):
        next(answers)
        assert read <= answered + 1024


def test_a_run_measured_again_gives_its_own_figures(place):
    again = json.loads(ftkit("eval", "pico", "--json", folder=place).stdout)
    stored = json.loads((place / "runs" / "pico" / "latest" / "eval.json").read_text(encoding="utf-8"))
    assert again["data_sha256"] == stored["data_sha256"]
    assert again["largest_difference"] < 1e-4
    for name, value in stored["models"]["merged"]["metrics"].items():
        assert again["models"]["merged"]["metrics"][name] == pytest.approx(value, abs=1e-4)


def test_a_run_is_measured_on_other_rows(place):
    write_csv(place / "more.csv", sentences(40, 9))
    shown = ftkit("eval", "pico", "--data", "more.csv", folder=place)
    assert "more.csv, 40 rows" in shown.stdout
    assert "difference" not in shown.stdout
    write_csv(place / "odd.csv", [("the film was great", "good"), ("the soup was poor", "bda")])
    refused = ftkit("eval", "pico", "--data", "odd.csv", folder=place)
    assert (refused.returncode, refused.stderr) == (
        3,
        "error: odd.csv has 1 problem\n"
        "  odd.csv line 3   label   'bda' is no label of the run (bad, good). Did you mean bad? Correct it.\n",
    )


def test_runs_are_compared_on_the_same_rows(place, pico, tmp_path):
    """A second run with another seed: the difference is that of the two eval.json, and the test is paired."""
    second = ["--set", "train.seed=8", "--set", "merge=false", "--set", "train.epochs=1", "--out", "second"]
    assert ftkit("run", "recipe.yaml", *second, folder=place).returncode == 0
    done = ftkit("compare", "pico", "second", "--json", folder=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, other = list(found["models"])
    (pair,) = found["comparison"]
    assert pair == f"{other}_vs_{first}"
    stored = [json.loads((place / run / "eval.json").read_text()) for run in ("runs/pico/latest", "second")]
    for name, report in zip((first, other), stored, strict=True):
        assert found["models"][name]["metrics"]["f1"] == pytest.approx(report["models"]["adapter"]["metrics"]["f1"])
    f1 = next(item for item in found["comparison"][pair] if item["metric"] == "f1")
    scores = [found["models"][name]["metrics"]["f1"] for name in (other, first)]
    assert f1["difference"] == pytest.approx(scores[0] - scores[1])
    assert first in ftkit("compare", "pico", "second", folder=place).stdout
    assert ftkit("compare", "pico", folder=place).returncode == 2
    assert ftkit("compare", "pico", "pico", folder=place).returncode == 2
    other_rows = json.loads((place / "second" / "eval.json").read_text())
    lines = (place / "second" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "recipe.yaml").write_text("name: cut\n")
    (tmp_path / "cut" / "plan.json").write_text((place / "second" / "plan.json").read_text(encoding="utf-8"))
    (tmp_path / "cut" / "eval.json").write_text(json.dumps(other_rows))
    (tmp_path / "cut" / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused = ftkit("compare", "pico", str(tmp_path / "cut"), folder=place)
    assert refused.returncode == 3
    assert "was measured on other rows" in refused.stderr


ROWS = "id,opinion,stars\n1,it was a lovely evening,5\n2,it was a dreadful evening,1\n3,so so,yes\n" + "".join(
    f"{n},something about number {n},{(n % 2 and 5) or 1}\n" for n in range(4, 60)
)


def test_init_writes_a_recipe_that_holds(tmp_path, pico):
    """Columns with unknown names are found by what they hold; labels that YAML would misread are quoted."""
    (tmp_path / "My Rows.csv").write_text(ROWS, encoding="utf-8")
    done = ftkit("init", "My Rows.csv", "--base", str(pico("bert")), folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "my-rows.yaml is written. Next: ftkit check my-rows.yaml\n"), (
        done.stderr
    )
    written = (tmp_path / "my-rows.yaml").read_text(encoding="utf-8")
    assert "columns: {text: opinion, label: stars}" in written
    assert "labels: ['1', '5', 'yes']" in written
    assert ftkit("check", "my-rows.yaml", folder=tmp_path).returncode == 0
    again = ftkit("init", "My Rows.csv", folder=tmp_path)
    assert (again.returncode, again.stderr.splitlines()[0]) == (2, "error: my-rows.yaml exists")
    assert (tmp_path / "my-rows.yaml").read_text(encoding="utf-8") == written
    (tmp_path / "my-rows.yaml").unlink()
    wrong = ftkit("init", "My Rows.csv", "--label", "star", folder=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: My Rows.csv has no column star\n  --label   Did you mean stars? Columns here: id, opinion, stars.\n",
    )
    assert not (tmp_path / "my-rows.yaml").exists()


def test_init_on_texts_writes_a_recipe_for_a_language_model(tmp_path):
    """A folder of texts and a file whose name YAML would read as a number."""
    (tmp_path / "notes").mkdir()
    for number in range(12):
        (tmp_path / "notes" / f"{number}.txt").write_text(f"Note {number}. " + "Some words. " * 30, encoding="utf-8")
    (tmp_path / "7.jsonl").write_text('{"text": "one two three"}\n' * 3, encoding="utf-8")
    for source, name in (("notes/", "notes"), ("7.jsonl", "7")):
        done = ftkit("init", source, folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{name}.yaml is written. Next: ftkit check {name}.yaml\n")
        assert "task: {type: pretrain}" in (tmp_path / f"{name}.yaml").read_text(encoding="utf-8")
    assert ftkit("check", "notes.yaml", folder=tmp_path).returncode == 0
    refused = ftkit("check", "7.yaml", folder=tmp_path)
    assert refused.returncode == 3  # three equal rows are one document: too few to split, and the recipe itself holds
    (tmp_path / "ids.jsonl").write_text('{"number": 1}\n', encoding="utf-8")
    assert ftkit("init", "ids.jsonl", folder=tmp_path).stderr == (
        "error: ids.jsonl has 1 problem\n"
        "  the only column is number. A text and a label are needed, or a column named text alone.\n"
    )


def test_the_lists_tell_people_and_programs_the_same(place):
    (run,) = json.loads(ftkit("ls", "--json", folder=place).stdout)
    assert run["state"] == "merged"
    (listed,) = ftkit("ls", folder=place).stdout.splitlines()[1:]
    assert listed.split() == [run["run"], "merged", "f1", f"{run['score']:.3f}"]
    shown = json.loads(ftkit("show", "pico", "--json", folder=place).stdout)
    assert shown["merge"]["passed"]
    assert (
        f"{shown['eval']['models']['adapter']['metrics']['f1']:.3f}" in ftkit("show", run["run"], folder=place).stdout
    )
    presets = json.loads(ftkit("adapters", "--json", folder=place).stdout)
    assert {preset["name"] for preset in presets} >= {"lora", "qlora", "ia3"}
    checks = json.loads(ftkit("doctor", "--json", folder=place).stdout)
    assert {"torch", "GPU", "memory", "disk"} <= {line["name"] for line in checks["checks"]}
    assert ftkit("--version", folder=place).stdout == f"ftkit {__version__}\n"


def test_check_and_run_agree_on_what_is_decided(place):
    checked = json.loads(ftkit("check", "recipe.yaml", "--json", folder=place).stdout)
    planned = json.loads((place / "runs" / "pico" / "latest" / "plan.json").read_text(encoding="utf-8"))
    for part in ("recipe", "decisions", "data"):
        assert checked[part] == planned[part]
    assert {"train.max_length", "adapter.dropout"} <= {decision["key"] for decision in planned["decisions"]}


def test_the_manifest_holds_every_file_and_no_file_is_private(place):
    from ftkit.files import sha256_file

    folder = (place / "runs" / "pico" / "latest").resolve()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert {folder / name for name in manifest} == files - {folder / "manifest.json"}
    for name, entry in manifest.items():
        assert entry == {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
    assert {path.stat().st_mode & 0o444 for path in files} == {0o444}


def test_the_code_in_the_card_runs_without_ftkit(place):
    """Both code blocks, each in a fresh process in the run's folder: plain peft and plain transformers."""
    folder = (place / "runs" / "pico" / "latest").resolve()
    card = (folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    text = "the film was great and lovely"
    expected = json.loads(ftkit("predict", "pico", "--text", text, "--json", folder=place).stdout)["scores"]
    for block in blocks:
        assert "ftkit" not in block
        code = block.replace("your text", text)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        found = ast.literal_eval(done.stdout.strip().splitlines()[-1])
        scores = found if isinstance(found, dict) else {item["label"]: item["score"] for item in found}
        assert scores == pytest.approx(expected, abs=1e-4)


def test_the_adapter_names_its_base_and_no_private_folder(place, pico):
    folder = place / "runs" / "pico" / "latest"
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(pico("bert").resolve())  # a folder's only address is its path
    facts = json.loads((folder / "adapter" / "labels.json").read_text(encoding="utf-8"))
    assert facts == {"labels": ["bad", "good"], "multi_label": False, "thresholds": [], "max_length": 16}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_says_how_to_go_on(tmp_path, pico, number):
    prepare(tmp_path, pico("bert"))
    words = ["run", "recipe.yaml", "--set", "train.epochs=200", "--set", "gate={f1: {min: 0.1}}", "--out", "cut"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ftkit", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    log = tmp_path / "cut" / "train.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("grad_norm") < 3):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    advice = errors.splitlines()[-1].strip()
    assert advice == (
        "Go on with: ftkit run recipe.yaml --set train.epochs=200 --set 'gate={f1: {min: 0.1}}' --out cut --resume"
    )
    assert not (tmp_path / "cut" / ".owner").exists()
    assert list((tmp_path / "cut" / "checkpoints").glob("checkpoint-*/trainer_state.json"))
