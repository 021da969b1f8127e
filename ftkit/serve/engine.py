"""One thread that owns the models: requests wait for it, are answered together, and hear of their words as they come.

transformers has continuous batching of its own (``generate_batch``), and it is not used: all requests of its manager
are sampled or none, none has a seed, and models without attention are refused. Here a batch generates as ``ftkit
predict`` does; when others wait, it pauses, and goes on with them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Literal

from ftkit.errors import DataError
from ftkit.predict import Predictor
from ftkit.serve.served import Labels, Language
from ftkit.tasks.decoding import Growing, Sampling, decode
from ftkit.tasks.pieces import Pieces

# Padded tokens of a batch with what may still come (an 8B model keeps 4 GiB for 32,768), rows, and texts to label.
_TOKENS, _ROWS, _TEXTS = {"cpu": 8192, "cuda": 32768}, 64, 1024
# A batch pauses for others after so many steps, but not before a quarter of its longest text: going on means to read
# that again.
_STEPS, _SHARE = 16, 4


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """``tokens``: those that were made, the one that ended the answer included."""

    reason: Literal["stop", "length"]
    tokens: int


@dataclass(frozen=True, slots=True)
class Labelled:
    """What ``Predictor.predict`` says of each text."""

    rows: list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Failed:
    error: Exception


Event = Said | Ended | Labelled | Failed


class Busy(Exception):
    """As many requests wait as may."""


class Stopping(Exception):
    """No more requests are taken, and those that are not done will not be."""


@dataclass(slots=True)
class Answer:
    """A request for words: at most ``room`` tokens, which with the prompt fit the model.

    ``hear`` is called in the engine's thread, and after ``gone`` is set no more. ``kept``: special tokens that are
    words of the answer.
    """

    served: Language
    prompt: Sequence[int]
    room: int
    sampling: Sampling
    stops: Sequence[str]
    chat: bool
    hear: Callable[[Event], None]
    kept: Collection[int] = ()
    gone: bool = False
    row: Growing | None = None
    pieces: Pieces | None = None

    def begin(self) -> Growing:
        """The row that is generated; the same when the request goes on after a pause."""
        if self.row is None:
            self.pieces = self.served.pieces(self.stops, chat=self.chat, kept=self.kept)
            self.row = Growing(self.prompt, self.room, self.sampling, self._take)
        return self.row

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for it, though others of its batch may go on."""
        return self.gone or (self.row is not None and self.row.over)

    @property
    def width(self) -> int:
        """Tokens of the prompt and of the longest answer that it may get."""
        return len(self.prompt) + self.room

    def _take(self, token: int) -> bool:
        """Says what the token settles, and the end with it. Returns whether the answer goes on."""
        assert self.pieces is not None
        assert self.row is not None
        if self.gone:
            return False
        stopped = token in self.served.stop_ids
        piece = "" if stopped else self.pieces.add(token)
        over = stopped or self.pieces.stopped or self.row.left == 0
        piece += self.pieces.end() if over else ""
        if piece:
            self.hear(Said(piece))
        if over:
            ended = stopped or self.pieces.stopped
            self.hear(Ended("stop" if ended else "length", len(self.row.made)))
        return not over


@dataclass(slots=True)
class Labelling:
    """A request for labels. ``hear`` as an Answer's."""

    served: Labels
    texts: list[str]
    hear: Callable[[Event], None]
    gone: bool = False

    @property
    def done(self) -> bool:
        return self.gone


Job = Answer | Labelling


class Engine:
    """``most_waiting``: how many requests it holds, those being answered included."""

    def __init__(self, most_waiting: int, log: Callable[[str, Exception], None]) -> None:
        self._most, self._log = most_waiting, log
        self._changed = Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._closing = self._stopped = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def works(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(not job.done for job in self._running)

    def submit(self, job: Job) -> None:
        """Raises Busy where too many wait, Stopping where none are taken any more."""
        with self._changed:
            if not self.works:
                raise Stopping
            if self.waiting + self.running >= self._most:
                raise Busy
            self._waiting.append(job)
            self._changed.notify_all()

    def stop(self, grace: float) -> None:
        """Takes no more requests, and after ``grace`` seconds at the latest fails those that are not done."""
        until = time.monotonic() + grace
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._waiting or self._running) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._work(batch)
            except Exception as error:
                # Whatever it is, it must not take the other requests with it.
                self._log("a batch failed", error)
                self._fail(batch, error)
                batch = []
            with self._changed:
                # Behind those that waited meanwhile.
                self._waiting += [job for job in batch if isinstance(job, Answer) and not job.done]
                self._running = []
                self._changed.notify_all()
        self._fail([*self._waiting], Stopping())
        self._waiting.clear()

    def _next(self) -> list[Job]:
        """The requests that are answered together: the first, and those that fit to it. None when all is over."""
        with self._changed:
            while True:
                self._waiting = deque(job for job in self._waiting if not job.gone)
                if self._stopped or (self._closing and not self._waiting):
                    return []
                if self._waiting:
                    break
                self._changed.wait()
            self._running = _together(self._waiting)
            chosen = {id(job) for job in self._running}
            self._waiting = deque(job for job in self._waiting if id(job) not in chosen)
            return [*self._running]

    def _work(self, batch: Sequence[Job]) -> None:
        answers = [job for job in batch if isinstance(job, Answer)]
        if answers:
            self._answer(answers)
        else:
            _label(batch[0].served, [job for job in batch if isinstance(job, Labelling)])

    def _answer(self, jobs: Sequence[Answer]) -> None:
        served = jobs[0].served
        if served.adapter is not None:
            served.model.set_adapter(served.adapter, inference_mode=True)
        rows = [job.begin() for job in jobs]
        turn = max(_STEPS, max(len(row.prompt) + len(row.made) for row in rows) // _SHARE)

        def pause(steps: int) -> bool:
            return self._stopped or (steps >= turn and bool(self._waiting))

        decode(served.model, rows, limit=served.limit, pad_token_id=served.pad_token_id, pause=pause)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in jobs:
            if not job.done:
                job.hear(Failed(error))


def _together(waiting: Sequence[Job]) -> list[Job]:
    """The first request, and others of the same model and adapter, as many as suit the device."""
    same = [job for job in waiting if job.served is waiting[0].served]
    count = 1
    while count < len(same) and _fit(same[: count + 1]):
        count += 1
    return same[:count]


def _fit(jobs: Sequence[Job]) -> bool:
    answers = [job for job in jobs if isinstance(job, Answer)]
    if answers:
        most = _TOKENS[answers[0].served.model.device.type]
        return len(answers) <= _ROWS and len(answers) * max(job.width for job in answers) <= most
    return sum(len(job.texts) for job in jobs if isinstance(job, Labelling)) <= _TEXTS


def _label(served: object, jobs: Sequence[Labelling]) -> None:
    """Labels the texts of all requests together; a text that cannot be read fails its own request alone."""
    assert isinstance(served, Labels)
    try:
        rows = _predicted(served.predictor, [text for job in jobs for text in job.texts])
    except DataError as error:
        if len(jobs) > 1:
            for job in jobs:
                _label(served, [job])
        elif not jobs[0].gone:
            jobs[0].hear(Failed(error))
        return
    for job in jobs:
        own, rows = rows[: len(job.texts)], rows[len(job.texts) :]
        if not job.gone:
            job.hear(Labelled(own))


def _predicted(predictor: Predictor, texts: Sequence[str]) -> list[dict[str, object]]:
    return list(predictor.predict(texts))
