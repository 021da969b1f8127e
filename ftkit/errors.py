"""Everything ftkit says when it refuses, and the exit code that goes with it.

    FtkitError
    ├── RecipeError      2   the recipe or the command line is wrong; known before any data is opened
    ├── DataError        3   a file, a column, a row or a label is wrong; known once the data is opened
    ├── MachineError     4   a package, memory, a device or the network is missing
    ├── GateNotMet       5   the evaluation did not reach what the recipe asks for
    ├── TrainingFailed   6   the loss is not finite, or memory ran out after every fallback
    │   └── NotFinite        the loss of the step that is being made; who runs the step adds which one it is
    ├── NotProved        7   a merged or exported model is not shown to be the trained one
    └── Interrupted    130   stopped from outside; the run can be resumed

Any other exception that leaves the program is a bug: a traceback and exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it stands, what it is about, and what to do.

    ``where`` is a place in the source ("line 4", "row 17"; empty where there is none), ``subject`` the key or
    column ("task.labels[0]"; may be empty) and ``message`` one or two sentences that end with the fix.
    """

    where: str
    subject: str
    message: str


class FtkitError(Exception):
    """A refusal with a headline, any number of problems below it, and an exit code.

    ``run``: the folder of the run that it ended, where there is one.
    """

    exit_code = 1

    def __init__(self, headline: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(headline)
        self.headline = headline
        self.problems = tuple(problems)
        self.run: str | None = None

    @classmethod
    def in_file(cls, source: str, problems: Sequence[Problem]) -> FtkitError:
        """The error for problems in one file: "recipes/sentiment.yaml has 2 problems"."""
        count = len(problems)
        return cls(f"{source} has {count} problem{'' if count == 1 else 's'}", problems)

    def __str__(self) -> str:
        lines = [f"error: {self.headline}"]
        where = max((len(problem.where) for problem in self.problems), default=0)
        subject = max((len(problem.subject) for problem in self.problems), default=0)
        for problem in self.problems:
            columns = (problem.where.ljust(where), problem.subject.ljust(subject), problem.message)
            lines.append("  " + "   ".join(column for column in columns if column.strip() or column is problem.message))
        return "\n".join(lines)


class RecipeError(FtkitError):
    exit_code = 2


class DataError(FtkitError):
    exit_code = 3


class MachineError(FtkitError):
    exit_code = 4


class GateNotMet(FtkitError):
    exit_code = 5


class TrainingFailed(FtkitError):
    exit_code = 6


class NotFinite(TrainingFailed):
    pass


class NotProved(FtkitError):
    exit_code = 7


class Interrupted(FtkitError):
    exit_code = 130


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest choice, or an empty string where none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""
