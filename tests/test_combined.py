"""Runs of different tasks on one base, combined by the command's own function and measured on the rows of each."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from ftkit.errors import DataError, GateNotMet, RecipeError
from tests.conftest import sentences
from tests.conversations import carried_out, lines, read, write_recipe, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")
COMMON = {"adapter": "{type: lora, r: 4}", "merge": "false"}
EVAL = "{metrics: [exact_match, perplexity]}"


@pytest.fixture(scope="module")
def place(decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs on one base: "says" answers, "labels" classifies by words, "tells" goes on with texts."""
    folder = tmp_path_factory.mktemp("place")
    base = decoder("llama")
    with contextlib.chdir(folder):
        for name, count, seed in (("train", 32, 1), ("valid", 8, 2), ("test", 12, 3)):
            rows = [{"text": text, "label": label} for text, label in sentences(count, seed)]
            write_rows(folder / f"labels-{name}.jsonl", rows)
        data = "{train: labels-train.jsonl, valid: labels-valid.jsonl, test: labels-test.jsonl}"
        train = "{epochs: 2, batch_size: 8, learning_rate: 1e-2, seed: 7}"
        recipe = write_recipe(folder, base, eval=EVAL, train=train, **COMMON)
        carried_out(recipe, folder / "says")
        task = "{type: classify, words: {prompt: 'Good or bad? {text}'}}"
        carried_out(write_recipe(folder, base, task=task, data=data, train=train, **COMMON), folder / "labels")
        train = "{epochs: 1, batch_size: 8, learning_rate: 1e-3, max_length: 32, seed: 7}"
        task = "{type: pretrain, samples: 0}"
        texts = data.replace("}", ", columns: {text: text}}")
        carried_out(write_recipe(folder, base, task=task, data=texts, train=train, **COMMON), folder / "tells")
    return folder


def merge_several(place: Path, sources: list[str], out: Path, method: str, weights=(), **settings) -> dict:
    """What the command prints as JSON."""
    from ftkit.cli.merge_several import merge_several

    given = {"density": None, "rank": None, "seed": 0} | settings
    printed = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        merge_several(sources, None, out, method, list(weights), **given, json=True)
    return json.loads(printed.getvalue())


@pytest.mark.parametrize(("method", "settings"), [("ties", {"density": 0.5}), ("cat", {})])
def test_the_result_is_measured_on_the_rows_of_each_run(place, tmp_path, method, settings):
    """Every metric of each run, by its own model, the base as the run reported it, and the combined one."""
    said = merge_several(place, ["says", "labels", "tells"], tmp_path / "out", method, **settings)
    assert said["measured"] == read(tmp_path / "out", "combined.json")["measured"]
    assert [adapter["weight"] for adapter in said["adapters"]] == [1.0, 1.0, 1.0]
    for run in ("says", "labels", "tells"):
        reported, own = read(place / run, "eval.json"), [row for row in said["measured"] if row["run"] == run]
        metrics = reported["models"]["adapter"]["metrics"]
        assert {row["metric"] for row in own} == metrics.keys() - {"out_of_label"}
        for row in own:
            assert row["n"] == reported["n"]
            assert row["own"] == pytest.approx(metrics[row["metric"]], rel=1e-3, abs=1e-4)
            assert row["baseline"] == reported["models"]["baseline"]["metrics"].get(row["metric"])
            if row["difference"] is not None:
                assert row["difference"] == pytest.approx(row["combined"] - row["own"])
                assert row["ci95"][0] <= row["ci95"][1]
    assert any(row["combined"] != row["own"] for row in said["measured"])


def test_a_combination_of_one_run_with_nothing_is_that_run(place, tmp_path):
    """The other's weight is 0, so the run's own rows come out as they were, and the other's as the base's."""
    said = merge_several(place, ["says", "tells"], tmp_path / "out", "linear", [1.0, 0.0])
    own = {row["metric"]: row for row in said["measured"] if row["run"] == "says"}
    assert own["perplexity"]["combined"] == pytest.approx(own["perplexity"]["own"], rel=1e-4)
    assert own["exact_match"]["difference"] == 0
    tells = next(row for row in said["measured"] if row["run"] == "tells" and row["metric"] == "perplexity")
    assert tells["combined"] != pytest.approx(tells["own"], rel=1e-4)
    back = merge_several(place, ["says", "tells"], tmp_path / "out", "svd", [0.0, 1.0], rank=4)
    row = next(row for row in back["measured"] if row["run"] == "tells" and row["metric"] == "perplexity")
    assert row["combined"] == pytest.approx(row["own"], rel=1e-4)


def test_the_table_is_for_people(place, tmp_path, capsys):
    from ftkit.cli.merge_several import merge_several

    with contextlib.chdir(place):
        merge_several(["says", "tells"], None, tmp_path / "out", "linear", [], None, None, 0, json=False)
    said = capsys.readouterr().out
    head, *rows, last = [line for line in said.splitlines() if line.strip()]
    assert head.split("  ")[0] == "test rows of"
    assert head.split()[3:] == ["metric", "base", "own", "combined", "difference", "95%", "interval"]
    assert any(row.startswith("says (16)") and "Exact match" in row for row in rows)
    assert any(row.startswith("tells (") for row in rows)
    assert last.startswith(f"{tmp_path / 'out'}: merged, 2 adapters by linear, float32; ")


def test_folders_of_adapters_are_combined_without_rows(place, tmp_path):
    """A sum of folders knows no rows; of a base that is another than that of training it is refused."""
    folders = [str(shutil.copytree(place / run / "adapter", tmp_path / run)) for run in ("says", "tells")]
    said = merge_several(place, folders, tmp_path / "out", "dare_linear", [0.5, 0.5], density=0.5, seed=3)
    assert "measured" not in said
    assert (said["density"], said["seed"]) == (0.5, 3)
    note = tmp_path / "says" / "ftkit.json"
    if note.exists():
        changed = read(note.parent, note.name) | {"base_sha256": "0" * 64}
        for run in ("says", "tells"):
            (tmp_path / run / "ftkit.json").write_text(json.dumps(changed), encoding="utf-8")
        before = sorted(path.name for path in (tmp_path / "out").iterdir())
        with pytest.raises(DataError, match="is another base"):
            merge_several(place, folders, tmp_path / "out", "linear")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_what_cannot_be_measured_or_written_is_refused_before(place, tmp_path, pico):
    out = tmp_path / "out"
    with contextlib.chdir(place):
        data = "{train: labels-train.jsonl, valid: labels-valid.jsonl, test: labels-test.jsonl}"
        path = write_recipe(place, pico("bert"), task="{type: classify}", data=data, **COMMON)
        carried_out(path, place / "head")
    with pytest.raises(RecipeError) as caught:
        merge_several(place, ["says", "head"], out, "linear")
    assert str(caught.value) == (
        "error: head cannot be combined\n"
        "  RUN   It has a head of its own, which no sum can share. Give runs with task.words, or of language models."
    )
    failed = shutil.copytree(place / "says", tmp_path / "failed")
    report = read(failed, "eval.json")
    report["gate"] = {"passed": False, "undecided": [], "reasons": [
        {"metric": "perplexity", "need": "at most 1", "got": "2", "passed": False}]}  # fmt: skip
    (failed / "eval.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(GateNotMet):
        merge_several(place, [str(failed), "tells"], out, "linear")
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        merge_several(place, ["says", "tells"], out, "linear")
    assert str(caught.value) == (
        f"error: {out} is not empty\n"
        "  --out   It holds no earlier combination (combined.json). Choose a folder of its own."
    )


def test_rows_that_have_changed_are_said(place, tmp_path):
    moved = shutil.copytree(place, tmp_path / "moved")
    plan = read(moved / "tells", "plan.json")
    plan["command"] = plan["command"].replace(str(place), str(moved))
    (moved / "tells" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    texts = lines(moved, "labels-test.jsonl")
    write_rows(moved / "labels-test.jsonl", [*texts[:-1], {"text": "another text now", "label": "good"}])
    with pytest.raises(DataError) as caught:
        merge_several(moved, ["tells", "says"], tmp_path / "out", "linear")
    assert str(caught.value) == (
        "error: a run's own rows cannot be read again\n"
        "  tells   They are gone or have changed since it was trained. Put them back as they were."
    )
    assert not (tmp_path / "out").exists()
