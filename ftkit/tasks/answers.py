"""Encoded conversations in little memory, and as training rows: one a window, or several packed into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ftkit.tasks.batches import Encoded
from ftkit.tasks.chat import Answered
from ftkit.tasks.windows import IGNORED, pack

if TYPE_CHECKING:
    from ftkit.evals.statistics import Integers


class Answers(Sequence[Answered]):
    """Encoded conversations, held as arrays: five bytes a token where lists of numbers would take seventy."""

    def __init__(self, rows: Iterable[Answered]) -> None:
        import numpy as np

        ids: list[Integers] = []
        trained: list[Integers] = []
        spans: list[tuple[int, int]] = []
        for row in rows:
            ids.append(np.array(row.ids, dtype=np.int32))
            trained.append(np.array(row.labels) != IGNORED)
            spans.append((row.answer, row.end))
        self.lengths: list[int] = [len(row) for row in ids]
        self._ends = np.cumsum([0, *self.lengths])
        self._ids = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
        self._trained = np.concatenate(trained) if trained else np.empty(0, dtype=bool)
        self._spans = spans

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Answered:  # type: ignore[override]  # no slices: nobody takes them
        import numpy as np

        if not 0 <= row < len(self):
            raise IndexError(row)
        part = slice(self._ends[row], self._ends[row + 1])
        ids, trained = self._ids[part], self._trained[part]
        return Answered(ids.tolist(), np.where(trained, ids, IGNORED).tolist(), *self._spans[row])

    def __iter__(self) -> Iterator[Answered]:
        return (self[row] for row in range(len(self)))

    def prompt(self, row: int) -> list[int]:
        """What generation starts from."""
        return self[row].ids[: self._spans[row][0]]

    def scored(self, row: int) -> list[int]:
        """Labels of the last answer alone, without its stop token, which stands for no byte of the text."""
        answer, end = self._spans[row]
        ids = self[row].ids
        return [IGNORED] * answer + ids[answer:end] + [IGNORED] * (len(ids) - end)

    @property
    def answer_tokens(self) -> Integers:
        """Tokens of each last answer, its stop token not counted [n]."""
        import numpy as np

        return np.array([end - answer for answer, end in self._spans], dtype=np.int64)


class AnswerWindows:
    """Training rows: each window is one conversation or, packed, several. Position ids start anew with each.

    ``input_ids``, ``labels`` and ``position_ids``, all of the same length. No conversation is cut.
    """

    def __init__(self, answers: Answers, *, packed: bool, max_length: int) -> None:
        import numpy as np

        self.answers = answers
        if packed:
            self._order, self._starts = pack(answers.lengths, max_length)
        else:
            self._order, self._starts = np.arange(len(answers)), np.arange(len(answers) + 1)
        self.lengths = [sum(answers.lengths[row] for row in self.members(window)) for window in range(len(self))]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, window: int) -> Encoded:
        rows = [self.answers[row] for row in self.members(window)]
        return {
            "input_ids": [token for row in rows for token in row.ids],
            "labels": [label for row in rows for label in row.labels],
            "position_ids": [position for row in rows for position in range(len(row.ids))],
        }

    def members(self, window: int) -> list[int]:
        """The conversations of a window."""
        if not 0 <= window < len(self):
            raise IndexError(window)
        members: list[int] = self._order[self._starts[window] : self._starts[window + 1]].tolist()
        return members
