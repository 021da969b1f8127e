"""What a killed process leaves of a folder that it was replacing, and who puts it right."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit.errors import RecipeError
from ftkit.files import put_back, writing_folder
from ftkit.models.locate import locate
from ftkit.rundir import RunDir, find_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
# Dies at an event of Python's own audit log, by its number: a rename is told before it is made.
KILLED = """
import os, signal, sys
from pathlib import Path
from ftkit.files import writing_folder

path, event, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def die(name, arguments):
    global number
    if name == event:
        number -= 1
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)

with writing_folder(path) as folder, writing_folder(folder) as inner:
    (inner / "weights").write_text("new")
    (inner / "large").write_bytes(bytes(1000))
    sys.addaudithook(die)
"""
# The two renames of the inner folder, the removal of what it replaced, and the same again of the outer one.
POINTS = {
    "before anything": ("os.rename", 1),
    "within, between its renames": ("os.rename", 2),
    "within, after its renames": ("shutil.rmtree", 1),
    "before the first rename": ("os.rename", 3),
    "between the renames": ("os.rename", 4),
    "after the renames": ("shutil.rmtree", 2),
}
WRITER = """
import sys
from pathlib import Path
from ftkit.files import writing_folder

path, text, asked = Path(sys.argv[1]), sys.argv[2], []

def tell(name, arguments):
    if name == "open" and str(arguments[0]).endswith("-lock") and not asked:
        asked.append(name)
        print("asks", flush=True)

sys.addaudithook(tell)
with writing_folder(path) as folder:
    (folder / "weights").write_text(text)
    before = (path / "weights").read_text() if path.exists() else "nothing"
    print(before, flush=True)
    sys.stdin.readline()
"""


def killed(path: Path, point: str) -> None:
    event, number = POINTS[point]
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), event, str(number)])
    assert done.returncode == -signal.SIGKILL


def write(path: Path, text: str) -> None:
    with writing_folder(path) as folder:
        (folder / "weights").write_text(text)


def text_of(path: Path) -> str:
    return (path / "weights").read_text()


def beside(path: Path) -> list[str]:
    """What else stands there but the folder, and others that no killed writer may cost."""
    return sorted(each.name for each in path.parent.iterdir() if each.name not in (path.name, "notes"))


NEW_FROM = "after the renames"


@pytest.mark.parametrize("point", POINTS)
def test_the_next_write_finds_all_in_order(tmp_path, point):
    path = tmp_path / "model"
    write(path, "old")
    (tmp_path / "notes").mkdir()
    killed(path, point)
    assert beside(path)
    with writing_folder(path) as folder:
        assert text_of(path) == ("new" if point == NEW_FROM else "old")
        assert len(beside(path)) == 2  # its own folder, and its lock
        (folder / "weights").write_text("newest")
    assert text_of(path) == "newest"
    assert beside(path) == []
    assert (tmp_path / "notes").is_dir()


@pytest.mark.parametrize("point", [*POINTS][:4])
def test_the_first_write_after_a_first_one_that_was_killed(tmp_path, point):
    path = tmp_path / "model"
    killed(path, point)
    assert not path.exists()
    assert beside(path)
    write(path, "newest")
    assert text_of(path) == "newest"
    assert beside(path) == []


@pytest.mark.parametrize("point", POINTS)
def test_a_reader_finds_one_of_the_two_whole(tmp_path, point):
    path = tmp_path / "model"
    write(path, "old")
    killed(path, point)
    assert path.exists() == (point != "between the renames")
    put_back(path)
    assert text_of(path) == ("new" if point == NEW_FROM else "old")
    assert (path / "large").exists() == (point == NEW_FROM)


class TestWhoPutsItBack:
    @pytest.fixture
    def interrupted(self, tmp_path) -> Path:
        run = tmp_path / "run"
        for name in ("adapter", "merged"):
            write(run / name, f"old {name}")
        (run / "recipe.yaml").write_text("name: x\n")
        for name in ("adapter", "merged"):
            killed(run / name, "between the renames")
            assert not (run / name).exists()
        return run

    def test_finding_a_run(self, interrupted):
        run = find_run(str(interrupted))
        assert [text_of(run.adapter), text_of(run.merged)] == ["old adapter", "old merged"]

    def test_writing_to_a_run(self, interrupted):
        with RunDir(interrupted).locked():
            assert text_of(interrupted / "merged") == "old merged"

    def test_a_base_in_a_folder(self, interrupted):
        assert text_of(locate(str(interrupted / "merged"), Path.cwd(), weights=True).folder) == "old merged"

    @pytest.mark.parametrize("command", ["merge", "export"])
    def test_the_model_that_a_command_is_given(self, interrupted, command):
        from ftkit.cli.export import export_model
        from ftkit.cli.merge import merge_adapters

        path = interrupted / "merged"
        commands = {
            "merge": lambda: merge_adapters([str(path)], None, path / "out", None, None, prove=False, json=False),
            "export": lambda: export_model(str(path), "safetensors", None, json=False),
        }
        with pytest.raises(RecipeError):  # it is no model at all, but it is there
            commands[command]()
        assert text_of(path) == "old merged"

    def test_nothing_else_is_touched(self, tmp_path):
        for name in (".vimrc.old", ".model.old", ".model.ftkit-new.note"):
            (tmp_path / name).mkdir()
        put_back(tmp_path / "model")
        write(tmp_path / "model", "new")
        assert beside(tmp_path / "model") == [".model.ftkit-new.note", ".model.old", ".vimrc.old"]


def test_a_living_writer_is_waited_for_and_loses_nothing(tmp_path):
    path = tmp_path / "model"
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "first"], **pipes) as first:
        assert first.stdout.readline() == "asks\n"
        assert first.stdout.readline() == "nothing\n"
        with subprocess.Popen([*command, "second"], **pipes) as second:
            assert second.stdout.readline() == "asks\n"
            (fresh,) = tmp_path.glob(".model.ftkit-new.*")
            assert text_of(fresh) == "first"
            first.communicate("\n")
            assert second.stdout.readline() == "first\n"
            second.communicate("\n")
    assert [first.returncode, second.returncode] == [0, 0]
    assert text_of(path) == "second"
    assert beside(path) == []


def test_an_error_puts_back_what_was_there(tmp_path):
    path = tmp_path / "model"
    write(path, "old")
    with pytest.raises(OSError, match="no good"), writing_folder(path):
        raise OSError("no good")
    assert text_of(path) == "old"
    assert beside(path) == []


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    write(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert text_of(tmp_path / "disk" / "model") == "new"


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(OSError, match="model"):
        write(tmp_path / "model", "new")
    assert (tmp_path / "model").read_text() == "a file"
    assert beside(tmp_path / "model") == []
