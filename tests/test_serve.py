"""A server in a process of its own, asked by OpenAI's client: what is answered, to whom, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from ftkit.cli.serve import serve_runs
from ftkit.errors import MachineError, RecipeError
from ftkit.models.hardware import settle_machine
from ftkit.records import Prompt, Turn
from ftkit.rundir import RunDir
from ftkit.serve.engine import Answer, Busy, Engine, Failed, Labelled, Labelling, Stopping
from ftkit.serve.served import load_served
from ftkit.tasks.chat import Unfit
from ftkit.tasks.decoding import Sampling
from tests.conftest import sentences, write_csv
from tests.conversations import TEMPLATE, asked, carried_out, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = "a long secret"
LONG = {"prompt": "Once", "max_tokens": 440, "temperature": 2.0}


@pytest.fixture(scope="module")
def place(decoder, pico, tmp_path_factory) -> Path:
    """A folder with runs: two adapters on one base, a classifier, and a model from scratch that goes on with texts."""
    folder = tmp_path_factory.mktemp("place")
    base = restless(decoder("long"), folder / "base")
    with contextlib.chdir(folder):
        settings = {"eval": "{metrics: [perplexity], max_new_tokens: 24}", "merge": "false"}
        for name, seed in (("first", 7), ("second", 8)):
            train = f"{{epochs: 1, batch_size: 8, learning_rate: 3e-3, seed: {seed}}}"
            carried_out(write_recipe(folder, base, name=name, train=train, **settings), folder / name)
        for name, count, seed in (("train", 48, 1), ("test", 20, 3)):
            write_csv(folder / f"{name}.csv", sentences(count, seed))
        classify = {"task": "{type: classify, labels: [bad, good]}", "merge": "false", "name": "labels"}
        data = "{train: train.csv, valid: 0%, test: test.csv}"
        train = "{epochs: 4, batch_size: 8, learning_rate: 1e-2, seed: 7}"
        path = write_recipe(folder, pico("bert"), data=data, train=train, **classify)
        carried_out(path, folder / "labels")
        texts = [json.dumps({"text": f"{row['prompt']} {row['completion']}."}) for row in asked(60, 5)]
        (folder / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
        data = "{train: texts.jsonl, valid: 20%, test: 20%}"
        shape = "{init: llama, layers: 1, hidden: 64, vocab: 384, positions: 512}"
        path = write_recipe(folder, shape, data=data, task="{type: pretrain, samples: 0}", name="texts")
        recipe = path.read_text(encoding="utf-8").replace("adapter: {type: lora, r: 8}\n", "")
        recipe = recipe.replace("epochs: 2", "epochs: 0.2")
        path.write_text(recipe, encoding="utf-8")
        carried_out(path, folder / "texts")
    return folder


def restless(base: Path, folder: Path) -> Path:
    """The base with larger weights: what it says depends on every token before, so that no two prompts are answered alike."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    larger = {name: weight * 6 if weight.dim() > 1 else weight for name, weight in weights.items()}
    save_file(larger, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Server:
    """A process that serves, its address, and its log so far."""

    def __init__(self, folder: Path, call: str, **environment: str) -> None:
        self.log_file = folder / f"{environment.get('FTKIT_API_KEY', 'open')}.log"
        with self.log_file.open("w", encoding="utf-8") as log:
            code = f"from ftkit.cli.serve import serve_runs; serve_runs({call})"
            words, settings = [sys.executable, "-c", code], {**os.environ, **environment}
            self.process = subprocess.Popen(words, cwd=folder, stderr=log, env=settings)
        self.key = environment.get("FTKIT_API_KEY", "none")

    def ready(self) -> Server:
        until = time.monotonic() + 120
        while not (found := re.search(r" at (http\S+):(\d+)/v1", self.log)):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.05)
        self.address = f"http://127.0.0.1:{found[2]}"
        return self

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def lines(self, **facts: object) -> list[dict]:
        """The log lines of requests that have these facts."""
        rows = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [row for row in rows if facts.items() <= row.items()]

    def client(self, **settings: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", max_retries=0, **({"api_key": self.key} | settings))

    def call(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, dict]:
        """Status, headers and JSON of a plain request."""
        request = urllib.request.Request(self.address + path, body, {"content-type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.load(error)

    def counts(self) -> dict[str, float]:
        request = urllib.request.Request(f"{self.address}/metrics", headers={"authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in re.findall(r"^(ftkit\S+) (\S+)$", text, re.M)}

    def idle(self) -> dict[str, float]:
        """The counts when no request waits or is answered."""
        until = time.monotonic() + 20
        while (counts := self.counts())["ftkit_waiting_requests"] or counts["ftkit_running_requests"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        return counts


@pytest.fixture(scope="module")
def started(place):
    """One that is open, and one for all addresses with a key, which holds two requests."""
    runs = ["first", "second", "labels", "texts"]
    both = [
        Server(place, f"{runs}, '127.0.0.1', 0"),
        Server(place, "['texts'], '0.0.0.0', 0, max_waiting=2", FTKIT_API_KEY=KEY),
    ]
    yield both
    for server in both:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(started) -> Server:
    return started[0].ready()


@pytest.fixture(scope="module")
def served(place, started):  # the servers load their models meanwhile
    """The same models in this process."""
    return load_served([RunDir(place / name) for name in ("first", "second", "labels", "texts")], settle_machine())


@pytest.fixture(scope="module")
def expected(place) -> dict[tuple[str, str], str]:
    """What predict answers to each of many prompts, each adapter loaded alone."""
    from ftkit.answer import load_answerer
    from ftkit.trained import trained_by

    texts = [row["prompt"] for row in asked(32, 4)]
    found = {}
    for name in ("first", "second"):
        answerer = load_answerer(trained_by(RunDir(place / name)), settle_machine())
        rows = answerer.predict(Prompt("", text, (Turn("user", text),)) for text in texts)
        found |= {(name, text): row["prediction"] for text, row in zip(texts, rows, strict=True)}
    return found


def chat(client: openai.OpenAI, model: str, text: str, **settings):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **settings)


def streamed(client: openai.OpenAI, model: str, text: str, **settings) -> tuple[str, list]:
    chunks = list(chat(client, model, text, stream=True, **settings))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def test_adapters_of_one_base_share_it(served):
    assert served["first"].model is served["second"].model
    assert {served[name].adapter for name in ("first", "second")} == {"default", "adapter2"}


def test_32_clients_at_once_get_each_its_own_answer(server, expected):
    """Whole or streamed, of two models at once: what each model says to each prompt alone."""
    assert len(set(expected.values())) > 48
    jobs = sorted(expected, key=lambda job: job[1])

    def ask(number: int) -> tuple[str, str]:
        model, text = jobs[number]
        with server.client() as client:
            if number % 2:
                return streamed(client, model, text)[0], text
            return chat(client, model, text).choices[0].message.content, text

    before = server.counts()
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(len(jobs))))
    assert [said for said, _ in found] == [expected[job] for job in jobs]
    after, route = server.idle(), 'ftkit_requests_total{route="/v1/chat/completions",status="200"}'
    assert after[route] - before.get(route, 0) == len(jobs) == 64


def test_a_streamed_answer_is_the_whole_one_in_pieces(server, expected):
    client = server.client()
    text = max((text for _, text in expected), key=lambda text: len(expected["second", text]))
    whole = chat(client, "second", text)
    said, chunks = streamed(client, "second", text, stream_options={"include_usage": True})
    assert said == whole.choices[0].message.content == expected["second", text]
    assert len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].object == "chat.completion.chunk"
    assert whole.object == "chat.completion"


def test_tokens_are_counted_as_the_tokenizer_does(server, served, expected):
    client, (name, text) = server.client(), next(iter(expected))
    before = server.counts()
    answer = chat(client, name, text, max_tokens=1)
    assert answer.usage.prompt_tokens == len(served[name].chat.prompt((Turn("user", text),)))
    assert answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"
    after = server.counts()
    for direction, count in (("in", answer.usage.prompt_tokens), ("out", 1)):
        counter = f'ftkit_tokens_total{{direction="{direction}",model="{name}"}}'
        assert after[counter] - before.get(counter, 0) == count
    (line,) = server.lines(id=answer.id.removeprefix("chatcmpl-"))
    assert (line["model"], line["prompt_tokens"], line["completion_tokens"]) == (name, answer.usage.prompt_tokens, 1)
    ends = {chat(client, name, text).choices[0].finish_reason for name, text in list(expected)[:16]}
    assert "stop" in ends


def test_a_conversation_and_its_system_turn_reach_the_model(server, served):
    turns = [("system", "Be short."), ("user", "cow"), ("assistant", "moo"), ("user", "hen")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = server.client().chat.completions.create(model="first", messages=messages)
    prompt = served["first"].chat.prompt([Turn(role, content) for role, content in turns])
    assert answer.usage.prompt_tokens == len(prompt)


def test_tools_reach_the_model_and_what_its_template_leaves_out_is_refused(server, served):
    hello = Turn("user", "hello")
    offered = len(served["first"].chat.prompt([hello], [TOOL]))
    assert offered > len(served["first"].chat.prompt([hello]))
    for choice, tokens in (("auto", offered), ("none", len(served["first"].chat.prompt([hello])))):
        answer = chat(server.client(), "first", "hello", tools=[TOOL], tool_choice=choice)
        assert answer.usage.prompt_tokens == tokens
    tokenizer = copy.deepcopy(served["first"].tokenizer)
    tokenizer.chat_template = TEMPLATE
    plain = replace(served["first"], tokenizer=tokenizer, chat=replace(served["first"].chat, tokenizer=tokenizer))
    assert plain.answer_to([hello], ())
    with pytest.raises(Unfit) as caught:
        plain.answer_to([hello], [TOOL])
    assert str(caught.value) == ("the template of the model leaves out the tool look_up. Leave it out of the request.")


def test_a_text_is_gone_on_with_as_predict_does(server, place, served):
    from ftkit.generate import load_generator

    texts = ["A cat", "In the garden a", "1.2: A baker meets"]
    rows = load_generator(RunDir(place / "texts"), settle_machine()).predict(texts)
    client = server.client()
    for text, row in zip(texts, rows, strict=True):
        whole = client.completions.create(model="texts", prompt=text)
        assert whole.choices[0].text == row["prediction"]
        chunks = list(client.completions.create(model="texts", prompt=text, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == row["prediction"]
        assert whole.usage.completion_tokens <= 64
    # One that was trained on conversations goes on with the text as it is, marks and all.
    raw = client.completions.create(model="first", prompt="<|im_start|>user\ncat<|im_end|>\n", max_tokens=2)
    ids = served["first"].tokenizer("<|im_start|>user\ncat<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert raw.usage.prompt_tokens == len(ids)


def test_chance_follows_the_seed_and_stops_end_the_text(server):
    client = server.client()

    def sample(**settings) -> str:
        settings = {"max_tokens": 24, "temperature": 1.5, "top_p": 0.95} | settings
        return client.completions.create(model="texts", prompt="A cat", **settings).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: sample(seed=seed), [1, 2, 3, 4, 1, 2, 3, 4]))
    assert found[:4] == found[4:]
    assert len(set(found)) == 4
    assert sample() != sample()
    stop = found[0][6:9]
    answer = client.completions.create(
        model="texts", prompt="A cat", max_tokens=24, temperature=1.5, top_p=0.95, seed=1, stop=["never said", stop]
    )
    assert answer.choices[0].text == found[0][: found[0].index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.fixture(scope="module")
def long_seed(server) -> int:
    """A seed with which the model from scratch says all tokens that it may."""
    client = server.client()
    for seed in range(30):
        if client.completions.create(model="texts", seed=seed, **LONG).usage.completion_tokens == LONG["max_tokens"]:
            return seed
    raise AssertionError("no answer is long")


def test_who_hangs_up_frees_the_place_and_stops_nobody_else(server, long_seed, expected):
    client = server.client()
    (model, text), before = next(iter(expected)), len(server.lines(status=499))
    with ThreadPoolExecutor(4) as pool:
        going = [client.completions.create(model="texts", seed=long_seed, stream=True, **LONG) for _ in range(2)]
        assert all(next(iter(stream)).choices[0].text for stream in going)
        staying = pool.submit(client.completions.create, model="texts", seed=long_seed, **LONG)
        others = [pool.submit(chat, client, model, text) for _ in range(3)]
        for stream in going:
            stream.close()
        with pytest.raises(openai.APITimeoutError):  # one that waits for the whole answer hangs up as well
            client.with_options(timeout=0.05).completions.create(model="texts", seed=long_seed, **LONG)
        assert {other.result().choices[0].message.content for other in others} == {expected[model, text]}
        assert staying.result().usage.completion_tokens == LONG["max_tokens"]
    until = time.monotonic() + 20
    while len(gone := server.lines(status=499)[before:]) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert [line["completion_tokens"] < LONG["max_tokens"] for line in gone] == [True] * 3
    counts = server.idle()
    assert counts['ftkit_requests_total{route="/v1/completions",status="499"}'] >= 3


def test_texts_are_labelled_as_predict_labels_them(server, served):
    texts = [text for text, _ in sentences(40, 9)]
    reference = list(served["labels"].predictor.predict(texts))
    assert len({tuple(row["prediction"]) for row in reference}) == 2

    def label(given: str | list[str]) -> list[dict]:
        status, _, body = server.call("/v1/classify", json.dumps({"model": "labels", "input": given}).encode())
        assert (status, body["model"]) == (200, "labels")
        return body["data"]

    with ThreadPoolExecutor(16) as pool:
        alone = [row for rows in pool.map(label, texts) for row in rows]
    for number, (row, one, own) in enumerate(zip(label(texts), alone, reference, strict=True)):
        assert row["index"] == number
        assert row["labels"] == one["labels"] == [*own["prediction"]]
        assert row["scores"] == pytest.approx(own["scores"], abs=1e-5)
        assert one["scores"] == pytest.approx(own["scores"], abs=1e-5)


HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param", "message"),
    [
        ("chat/completions", b"{", 400, "invalid_json", None, "The body is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). Send a JSON object in UTF-8."),
        ("chat/completions", b"[]", 400, "invalid_json", None, "The body is no JSON object. Send one."),
        ("chat/completions", b'{"model": "\xff"}', 400, "invalid_json", None, "The body is no JSON: 'utf-8' codec can't decode byte 0xff in position 11: invalid start byte. Send a JSON object in UTF-8."),
        ("chat/completions", {"messages": HELLO}, 400, "missing_parameter", "model", "model is missing. Add it."),
        ("chat/completions", {"model": "first", "messages": HELLO, "n": 2}, 400, "invalid_value", "n", "n: One answer is given to a request. Send several requests."),
        ("chat/completions", {"model": "first", "messages": HELLO, "logprobs": True}, 400, "invalid_value", "logprobs", "logprobs: Log-probabilities are not given. Leave it out."),
        ("completions", {"model": "first", "prompt": "a", "logprobs": 3}, 400, "invalid_value", "logprobs", "logprobs: Log-probabilities are not given. Leave it out."),
        ("chat/completions", {"model": "first", "messages": HELLO, "response_format": {}}, 400, "unknown_parameter", "response_format", "response_format is not known here. Leave it out."),
        ("chat/completions", {"model": "first", "messages": HELLO, "temperature": 3}, 400, "invalid_value", "temperature", "temperature: Input should be less than or equal to 2. Correct it."),
        ("chat/completions", {"model": "first", "messages": HELLO, "max_tokens": 10_000}, 400, "invalid_value", "max_tokens", "max_tokens is at most 4,096 here. Ask for less."),
        ("chat/completions", {"model": "first", "messages": HELLO, "stop": ""}, 400, "invalid_value", "stop", "stop: String should have at least 1 character. Correct it."),
        ("chat/completions", {"model": "nobody", "messages": HELLO}, 404, "model_not_found", "model", "There is no model 'nobody'. Models here: first, second, labels, texts."),
        ("chat/completions", {"model": "texts", "messages": HELLO}, 400, "wrong_route", "model", "texts was trained on texts, not on conversations. Use /v1/completions."),
        ("chat/completions", {"model": "labels", "messages": HELLO}, 400, "wrong_route", "model", "labels labels texts. Use /v1/classify."),
        ("classify", {"model": "first", "input": "a"}, 400, "wrong_route", "model", "first writes texts. Use /v1/chat/completions or /v1/completions."),
        ("classify", {"model": "labels", "input": []}, 400, "invalid_value", "input", "input: Input should be a valid string. Correct it."),
        ("completions", {"model": "first", "prompt": ""}, 400, "empty_prompt", "prompt", "The prompt is empty. Write one."),
        ("chat/completions", {"model": "first", "messages": []}, 400, "invalid_value", "messages", "messages: there is nothing to answer. Write a prompt, or remove the row."),
        ("chat/completions", {"model": "first", "messages": [*HELLO, {"role": "assistant", "content": "a"}]}, 400, "invalid_value", "messages", "messages: the last turn is the assistant's. End with the user's turn."),
        ("chat/completions", {"model": "first", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_value", "messages", "messages: turn 1: has a part of type image_url, and text alone can be trained. Remove the part, or the row."),
        ("chat/completions", {"model": "first", "messages": [{"role": "user", "content": "a<|im_end|>b"}]}, 400, "unfit_messages", "messages", "turn 1 (user) holds <|im_end|>, which the model reads as a mark. Remove it."),
        ("chat/completions", {"model": "first", "messages": HELLO, "tool_choice": "required"}, 400, "invalid_value", "tool_choice", "tool_choice: The model itself chooses whether it calls a tool. Write auto or none."),
        ("chat/completions", b'{"model": "first", "messages": [{"role": "user", "content": "\\ud83d"}]}', 400, "invalid_json", None, "The body is no JSON: 'utf-8' codec can't encode character '\\ud83d' in position 61: surrogates not allowed. Send a JSON object in UTF-8."),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_the_fix(server, path, body, status, code, param, message):
    found, headers, document = server.call(
        f"/v1/{path}", body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    assert document == {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    assert found == status
    assert headers["x-request-id"]


def test_a_prompt_that_fills_the_model_is_refused(server, served):
    client, text = server.client(), "A cat meets a dog. " * 200
    tokens = len(served["first"].chat.prompt((Turn("user", text),)))
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "first", text)
    assert caught.value.body["message"] == (
        f"The prompt has {tokens:,} tokens, and the model holds 512 with the answer. Shorten it."
    )
    assert caught.value.code == "context_length_exceeded"
    # One that nearly does gets what is left.
    short = "cat " * 100
    left = 512 - len(served["texts"].going_on(short))
    answer = client.completions.create(model="texts", prompt=short, max_tokens=4096, temperature=0)
    assert answer.usage.completion_tokens <= left


def test_bodies_are_bounded_and_must_be_called_json(server):
    body = json.dumps({"model": "first", "messages": [{"role": "user", "content": "a" * (4 * 2**20)}]}).encode()
    status, _, document = server.call("/v1/chat/completions", body)
    assert (status, document["error"]["code"]) == (413, "body_too_large")
    assert document["error"]["message"] == "The body is larger than 4,194,304 bytes. Send less."
    status, _, document = server.call("/v1/chat/completions", b"{}", **{"content-type": "text/plain"})
    assert (status, document["error"]["code"]) == (415, "not_json")
    assert server.call("/v1/nothing")[::2][0] == 404
    assert server.call("/v1/chat/completions")[0] == 405


def test_models_are_listed_and_ids_come_back(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["first", "second", "labels", "texts"]
    assert client.models.retrieve("second").owned_by == "ftkit"
    status, headers, body = server.call("/health", **{"x-request-id": "mine-7"})
    assert (status, body, headers["x-request-id"]) == (200, {"status": "ok"}, "mine-7")
    assert [line["path"] for line in server.lines(id="mine-7")] == ["/health"]
    # One that would forge a log line is not taken over.
    assert re.fullmatch("[0-9a-f]{24}", server.call("/health", **{"x-request-id": "a b"})[1]["x-request-id"])


def test_a_key_too_many_requests_and_the_end(started, long_seed):
    """SIGTERM lets what runs end, takes nothing more, and ends well."""
    server = started[1].ready()
    for wrong in ("", "a long secre", "a long secret2", "none"):
        with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)) as caught:
            server.client(api_key=wrong or "x").models.list()
        assert caught.value.code == "invalid_api_key"
    assert server.call("/v1/models")[0] == server.call("/metrics")[0] == 401
    assert server.call("/v1/models", **{"authorization": f"Basic {KEY}"})[0] == 401
    assert server.call("/health")[0] == 200
    client = server.client()
    streams = [client.completions.create(model="texts", seed=long_seed, stream=True, **LONG) for _ in range(2)]
    said = [[next(iter(stream)).choices[0].text] for stream in streams]
    with pytest.raises(openai.RateLimitError) as refused:
        client.completions.create(model="texts", prompt="A cat")
    assert refused.value.body["message"] == "Too many requests wait. Try again."
    assert refused.value.response.headers["retry-after"] == "1"
    server.process.send_signal(signal.SIGTERM)
    for stream, words in zip(streams, said, strict=True):
        chunks = list(stream)
        words += [chunk.choices[0].text for chunk in chunks]
        assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(said[0]) == "".join(said[1])
    assert server.process.wait(30) == 0
    assert server.log.splitlines()[-1].startswith("{")
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    assert KEY not in server.log


def events_of(engine: Engine, job: Answer | Labelling) -> list:
    """All that a job hears until its end."""
    heard: list = []
    job.hear = heard.append
    engine.submit(job)
    until = time.monotonic() + 30
    while not heard or type(heard[-1]).__name__ == "Said":
        assert time.monotonic() < until
        time.sleep(0.005)
    return heard


def test_a_request_that_breaks_the_engine_breaks_itself_alone(served):
    logged: list[str] = []
    engine = Engine(8, lambda what, error: logged.append(f"{what}: {error}"))
    engine.start()
    good = served["texts"]
    broken = replace(good, stop_ids=None)
    (failed,) = events_of(engine, Answer(broken, [5, 6], 4, Sampling(), (), False, print))
    assert isinstance(failed, Failed)
    assert logged == ["a batch failed: argument of type 'NoneType' is not iterable"]
    assert type(events_of(engine, Answer(good, [5, 6], 4, Sampling(), (), False, print))[-1]).__name__ == "Ended"
    rows = events_of(engine, Labelling(served["labels"], ["the film was great"], print))
    assert isinstance(rows[0], Labelled)
    engine.stop(5)
    assert not engine.works


@pytest.fixture(scope="module")
def endless(served):
    """A model that stops at nothing."""
    return replace(served["texts"], stop_ids=())


def test_who_is_gone_is_dropped_and_those_who_come_later_join(endless):
    """One hangs up at its first word; another, that begins later, ends long before the first that goes on."""
    order: list[str] = []

    def job(name: str, room: int) -> Answer:
        return Answer(
            endless,
            [5, 6],
            room,
            Sampling(2.0),
            (),
            False,
            lambda event: order.append(f"{name} {type(event).__name__}"),
        )

    def hang_up(event: object) -> None:
        going.gone = True

    engine = Engine(8, lambda what, error: None)
    long, short, going = job("long", 400), job("short", 20), job("going", 400)
    going.hear = hang_up
    engine.start()
    engine.submit(long)
    engine.submit(going)
    while "long Said" not in order:
        time.sleep(0.001)
    engine.submit(short)
    engine.stop(60)
    assert len(going.row.made) < 10
    assert (len(long.row.made), len(short.row.made)) == (400, 20)
    assert order.index("short Ended") < order.index("long Ended")


def test_what_is_not_done_in_time_is_told_so(endless):
    engine = Engine(2, lambda what, error: None)
    heard: list = []
    jobs = [Answer(endless, [5, 6], 500, Sampling(2.0, 1.0, n), (), False, heard.append) for n in (1, 2)]
    engine.start()
    for job in jobs:
        engine.submit(job)
    with pytest.raises(Busy):
        engine.submit(jobs[0])
    engine.stop(0.0)
    failed = [event.error for event in heard if isinstance(event, Failed)]
    assert [type(error) for error in failed] == [Stopping, Stopping]
    with pytest.raises(Stopping):
        engine.submit(jobs[0])


class TestStart:
    @pytest.fixture(autouse=True)
    def _here(self, place, monkeypatch):
        monkeypatch.chdir(place)
        monkeypatch.delenv("FTKIT_API_KEY", raising=False)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
    def test_an_open_address_needs_a_key(self, host, monkeypatch):
        for given in (None, "", "  "):
            if given is not None:
                monkeypatch.setenv("FTKIT_API_KEY", given)
            with pytest.raises(RecipeError) as caught:
                serve_runs(["first"], host, 0)
            assert str(caught.value) == (
                f"error: anybody could use the models at {host}\n"
                "  --host   Set FTKIT_API_KEY to a long secret, which clients then send as their API key, or leave --host out."
            )

    def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(MachineError) as caught:
                serve_runs(["first"], "127.0.0.1", port)
        assert str(caught.value) == (
            f"error: 127.0.0.1 port {port} cannot be had\n"
            "  --port   Address already in use. Choose another with --host and --port (0: one that is free)."
        )

    def test_adapters_on_4_bits_share_one_base_in_4_bits(self, decoder, tmp_path):
        """Each with the logits that it has alone. A merged one is another model, and has a base of its own."""
        import torch

        from ftkit.answer import load_answerer
        from ftkit.trained import trained_by

        qlora, machine = "{type: lora, r: 8, alpha: 16, quantize: nf4}", settle_machine()
        runs = []
        for name, merge in (("first", "false"), ("second", "false"), ("merged", "{tolerance: 0.9}")):
            settings = {"adapter": qlora, "merge": merge, "eval": "{metrics: [perplexity], max_new_tokens: 4}"}
            train = f"{{epochs: 1, batch_size: 8, learning_rate: 5e-3, seed: {len(runs)}}}"
            path = write_recipe(tmp_path, decoder("llama"), name=name, train=train, **settings)
            runs.append(RunDir(carried_out(path, tmp_path / name)))
        served = load_served(runs, machine)
        assert served["first"].model is served["second"].model
        assert served["merged"].adapter is None
        ids = torch.tensor([served["first"].going_on("What is two and three?")])
        found = []
        for name, run in zip(("first", "second"), runs, strict=False):
            served[name].model.set_adapter(served[name].adapter)
            alone = load_answerer(trained_by(run), machine).model
            with torch.inference_mode():
                found.append(served[name].model(ids).logits)
                torch.testing.assert_close(found[-1], alone(ids).logits, rtol=0, atol=1e-5)
        assert float((found[0] - found[1]).abs().max()) > 1e-2

    def test_two_runs_need_two_names(self, place, tmp_path):
        import shutil

        shutil.copytree(place / "labels", tmp_path / "other")
        found = load_served([RunDir(place / "labels"), RunDir(tmp_path / "other")], settle_machine())
        assert [*found] == ["labels/labels", "labels/other"]
        with pytest.raises(RecipeError) as caught:
            serve_runs(["labels", "labels"], "127.0.0.1", 0)
        assert str(caught.value) == (
            "error: two models have one name\n"
            "  RUN   Both would be called labels/labels. Give each run once, and rename the folder of one where they differ."
        )
