"""``ftkit chat``."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from ftkit.errors import Problem, RecipeError
from ftkit.models.hardware import settle_environment, settle_machine
from ftkit.report import untrusted
from ftkit.rundir import find_run, task_of
from ftkit.tasks.chat import Unfit
from ftkit.tasks.section import Sft
from ftkit.trained import trained_by

if TYPE_CHECKING:
    from ftkit.serve.talk import Talk

_FIX = {
    "classify": "It labels texts. Use ftkit predict.",
    "pretrain": "It goes on with texts, or fills gaps in them. Use ftkit predict.",
}


def chat_with(run: str, system: str | None, temperature: float, max_new_tokens: int | None) -> None:
    """Answers each line of the terminal or of a pipe, with what was said before in mind, until it ends or says /quit.

    Answers go to stdout, all else to stderr. Raises RecipeError for a run that was not taught to answer.
    """
    warnings.simplefilter("ignore")
    found = find_run(run)
    task = task_of(found)
    if task != "sft":
        raise RecipeError(f"{found.folder} was not taught to answer", [Problem("", "RUN", _FIX[task])])
    trained = trained_by(found)
    taught: Sft = trained.section("task", Sft)
    settle_environment()
    from ftkit.answer import load_answerer
    from ftkit.models.base import quiet_libraries
    from ftkit.serve.talk import new_talk

    quiet_libraries()
    answerer = load_answerer(trained, settle_machine())
    if taught.prompt is not None:
        _note(f"Each line is all that the user says: task.prompt ({taught.prompt!r}) is not put around it.")
    talk = new_talk(answerer, taught.system if system is None else system, temperature, max_new_tokens)
    if sys.stdin.isatty():
        _note("/new begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer.")
    _talk(talk)


def _talk(talk: Talk) -> None:
    going_on = True
    while going_on:
        try:
            going_on = _turn(talk)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            # Often meant for an answer that has just ended; the conversation must not go with it.
            _note("\n/quit or Ctrl-D ends.")


def _turn(talk: Talk) -> bool:
    """Reads a message and answers it. Returns whether the conversation goes on."""
    line = _line()
    match line if line is None else line.strip():
        case None | "/quit":
            return False
        case "":
            pass
        case "/new":
            talk.turns.clear()
            _note("A new conversation.")
        case text:
            _ask(talk, text)
    return True


def _line() -> str | None:
    """The next message; None at the end."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line if line else None


def _ask(talk: Talk, text: str) -> None:
    try:
        ended = talk.ask(text, dropped=_say_dropped, say=_say)
    except Unfit as unfit:
        _note(f"That cannot be answered: {unfit}")
        return
    except KeyboardInterrupt:
        ended = True
        _say(" …")
    _say("\n")
    if not ended:
        _note("The answer was cut at its longest. --max-new-tokens allows more.")


def _say_dropped(turns: int) -> None:
    _note(f"The oldest {turns} turns no longer fit the model and are forgotten.")


def _say(piece: str) -> None:
    sys.stdout.write(untrusted.visible(piece))
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
