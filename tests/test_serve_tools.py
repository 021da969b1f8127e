"""Calls of tools over a socket, asked by OpenAI's client, of models that are sure to make them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from ftkit.models.chatml import chatml
from ftkit.records import Turn
from ftkit.tasks.rendering import render, tokenise
from tests.conversations import carried_out, write_recipe, write_rows
from tests.test_serve import Server
from tests.tool_templates import MISTRAL, PYTHONIC, byte_tokenizer, written

pytestmark = pytest.mark.usefixtures("one_thread")
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}
    for name in ("weather", "send")
]
OSLO = {"name": "weather", "arguments": {"city": "Oslo", "days": [1, 2.5], "say": 'a "b"\n\\ 日'}}
ALL = {"name": "send", "arguments": {"to": {"all": True}}}
ABSENT = {"name": "absent", "arguments": {}}
RESULT, AFTER = "7 degrees", "It is cold."
TEMPLATES = {"tagged": chatml(bos=False), "listed": MISTRAL, "pythonic": PYTHONIC}


@dataclass
class Script:
    """What a model says from which position on: the tokens of its answers to prompts of known lengths."""

    tokenizer: Any
    said: dict[int, int] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, answer: str, *, calls: tuple[dict[str, Any], ...] = (), tools: Any = TOOLS) -> None:
        """Has the answer follow a question that is long enough for its positions to be free.

        With ``calls`` it follows the result of these, which the assistant has called.
        """
        stop = "<|im_end|>" if "im_end" in self.tokenizer.chat_template else "</s>"
        ids = tokenise(self.tokenizer, answer + stop)[0]
        filler = 0
        while self.said.keys() & {*range(first := self._first(name, filler, calls, tools), first + len(ids))}:
            filler += 1
        self.said |= dict(enumerate(ids, first))
        self.questions[name], self.answers[name] = question(name, filler), answer

    def _first(self, name: str, filler: int, calls: tuple[dict[str, Any], ...], tools: Any) -> int:
        turns = [Turn("user", question(name, filler))]
        if calls:
            turns += [Turn("assistant", "", calls=calls), Turn("tool", RESULT)]
        return len(tokenise(self.tokenizer, render(self.tokenizer, turns, tools, asked=True))[0]) - 1

    def model(self) -> Any:
        """A GPT-2 of which nothing but the positions counts."""
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        size, vocab = -(-len(self.said) // 64) * 64, len(self.tokenizer)
        config = GPT2Config(
            vocab_size=vocab, n_embd=size, n_layer=1, n_head=2, n_positions=max(self.said) + 64, n_inner=8,
            tie_word_embeddings=False, eos_token_id=1, bos_token_id=1,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
            model.transformer.ln_f.weight.fill_(1.0)
            for number, (position, token) in enumerate(self.said.items()):
                model.transformer.wpe.weight[position, number] = 1.0
                model.lm_head.weight[token, number] = 1.0
        return model


def question(name: str, filler: int) -> str:
    return name + " z" * filler


def script_of(template: str) -> Script:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    script = Script(tokenizer)
    script.add("one", written(tokenizer, [OSLO]))
    script.add("after", AFTER, calls=(OSLO,))
    script.add("several", written(tokenizer, [OSLO, ALL], "Both\n of them."))
    script.add("absent", written(tokenizer, [ABSENT]))
    script.add("words", "A <tool, [ and\n\n <tool_call> none")
    script.add("untold", written(tokenizer, [ALL]), tools=())
    return script


@pytest.fixture(scope="module")
def scripts() -> dict[str, Script]:
    return {template: script_of(template) for template in TEMPLATES}


@pytest.fixture(scope="module")
def server(scripts, tmp_path_factory):
    """One that serves a run of each, whose training has changed nothing that counts."""
    folder = tmp_path_factory.mktemp("tools")
    rows = [{"prompt": f"{number}: hello", "completion": "hello"} for number in range(8)]
    for name, few in (("train", rows[:4]), ("test", rows[4:])):
        write_rows(folder / f"{name}.jsonl", few)
    with contextlib.chdir(folder):
        for name, script in scripts.items():
            trained(folder, name, script)
    server = Server(folder, f"{[*scripts]}, '127.0.0.1', 0")
    yield server.ready()
    server.process.kill()
    server.process.wait()


def trained(folder: Path, name: str, script: Script) -> None:
    base = folder / f"base-{name}"
    script.model().save_pretrained(base)
    script.tokenizer.save_pretrained(base)
    path = write_recipe(
        folder,
        base,
        name=name,
        data="{train: train.jsonl, valid: 0%, test: test.jsonl}",
        adapter="{type: lora, r: 1}",
        train="{epochs: 1, batch_size: 4, learning_rate: 1e-9, seed: 7}",
        eval="{metrics: [perplexity], max_new_tokens: 300}",
        merge="false",
    )
    carried_out(path, folder / name)


def ask(server: Server, script: Script, model: str, name: str, **settings: Any) -> Any:
    messages = [{"role": "user", "content": script.questions[name]}]
    settings = {"tools": TOOLS, "messages": messages} | settings
    return server.client().chat.completions.create(model=model, **settings).choices[0]


def gathered(server: Server, script: Script, model: str, name: str, **settings: Any) -> tuple[Any, str, list[str]]:
    """Content and calls of a streamed answer, why it ended, and the kinds of its deltas in order."""
    messages = [{"role": "user", "content": script.questions[name]}]
    stream = server.client().chat.completions.create(
        model=model, **({"tools": TOOLS, "messages": messages, "stream": True} | settings)
    )
    content, calls, kinds, reason = "", [], [], None
    for chunk in stream:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            assert call.index == len(calls)  # each in one piece
            assert call.type == "function"
            calls.append((call.id, call.function.name, call.function.arguments))
        kinds += ["call"] * bool(choice.delta.tool_calls) + ["text"] * bool(choice.delta.content)
        reason = choice.finish_reason or reason
    assert len({id for id, _, _ in calls}) == len(calls)
    return (content, [call[1:] for call in calls]), reason, kinds


def told(choice: Any) -> tuple[str, list[tuple[str, str]]]:
    calls = choice.message.tool_calls or []
    assert {call.type for call in calls} <= {"function"}
    return choice.message.content or "", [(call.function.name, call.function.arguments) for call in calls]


def as_told(*calls: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["name"], json.dumps(call["arguments"], ensure_ascii=False)) for call in calls]


@pytest.mark.parametrize("model", ["tagged", "listed"])
def test_a_call_is_one_whole_or_streamed(server, scripts, model):
    choice = ask(server, scripts[model], model, "one")
    assert told(choice) == ("", as_told(OSLO))
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls[0].id.startswith("call_")
    found, reason, kinds = gathered(server, scripts[model], model, "one")
    assert (found, reason, kinds) == (("", as_told(OSLO)), "tool_calls", ["call"])


def test_words_and_two_calls(server, scripts):
    choice = ask(server, scripts["tagged"], "tagged", "several", parallel_tool_calls=True)
    assert told(choice) == ("Both\n of them.", as_told(OSLO, ALL))
    assert len({call.id for call in choice.message.tool_calls}) == 2
    found, reason, kinds = gathered(server, scripts["tagged"], "tagged", "several")
    assert (found, reason) == (told(choice), "tool_calls")
    # Words go out as they come, and each call when it is whole.
    assert kinds[-3:] == ["text", "call", "call"]
    assert kinds.count("text") > 8
    assert told(ask(server, scripts["listed"], "listed", "several")) == ("", as_told(OSLO, ALL))


@pytest.mark.parametrize("model", ["tagged", "listed"])
def test_calls_sent_back_with_their_result_are_gone_on_from(server, scripts, model):
    """The model says so at this length of the prompt alone: what is rendered is what it had written."""
    script = scripts[model]
    messages: list[Any] = [{"role": "user", "content": script.questions["after"]}]
    call = ask(server, script, model, "one").message
    messages += [call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": RESULT}]
    choice = ask(server, script, model, "after", messages=messages)
    assert told(choice) == (AFTER, [])
    assert choice.finish_reason == "stop"
    # And calls are rendered as they had been written.
    calls = tuple(
        {"name": name, "arguments": json.loads(words)} for name, words in told(ask(server, script, model, "one"))[1]
    )
    assert written(script.tokenizer, calls) == script.answers["one"]


@pytest.mark.parametrize("model", ["tagged", "listed"])
@pytest.mark.parametrize("name", ["absent", "words"])
def test_what_is_no_call_is_text(server, scripts, model, name):
    choice = ask(server, scripts[model], model, name)
    assert choice.message.tool_calls is None
    assert told(choice) == (scripts[model].answers[name], [])
    assert choice.finish_reason == "stop"
    found, reason, _ = gathered(server, scripts[model], model, name)
    assert (found, reason) == (told(choice), "stop")


def test_a_call_that_is_cut_off_is_text(server, scripts):
    script = scripts["tagged"]
    tokens = len(tokenise(script.tokenizer, script.answers["one"])[0])
    choice = ask(server, script, "tagged", "one", max_tokens=tokens - 3)
    assert (choice.message.content, choice.message.tool_calls) == (script.answers["one"][:-3], None)
    assert choice.finish_reason == "length"
    assert gathered(server, script, "tagged", "one", max_tokens=tokens - 3)[:2] == (
        (script.answers["one"][:-3], []),
        "length",
    )
    # A whole one is a call, though the limit and not the model has ended the answer.
    choice = ask(server, script, "tagged", "one", max_tokens=tokens)
    assert (told(choice), choice.finish_reason) == (("", as_told(OSLO)), "length")


@pytest.mark.parametrize("model", ["tagged", "listed"])
@pytest.mark.parametrize("settings", [{"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}], ids=["untold", "none"])
def test_without_tools_all_is_text(server, scripts, model, settings):
    script = scripts[model]
    choice = ask(server, script, model, "untold", **settings)
    # Special tokens are no words then, as ever.
    said = script.answers["untold"].removeprefix("[TOOL_CALLS] ")
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (said, None, "stop")
    assert gathered(server, script, model, "untold", **settings)[:2] == ((said, []), "stop")


def test_a_template_whose_calls_are_no_json_answers_in_text(server, scripts):
    script = scripts["pythonic"]
    choice = ask(server, script, "pythonic", "one", parallel_tool_calls=False)
    assert told(choice) == (script.answers["one"], [])
    assert choice.finish_reason == "stop"
    assert gathered(server, script, "pythonic", "one")[0] == told(choice)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tool_choice": "required"}, "The model itself chooses whether it calls a tool. Write auto or none."),
        (
            {"tool_choice": {"type": "function", "function": {"name": "send"}}},
            "The model itself chooses whether it calls a tool. Write auto or none.",
        ),
        ({"parallel_tool_calls": False}, "The model itself chooses how many tools it calls. Leave it out."),
    ],
)
def test_what_cannot_be_enforced_is_refused(server, scripts, settings, message):
    (key,) = settings
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, scripts["tagged"], "tagged", "one", **settings)
    assert caught.value.body == {
        "message": f"{key}: {message}", "type": "invalid_request_error", "param": key, "code": "invalid_value",
    }  # fmt: skip


def test_clients_that_gather_a_stream_themselves_get_the_same_message(server, scripts):
    script = scripts["tagged"]
    messages: Any = [{"role": "user", "content": script.questions["several"]}]
    with server.client().chat.completions.stream(model="tagged", messages=messages, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content == "Both\n of them."
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == as_told(OSLO, ALL)
