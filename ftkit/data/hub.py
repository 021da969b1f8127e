"""Rows of data sets on the Hugging Face hub, or in its local cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ftkit.data.rows import Place, RawRow, data_error
from ftkit.errors import DataError, MachineError, Problem

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_HUB_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.\[\]%:+-]+))?"
)


class HubId(NamedTuple):
    """``org/name``, ``org/name:split`` or ``org/name/config:split``."""

    name: str
    config: str | None
    split: str | None

    @classmethod
    def parse(cls, source: str) -> HubId | None:
        """The parts of a hub id; None where the text has not its form."""
        match = _HUB_ID.fullmatch(source)
        return cls(match["name"], match["config"], match["split"]) if match else None


def read_hub(hub_id: HubId, shown: str, *, default_split: str, stream: bool = False) -> Iterator[RawRow]:
    """The rows of one split of a data set; class numbers become class names.

    ``stream``: the rows are read over the network as they are taken, and nothing is kept on disk.
    Raises MachineError where the hub cannot be reached or has no such data set, DataError where the data set has no
    such split or configuration, or no row.
    """
    return hub_rows(_load(hub_id, shown, hub_id.split or default_split, stream), shown)


def hub_rows(dataset: Dataset | IterableDataset, shown: str) -> Iterator[RawRow]:
    """The rows of a loaded or streamed data set, counted from 1, with the names of ClassLabel columns for numbers.

    A streamed data set that does not say its features (text files, JSON) has no class names: its values stay.
    """
    features = dataset.features or {}
    names = {column: decode for column, feature in features.items() if (decode := _class_names(feature))}
    number = 0
    for number, values in enumerate(_taken(dataset, shown), 1):
        decoded = {column: names[column](value) if column in names else value for column, value in values.items()}
        yield RawRow(Place(shown, "row", number), decoded)
    if not number:
        raise data_error(shown, [Problem("", "", "there is no row in it. Choose another split.")])


def _taken(dataset: Dataset | IterableDataset, shown: str) -> Iterator[dict[str, Any]]:
    # A stream meets the network, and broken files, as late as here.
    with _told(shown):
        yield from dataset


def _class_names(feature: Any) -> Callable[[Any], Any] | None:
    """How the values of a column of classes, or of lists of classes, become names; None for another column."""
    from datasets import ClassLabel, List

    if isinstance(feature, ClassLabel):
        # -1 is the hub's sign for "no label given", as in the test sets of GLUE.
        return lambda value: None if value is None or value < 0 else feature.int2str(value)
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        return lambda value: None if value is None else [feature.feature.int2str(item) for item in value]
    return None


def _load(hub_id: HubId, shown: str, split: str, stream: bool) -> Dataset | IterableDataset:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MachineError(f"{shown} is a hub id, which needs datasets. Install it: pip install datasets") from error
    with _told(shown):
        return load_dataset(hub_id.name, hub_id.config, split=split, streaming=stream)


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """Says what the library raises in this block in the words of ftkit."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        raise _unreachable(shown, "the hub has no such data set, or it is private or gated") from error
    except (DatasetsError, ValueError, RuntimeError) as error:  # no such split or configuration; broken files
        raise _unusable(shown, error) from error
    except OSError as error:  # ConnectionError, offline mode, an HTTP error
        raise _unreachable(shown, "the hub cannot be reached and no copy is in its local cache") from error


def _unreachable(shown: str, reason: str) -> MachineError:
    message = "Check the name, go online (HF_HUB_OFFLINE unset) or log in (hf auth login), or give a local file."
    return MachineError(f"{shown} is no local path, and {reason}", [Problem("", "", message)])


def _unusable(shown: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    message = f"{reason}. Write org/name:split or org/name/config:split."
    return data_error(shown, [Problem("", "", message)])
