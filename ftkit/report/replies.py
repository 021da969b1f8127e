"""predictions.jsonl of instruction tuning in brief: which answers gained on the base's, and the worst."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftkit.evals.section import NEITHER_IS_BETTER
from ftkit.report import numbers, tables
from ftkit.report.texts import is_number, perplexity

GAINS = 10
WORST = 20
SAMPLES = 10
LONGEST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Reply:
    """A test row with the answers of trained model and base; both are None where nothing was generated.

    ``ended``: the answer ended by itself. ``scores``: the row's own value of each metric, perplexity included.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    prediction: str | None
    baseline: str | None
    ended: bool | None
    baseline_ended: bool | None
    scores: Mapping[str, float]
    baseline_scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Against:
    """How many rows the model does better, worse and just as well as the base, by one metric."""

    metric: str
    better: int
    worse: int
    equal: int

    @property
    def rows(self) -> int:
        return self.better + self.worse + self.equal


@dataclass(frozen=True, slots=True)
class Replies:
    """All rows in brief. ``by``: the metric that ranks them. ``gains``: the rows that gained most on the base.

    ``samples``: rows drawn at random, the same ones every time. ``against``: by ``by`` and by perplexity.
    """

    rows: int
    by: str
    gains: tuple[Reply, ...]
    worst: tuple[Reply, ...]
    samples: tuple[Reply, ...]
    against: tuple[Against, ...]


def is_reply(line: Mapping[str, Any]) -> bool:
    """Whether a line of predictions.jsonl is that of instruction tuning."""
    return "ended" in line


def read_replies(lines: Iterable[Mapping[str, Any]], metric: str | None) -> Replies:
    """One pass that keeps what is shown only. ``metric``: that of the headline, which ranks the rows that have it.

    Perplexity alone says little about an answer: where answers were scored, they are ranked by a metric of theirs.
    """
    gains, worst = _Largest(GAINS), _Largest(WORST)
    chance = random.Random(0)
    samples: list[tuple[int, Mapping[str, Any]]] = []
    counts: dict[str, list[int]] = {}
    by, rows = None, 0
    for rows, line in enumerate(lines, start=1):
        ours, base = _scores(line, ""), _scores(line, "baseline_")
        by = by or _ranked_by(ours, metric)
        for name in dict.fromkeys((by, "perplexity")):
            if name in ours and name in base:
                gain = _good(name, ours[name]) - _good(name, base[name])
                counts.setdefault(name, [0, 0, 0])[0 if gain > 0 else 1 if gain < 0 else 2] += 1
                if name == by and gain > 0:
                    gains.add((gain,), rows, line)
        if by in ours:
            worst.add((-_good(by, ours[by]), ours.get("perplexity", 0.0)), rows, line)
        place = rows - 1 if rows <= SAMPLES else chance.randrange(rows)  # reservoir sampling (Vitter 1985, algorithm R)
        if place < SAMPLES:
            samples[place : place + 1] = [(rows, line)]
    return Replies(
        rows=rows,
        by=by or "perplexity",
        gains=tuple(map(_reply, gains)),
        worst=tuple(map(_reply, worst)),
        samples=tuple(_reply(line) for _, line in sorted(samples, key=lambda sample: sample[0])),
        against=tuple(Against(name, *found) for name, found in counts.items()),
    )


@dataclass(slots=True)
class _Largest:
    """The lines with the largest keys, largest first. Of equal ones the earlier row goes first, so it is always it."""

    size: int
    kept: list[tuple[Sequence[float], int, Mapping[str, Any]]] = field(default_factory=list)

    def add(self, key: Sequence[float], row: int, line: Mapping[str, Any]) -> None:
        (heapq.heappush if len(self.kept) < self.size else heapq.heappushpop)(self.kept, (key, -row, line))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (line for _, _, line in sorted(self.kept, reverse=True))


def _ranked_by(scores: Mapping[str, float], metric: str | None) -> str:
    if metric in scores and metric not in ("perplexity", *NEITHER_IS_BETTER):
        return str(metric)
    return tables.answer_metric(scores) or "perplexity"


def _good(metric: str, value: float) -> float:
    return -value if numbers.lower_is_better(metric) else value


def _scores(line: Mapping[str, Any], whose: str) -> dict[str, float]:
    """The finite values of a row, of the trained model ("") or of the base ("baseline_")."""
    found = {name: value for name, value in (line.get(f"{whose}scores") or {}).items() if is_number(value)}
    nll, tokens = line.get(f"{whose}nll"), line.get("tokens")
    if is_number(nll) and is_number(tokens) and tokens > 0:
        found["perplexity"] = perplexity(nll, tokens)
    return found


def _reply(line: Mapping[str, Any]) -> Reply:
    def text(name: str) -> str | None:
        return None if line.get(name) is None else str(line[name])[:LONGEST_TEXT]

    references = line.get("reference") or []
    return Reply(
        id=str(line.get("id", "")),
        prompt=text("input") or "",
        references=tuple(str(reference)[:LONGEST_TEXT] for reference in references),
        prediction=text("prediction"),
        baseline=text("baseline"),
        ended=line.get("ended"),
        baseline_ended=line.get("baseline_ended"),
        scores=_scores(line, ""),
        baseline_scores=_scores(line, "baseline_"),
    )
