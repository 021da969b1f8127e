"""How long a part of the work takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes under ``name`` how long the block took, in seconds."""
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 3)
