"""Hub ids: what they look like, what a data set gives, and the refusal without a network."""

import os
import subprocess
import sys

import pytest

from ftkit.data.hub import HubId, hub_rows
from ftkit.errors import DataError, MachineError


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/na-me.v2:test", ("org/na-me.v2", None, "test")),
        ("org/name/config:train[:10%]", ("org/name", "config", "train[:10%]")),
        ("name", None),
        ("../name", None),
        ("/org/name", None),
        ("./org", None),
        ("a/b/c/d", None),
        ("org/na me", None),
    ],
)
def test_the_form_of_a_hub_id(source, parts):
    assert HubId.parse(source) == (HubId(*parts) if parts else None)


def test_class_numbers_become_names():
    """Also in lists; -1, the hub's sign for no label, becomes none."""
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ClassLabel(names=["negative", "positive"])
    features = Features({"text": Value("string"), "label": names, "tags": List(names), "n": Value("int64")})
    values = {"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []], "n": [1, 0]}
    dataset = Dataset.from_dict(values, features=features)
    assert [(str(row.where), row.values) for row in hub_rows(dataset, "org/name:test")] == [
        ("org/name:test row 1", {"text": "a", "label": "positive", "tags": ["negative", "positive"], "n": 1}),
        ("org/name:test row 2", {"text": "b", "label": None, "tags": [], "n": 0}),
    ]


def test_a_streamed_data_set_gives_the_same_rows():
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    assert list(hub_rows(dataset.to_iterable_dataset(), "org/name")) == list(hub_rows(dataset, "org/name"))


def test_a_stream_is_read_as_its_rows_are_taken_and_its_breaks_are_told():
    """Of a stream without features the values stay as they are."""
    from datasets import IterableDataset

    def rows():
        yield {"text": "a", "label": 1}
        raise ConnectionError("the line is dead")

    taken = hub_rows(IterableDataset.from_generator(rows), "org/name")
    assert dict(next(taken).values) == {"text": "a", "label": 1}
    with pytest.raises(MachineError, match="org/name is no local path, and the hub cannot be reached"):
        next(taken)


def test_an_empty_data_set_is_refused():
    from datasets import Dataset, IterableDataset

    for dataset in (Dataset.from_dict({"text": []}), IterableDataset.from_generator(lambda: iter(()))):
        with pytest.raises(DataError, match="there is no row in it"):
            list(hub_rows(dataset, "org/name"))


@pytest.mark.parametrize("stream", [False, True])
def test_offline_is_a_clean_refusal(tmp_path, stream):
    """In a process of its own: the libraries read HF_HUB_OFFLINE when they are imported."""
    code = (
        "from pathlib import Path\n"
        "from ftkit.data.source import read_rows\n"
        "from ftkit.errors import MachineError\n"
        "try:\n"
        f"    list(read_rows('org/name:test', Path('.'), stream={stream}))\n"
        "except MachineError as error:\n"
        "    print(error)\n"
        "    raise SystemExit(error.exit_code)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 4, done.stderr
    assert done.stdout.splitlines() == [
        "error: org/name:test is no local path, and the hub cannot be reached and no copy is in its local cache",
        "  Check the name, go online (HF_HUB_OFFLINE unset) or log in (hf auth login), or give a local file.",
    ]
