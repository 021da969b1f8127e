"""Ctrl-C and SIGTERM: at once where nothing is to be saved, after the step where there is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def after_the_step() -> Iterator[Interruption]:
    """Within the block a first signal only sets ``requested``; a second one stops at once with KeyboardInterrupt."""
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_sigterm() -> None:
    """SIGTERM is treated as Ctrl-C, so that files half written are removed and the lock is given back."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
