"""Files that are brought to the disk while they are written: whole, or an error where the disk is full."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

from ftkit.export import disk
from ftkit.export.disk import OnDisk
from ftkit.export.stream import merge_streamed
from ftkit.export.tensors import read_index
from ftkit.export.updates import changes_of, read_adapter
from tests.test_export_merge import CASES, make


@pytest.fixture
def often(monkeypatch):
    """Every thousand bytes are brought to the disk, as of a real model every 64 MiB are."""
    monkeypatch.setattr(disk, "_AT_ONCE", 1000)


@pytest.mark.parametrize("sizes", [[7] * 1000, [999, 1, 1000, 1001, 0, 5], [123_457], []], ids=str)
def test_a_file_holds_all_that_was_written(tmp_path, often, sizes):
    blocks = [os.urandom(size) for size in sizes]
    with OnDisk(tmp_path / "file") as file:
        assert [file.write(memoryview(block)) for block in blocks] == sizes
    assert (tmp_path / "file").read_bytes() == b"".join(blocks)


def test_a_disk_that_is_full_is_an_error_though_it_takes_the_first_bytes(tmp_path):
    """The system writes what fits and says how much that was; the rest must not be taken as written."""
    code = (
        "import sys, pathlib\n"
        "from ftkit.export.disk import OnDisk\n"
        "with OnDisk(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(bytes(5000))\n"
        "print('written')\n"
    )

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    words = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limited)
    assert (tmp_path / "file").stat().st_size == 3000
    assert done.returncode == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("at", [1, 2, 5])
def test_what_the_disk_does_not_take_fails_the_merge_and_leaves_the_output_of_before(tmp_path, often, monkeypatch, at):
    """A disk may refuse bytes long after they were written: when they are brought to it, here beside the merge."""
    made = make(CASES["lora"], tmp_path / "made")
    changes = changes_of(read_adapter(made.adapter), read_index(made.base))
    merge_streamed(made.base, changes, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    asked = []

    def full(_: int) -> None:
        asked.append(1)
        if len(asked) >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        merge_streamed(made.base, changes, tmp_path / "out")
    assert len(asked) >= at
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out"]
