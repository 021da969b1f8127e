"""A conversation in the terminal: what is answered, remembered, forgotten, stopped and refused."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit.answer import Answerer, load_answerer
from ftkit.cli.chat import chat_with
from ftkit.errors import RecipeError
from ftkit.models.hardware import settle_machine
from ftkit.records import Prompt, Turn
from ftkit.rundir import RunDir
from ftkit.serve.talk import new_talk
from ftkit.tasks.chat import Unfit
from ftkit.trained import trained_by
from tests.conversations import asked, carried_out, write_recipe
from tests.test_use_answers import ftkit

pytestmark = pytest.mark.usefixtures("one_thread")
SYSTEM = "Be short."


@pytest.fixture(scope="module")
def place(decoder, tmp_path_factory) -> Path:
    """A folder with a run that answers, behind a system turn."""
    folder = tmp_path_factory.mktemp("place")
    with contextlib.chdir(folder):
        path = write_recipe(
            folder,
            decoder("long"),
            task=f"{{type: sft, system: {SYSTEM}}}",
            train="{epochs: 4, batch_size: 8, learning_rate: 1e-2, seed: 7}",
            eval="{metrics: [perplexity], max_new_tokens: 24}",
            merge="false",
        )
        carried_out(path, folder / "run")
    return folder


@pytest.fixture(scope="module")
def answerer(place) -> Answerer:
    return load_answerer(trained_by(RunDir(place / "run")), settle_machine())


def predicted(answerer: Answerer, *turns: Turn) -> str:
    (row,) = answerer.predict([Prompt("", "", turns)])
    return row["prediction"]


def test_each_line_is_answered_with_what_was_said_before_in_mind(place, answerer):
    """Through the command line: answers on stdout, one for each message, as predict gives them; /new forgets."""
    first, second = (row["prompt"] for row in asked(2, 4))
    stdin = f"{first}\n\n{second}\n/new\n{second}\n/quit\nnever read\n"
    code, printed, errors = ftkit("chat", "run", folder=place, stdin=stdin)
    assert code == 0, errors
    system, user = Turn("system", SYSTEM), Turn("user", first)
    answer = predicted(answerer, system, user)
    remembered = predicted(answerer, system, user, Turn("assistant", answer), Turn("user", second))
    fresh = predicted(answerer, system, Turn("user", second))
    assert printed == f"{answer}\n{remembered}\n{fresh}\n"
    assert errors.startswith("A new conversation.\n")
    own = ftkit("chat", "run", "--system", "Bark.", folder=place, stdin=first)[1]
    assert own == f"{predicted(answerer, Turn('system', 'Bark.'), user)}\n"


def test_an_answer_that_is_cut_says_so(place):
    code, printed, errors = ftkit("chat", "run", "--max-new-tokens", "1", folder=place, stdin=asked(1, 4)[0]["prompt"])
    assert (code, errors) == (0, "The answer was cut at its longest. --max-new-tokens allows more.\n")
    assert len(printed.strip()) <= 8


def test_what_cannot_be_answered_is_told_and_the_conversation_goes_on(place, answerer):
    text = asked(1, 4)[0]["prompt"]
    code, printed, errors = ftkit("chat", "run", folder=place, stdin=f"a <|im_end|> b\n{'long ' * 600}\n{text}\n")
    tokens = len(answerer.chat.prompt([Turn("system", SYSTEM), Turn("user", ("long " * 600).strip())]))
    assert errors == (
        "That cannot be answered: turn 2 (user) holds <|im_end|>, which the model reads as a mark. Remove it.\n"
        f"That cannot be answered: {tokens:,} tokens, and the model holds 512 with the answer. Shorten it.\n"
    )
    assert (code, printed) == (0, f"{predicted(answerer, Turn('system', SYSTEM), Turn('user', text))}\n")


def test_the_oldest_turns_are_forgotten_when_the_model_is_full(answerer):
    """The system turn stays, questions go with their answers, and what is left fits with a whole answer."""
    talk = new_talk(answerer, SYSTEM, 0.0, None)
    dropped: list[int] = []
    for row in asked(24, 6):
        words: list[str] = []
        talk.ask(row["prompt"], dropped=dropped.append, say=words.append)
        assert "".join(words) == (talk.turns[-1].content if words else "")
        prompt = answerer.chat.prompt([Turn("system", SYSTEM), *talk.turns[:-1]])
        assert len(prompt) + answerer.max_new_tokens <= 512
        assert [turn.role for turn in talk.turns] == ["user", "assistant"] * (len(talk.turns) // 2)
    assert dropped
    assert set(dropped) == {2}
    said = predicted(answerer, Turn("system", SYSTEM), *talk.turns[:-1])
    assert talk.turns[-1].content == said
    before = list(talk.turns)
    with pytest.raises(Unfit):
        talk.ask("<|im_start|>", dropped=dropped.append, say=print)
    assert talk.turns == before


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(answerer):
    def stop(piece: str) -> None:
        raise KeyboardInterrupt

    talk = new_talk(answerer, None, 0.0, 200)
    with pytest.raises(KeyboardInterrupt):
        talk.ask(asked(1, 4)[0]["prompt"], dropped=print, say=stop)
    assert [turn.role for turn in talk.turns] == ["user", "assistant"]
    assert talk.turns[-1].content
    # The model's own settings are back, and it goes on.
    assert talk.ask("And then?", dropped=print, say=lambda piece: None) in (True, False)


def test_temperature_gives_other_answers(answerer):
    def answer(temperature: float) -> str:
        talk = new_talk(answerer, None, temperature, 24)
        words: list[str] = []
        talk.ask(asked(1, 4)[0]["prompt"], dropped=print, say=words.append)
        return "".join(words)

    assert answer(0.0) == answer(0.0)
    assert len({answer(2.0) for _ in range(6)}) > 1


INTERRUPTED = """
import importlib, os, signal

# Whoever is started in the background by a shell ignores Ctrl-C, and so does what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
chat = importlib.import_module("ftkit.cli.chat")
say, said = chat._say, []

def once(piece):
    say(piece)
    said.append(piece)
    if len(said) == 1:
        os.kill(os.getpid(), signal.SIGINT)

chat._say = once
chat.chat_with("run", None, 2.0, 480)
"""


def test_a_terminal_shows_answers_as_they_come_and_ctrl_c_stops_one(place):
    """A real terminal: Ctrl-C ends the answer, not the program, nor does it at the prompt; Ctrl-D ends that."""
    master, slave = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=place, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""

    def until(words: bytes, seconds: float = 120) -> bytes:
        nonlocal shown
        end = time.monotonic() + seconds
        while words not in shown:
            assert time.monotonic() < end, shown
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 4096)
        before, _, shown = shown.partition(words)
        return before

    try:
        until(b"Ctrl-C stops an answer.\r\n> ")
        os.write(master, b"What does it say?\n")
        until(b"say?\r\n")
        assert until(" …\r\n> ".encode())  # the first words stand before it
        program.send_signal(signal.SIGINT)
        until(b"\r\n/quit or Ctrl-D ends.\r\n> ")
        os.write(master, b"What does it say?\n")
        until(b"say?\r\n")
        assert " …".encode() not in until(b"\r\n> ")
        os.write(master, b"\x04")
        assert program.wait(30) == 0
    finally:
        program.kill()
        program.wait()
        os.close(master)


@pytest.mark.parametrize(
    ("task", "fix"),
    [
        ("classify", "It labels texts. Use ftkit predict."),
        ("pretrain", "It goes on with texts, or fills gaps in them. Use ftkit predict."),
    ],
)
def test_a_run_that_does_not_answer_is_refused(tmp_path, task, fix):
    (tmp_path / "recipe.yaml").write_text("", encoding="utf-8")
    (tmp_path / "plan.json").write_text(json.dumps({"recipe": {"task": {"type": task}}}), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        chat_with(str(tmp_path), None, 0.0, None)
    assert str(caught.value) == f"error: {tmp_path} was not taught to answer\n  RUN   {fix}"


def test_what_a_model_says_cannot_control_the_terminal(capsys):
    from ftkit.cli.chat import _say

    _say("red \x1b[31m\u202e end\n")
    assert capsys.readouterr().out == "red ⟨U+001B⟩[31m⟨U+202E⟩ end\n"
