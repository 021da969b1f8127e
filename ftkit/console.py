"""The only printer: results to stdout; stages, warnings and progress to stderr, plainly where it is no terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

Advance = Callable[..., None]

_SECONDS_BETWEEN_PLAIN_LINES = 5.0


class Console:
    """Says what happens. ``quiet`` keeps stages and progress back; warnings and errors are always said.

    ``results=False`` keeps results for people back, where JSON is to stand alone on stdout.
    """

    def __init__(self, *, quiet: bool = False, results: bool = True) -> None:
        self._quiet = quiet
        self._results = results
        self._started = time.monotonic()

    def stage(self, title: str) -> None:
        """Announces the next part of a run, with the seconds since the start."""
        if not self._quiet:
            self._say(f"[{time.monotonic() - self._started:5.1f} s] {title}")

    def note(self, text: str) -> None:
        if not self._quiet:
            self._say(f"          {text}")

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}")

    def error(self, text: str) -> None:
        self._say(text)

    def ask(self, question: str, likely: str) -> str:
        """A line from the terminal; ``likely`` where it is empty."""
        print(f"{question} [{likely}] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip() or likely

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str, total: int, *, done: int = 0) -> Iterator[Advance]:
        """Yields ``advance(n=1, status="")``: a bar on a terminal, else a line every few seconds."""
        if self._quiet:
            yield _silent
        elif sys.stderr.isatty():
            with self._bar(title, total, done) as advance:
                yield advance
        else:
            yield self._lines(title, total, done)

    @contextmanager
    def _bar(self, title: str, total: int, done: int) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = ("          {task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        text = TextColumn("{task.fields[status]}", markup=False)
        with Progress(*columns, text, console=self._rich(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done, status="")
            yield lambda n=1, status="": bar.update(task, advance=n, status=status)

    def _lines(self, title: str, total: int, done: int) -> Advance:
        count, last, start = done, time.monotonic(), time.monotonic()

        def advance(n: int = 1, status: str = "") -> None:
            nonlocal count, last
            count += n
            now = time.monotonic()
            if now - last < _SECONDS_BETWEEN_PLAIN_LINES:
                return
            last = now
            left = (now - start) / max(count - done, 1) * (total - count)
            self.note(f"{title} {count}/{total}, about {left:.0f} s left{', ' + status if status else ''}")

        return advance

    def result(self, renderable: RenderableType) -> None:
        """Prints a result to stdout: text as it is, or anything that rich can render."""
        if not self._results:
            return
        if isinstance(renderable, str):
            print(renderable, flush=True)
        else:
            self._rich(stderr=False).print(renderable)

    def json(self, value: object) -> None:
        """Prints one JSON value, and nothing else, to stdout."""
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), flush=True)

    def _rich(self, *, stderr: bool) -> RichConsole:
        from rich.console import Console as RichConsole

        stream: Any = sys.stderr if stderr else sys.stdout
        return RichConsole(file=stream, highlight=False, width=None if stream.isatty() else 110)


def _silent(n: int = 1, status: str = "") -> None:
    return None
