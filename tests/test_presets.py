"""Adapter presets: which file is found, what it may hold, and that what ships is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.errors import RecipeError
from ftkit.recipe.load import load
from ftkit.recipe.presets import find_preset, list_presets, shipped

RECIPE = "name: x\nbase: org/model\ntask: {type: classify}\ndata: {train: train.csv}\nadapter: "
SHIPPED = ["dora", "ia3", "loftq", "lora", "loraplus", "pissa", "qlora", "rslora"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def said(path: Path) -> list[tuple[str, str, str]]:
    with pytest.raises(RecipeError) as caught:
        load(path)
    return [(problem.where, problem.subject, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped().glob("*.yaml")))
def test_a_shipped_preset_is_valid_and_described(tmp_path: Path, name: str) -> None:
    load(write(tmp_path / "recipe.yaml", RECIPE + name))
    preset = {preset.name: preset for preset in list_presets(tmp_path)}[name]
    assert all(text.endswith(".") for text in (preset.about, preset.when, preset.cost)), preset
    assert "https://arxiv.org/abs/" in preset.path.read_text(encoding="utf-8")


def test_the_presets_that_ship(tmp_path: Path) -> None:
    assert [preset.name for preset in list_presets(tmp_path)] == SHIPPED


def test_what_the_presets_set(tmp_path: Path) -> None:
    found = {name: load(write(tmp_path / "recipe.yaml", RECIPE + name)).recipe.adapter for name in SHIPPED}
    assert (found["qlora"].quantize, found["dora"].dora, found["rslora"].rslora) == ("nf4", True, True)
    assert (found["loftq"].init, found["loftq"].quantize, found["loftq"].alpha) == ("loftq", "nf4", found["loftq"].r)
    assert (found["pissa"].init, found["loraplus"].lr_ratio, found["ia3"].type) == ("pissa", 16, "ia3")
    # rsLoRA divides by the root of the rank: the same scale as the preset lora
    assert found["rslora"].alpha / found["rslora"].r ** 0.5 == found["lora"].alpha / found["lora"].r


def test_the_nearest_preset_wins(tmp_path: Path) -> None:
    far = write(tmp_path / "adapters" / "mine.yaml", "# Mine.\n# Cost: nothing.\n#   Really.\ntype: lora\nr: 3\n")
    recipe = write(tmp_path / "a" / "b" / "recipe.yaml", RECIPE + "mine")
    assert load(recipe).recipe.adapter.r == 3
    near = write(tmp_path / "a" / "adapters" / "mine.yaml", "type: lora\nr: 4\n")
    assert load(recipe).recipe.adapter.r == 4
    assert find_preset("mine", tmp_path / "a" / "b") == near.resolve()
    assert find_preset("mine", tmp_path) == far.resolve()
    assert find_preset("../adapters/mine", tmp_path) is None
    listed = {preset.name: preset for preset in list_presets(tmp_path)}
    assert list(listed) == sorted([*SHIPPED, "mine"])
    assert (listed["mine"].about, listed["mine"].cost) == ("Mine.", "nothing. Really.")


def test_an_error_in_a_preset_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "adapters" / "mine.yaml", "# Mine.\ntype: lora\nr: 0\nr: 3\nalpa: 3\n")
    assert said(write(tmp_path / "recipe.yaml", RECIPE + "{preset: mine, dropout: 2}")) == [
        ("line 5", "adapter.dropout", "got 2. Write a number of at least 0 and below 1."),
        ("adapters/mine.yaml line 3", "adapter.r", "got 0. Write a whole number from 1 to 1024."),
        ("adapters/mine.yaml line 4", "r", "given twice (first in line 3). Keep one."),
        (
            "adapters/mine.yaml line 5",
            "adapter.alpa",
            "unknown key. Did you mean alpha? Keys here: alpha, dora, dropout, init, lr_ratio, modules_to_save, "
            "preset, quantize, r, rslora, targets, type.",
        ),
    ]


def test_a_value_of_the_recipe_hides_the_preset_s(tmp_path: Path) -> None:
    write(tmp_path / "adapters" / "mine.yaml", "type: lora\nr: 0\n")
    assert load(write(tmp_path / "recipe.yaml", RECIPE + "{preset: mine, r: 2}")).recipe.adapter.r == 2


@pytest.mark.parametrize(
    ("text", "subject", "message", "where"),
    [
        ("r: 3\n", "type", 'missing. Write a line such as "type: lora".', "adapters/mine.yaml line 1"),
        (
            "type: lora\npreset: lora\n",
            "adapter.preset",
            "a preset cannot name another. Write its keys in full.",
            "adapters/mine.yaml line 2",
        ),
        ("type: [\n", "", "a value is missing, or a bracket is not closed.", "line 1"),
        ("", "", "the file is empty. Start with a line such as name: sentiment.", "line 1"),
    ],
)
def test_a_preset_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, subject: str, message: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "adapters" / "mine.yaml", text)
    assert said(write(tmp_path / "recipe.yaml", RECIPE + "mine")) == [(where, subject, message)]
