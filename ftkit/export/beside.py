"""One piece of work beside the caller's own: a merge hashes what it has read while it computes with it.

Hashing lets go of Python's lock for as long as it lasts, so a thread is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class Beside:
    """Runs one piece of work at a time in a thread of its own. Leaving it waits for the last one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._running: Future[object] | None = None

    def run(self, work: Callable[[], object]) -> None:
        """Starts ``work`` when the one before has ended. Raises what that one raised."""
        self.wait()
        self._running = self._pool.submit(work)

    def wait(self) -> None:
        """Waits for what runs, and raises what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown()
