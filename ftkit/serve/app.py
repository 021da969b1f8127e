"""The routes of the server: OpenAI's for words, one for labels, and what tells how the server is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ftkit.data.turns import RowError, check_asked, read_tools, read_turns
from ftkit.errors import DataError
from ftkit.records import Turn
from ftkit.serve.door import Door, Facts, read_body
from ftkit.serve.engine import Answer, Busy, Engine, Failed, Labelled, Labelling, Stopping
from ftkit.serve.metrics import Metrics
from ftkit.serve.orders import ChatOrder, ClassifyOrder, CompletionOrder, Generating, read_order
from ftkit.serve.refusal import Refusal, refusal_of
from ftkit.serve.replies import Hearing, Reply, gone
from ftkit.serve.served import Labels, Language, Served
from ftkit.tasks.chat import Unfit
from ftkit.tasks.tool_calls import CallReader

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

_MOST_NEW = 4096  # tokens of an answer
Kind = TypeVar("Kind", Labels, Language)
Route = Callable[["Request"], Awaitable["Response"]]


def make_app(models: Mapping[str, Served], engine: Engine, key: str | None) -> ASGIApp:
    """The server's application. ``key``: the API key that clients must send, None where none is needed."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException

    metrics = Metrics(engine)
    routes = _Routes(models, engine, metrics)
    table: dict[str, tuple[str, Route]] = {
        "/v1/chat/completions": ("POST", routes.chat),
        "/v1/completions": ("POST", routes.complete),
        "/v1/classify": ("POST", routes.classify),
        "/v1/models": ("GET", routes.models_list),
        "/v1/models/{name:path}": ("GET", routes.model_facts),
        "/health": ("GET", routes.health),
        "/metrics": ("GET", routes.counts),
    }
    no_route = partial(_no_route, [path for path in table if "{" not in path])
    handlers: Mapping[Any, Any] = {Refusal: _refused, HTTPException: no_route, Exception: _failed}
    app = Starlette(exception_handlers=handlers)
    for path, (method, route) in table.items():
        app.add_route(path, route, methods=[method])
    return Door(app, metrics, key, frozenset(table))


@dataclass(frozen=True, slots=True)
class _Routes:
    served: Mapping[str, Served]
    engine: Engine
    metrics: Metrics

    async def chat(self, request: Request) -> Response:
        order = read_order(await read_body(request), ChatOrder)
        language = self._find(order.model, Language)
        if language.chat is None:
            fix = f"{order.model} was trained on texts, not on conversations. Use /v1/completions."
            raise Refusal(400, fix, "wrong_route", "model")
        turns, tools = _asked(order)
        try:
            prompt = await asyncio.to_thread(language.answer_to, turns, tools)
        except Unfit as unfit:
            raise Refusal(400, f"{unfit}", "unfit_messages", "messages") from None
        return await self._answer(request, order, language, prompt, chat=True, calls=_reader(order, language, tools))

    async def complete(self, request: Request) -> Response:
        order = read_order(await read_body(request), CompletionOrder)
        language = self._find(order.model, Language)
        prompt = await asyncio.to_thread(language.going_on, order.text)
        if not prompt:
            raise Refusal(400, "The prompt is empty. Write one.", "empty_prompt", "prompt")
        return await self._answer(request, order, language, prompt, chat=False)

    async def classify(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        order = read_order(await read_body(request), ClassifyOrder)
        labels = self._find(order.model, Labels)
        hearing = Hearing(request.receive)
        job = Labelling(labels, order.texts, hearing.hear)
        facts: Facts = request.scope["facts"]
        facts.model = order.model
        self._submit(job)
        async with aclosing(hearing.events(job)) as events:
            event = await anext(events, None)
        if event is None:
            return gone(facts)
        if isinstance(event, Failed):
            raise _refusal_of_text(event.error)
        assert isinstance(event, Labelled)
        data = [
            {"index": index, "labels": _listed(row["prediction"]), "scores": row["scores"]}
            for index, row in enumerate(event.rows)
        ]
        return JSONResponse({"object": "list", "model": order.model, "data": data})

    async def models_list(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse({"object": "list", "data": [_facts_of(model) for model in self.served.values()]})

    async def model_facts(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse(_facts_of(self._known(request.path_params["name"])))

    async def health(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        works = self.engine.works
        return JSONResponse({"status": "ok" if works else "stopping"}, status_code=200 if works else 503)

    async def counts(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(self.metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    async def _answer(
        self,
        request: Request,
        order: Generating,
        language: Language,
        prompt: list[int],
        *,
        chat: bool,
        calls: CallReader | None = None,
    ) -> Response:
        hearing = Hearing(request.receive)
        room = _room(order, language, len(prompt))
        kept = () if calls is None else calls.form.special
        job = Answer(language, prompt, room, order.sampling, order.stops, chat, hearing.hear, kept)
        facts: Facts = request.scope["facts"]
        facts.model, facts.prompt_tokens = order.model, len(prompt)
        self._submit(job)
        reply = Reply(facts, int(time.time()), chat, order.usage_at_end, self.metrics, calls)
        return reply.stream(job, hearing) if order.stream else await reply.whole(job, hearing)

    def _submit(self, job: Answer | Labelling) -> None:
        try:
            self.engine.submit(job)
        except (Busy, Stopping) as error:
            raise refusal_of(error) from None

    def _known(self, name: str) -> Served:
        model = self.served.get(name)
        if model is None:
            names = ", ".join(self.served)
            raise Refusal(404, f"There is no model {name[:100]!r}. Models here: {names}.", "model_not_found", "model")
        return model

    def _find(self, name: str, kind: type[Kind]) -> Kind:
        model = self._known(name)
        if not isinstance(model, kind):
            route = "/v1/classify" if isinstance(model, Labels) else "/v1/chat/completions or /v1/completions"
            does = "labels texts" if isinstance(model, Labels) else "writes texts"
            raise Refusal(400, f"{name} {does}. Use {route}.", "wrong_route", "model")
        return model


def _asked(order: ChatOrder) -> tuple[tuple[Turn, ...], tuple[Mapping[str, Any], ...]]:
    """The turns and tools of a request. Raises Refusal (400) where they are none, or ask nothing."""
    try:
        turns = read_turns(order.messages, "messages")
        check_asked(turns, "messages")
        if turns[-1].role == "assistant":
            raise RowError("messages", "the last turn is the assistant's. End with the user's turn.")
        tools = read_tools(None if order.tool_choice == "none" else order.tools, "tools")
    except RowError as error:
        raise Refusal(400, f"{error.column}: {error}", "invalid_value", error.column) from None
    return turns, tools


def _reader(order: ChatOrder, language: Language, tools: Sequence[Mapping[str, Any]]) -> CallReader | None:
    """What reads the calls of an answer; None where no tools are on offer, or the model's calls cannot be read.

    Raises Refusal (400) where one call alone is asked for and the model may make several.
    """
    form = language.calls
    if not tools or form is None:
        return None
    if order.parallel_tool_calls is False and form.between is not None:
        message = "parallel_tool_calls: The model itself chooses how many tools it calls. Leave it out."
        raise Refusal(400, message, "invalid_value", "parallel_tool_calls")
    return CallReader(form, [str(tool["function"]["name"]) for tool in tools])


def _room(order: Generating, language: Language, prompt: int) -> int:
    """How many tokens the answer may have: what is asked for, or what the model holds with the prompt if that is less.

    Raises Refusal (400) where the prompt fills the model, or more is asked for than the server gives.
    """
    if language.limit is not None and prompt >= language.limit:
        message = (
            f"The prompt has {prompt:,} tokens, and the model holds {language.limit:,} with the answer. Shorten it."
        )
        raise Refusal(400, message, "context_length_exceeded", "messages" if isinstance(order, ChatOrder) else "prompt")
    most = language.max_new_tokens if order.most is None else order.most
    if most > _MOST_NEW:
        raise Refusal(400, f"max_tokens is at most {_MOST_NEW:,} here. Ask for less.", "invalid_value", "max_tokens")
    return most if language.limit is None else min(most, language.limit - prompt)


def _listed(prediction: Any) -> list[str]:
    """The labels of a text: one, or those of a multi-label task."""
    return [prediction] if isinstance(prediction, str) else [*prediction]


def _facts_of(model: Served) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "ftkit"}


def _refusal_of_text(error: Exception) -> Refusal:
    if isinstance(error, DataError):
        return Refusal(400, " ".join(problem.message for problem in error.problems), "unfit_text", "input")
    return refusal_of(error)


async def _refused(request: Request, error: Refusal) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _no_route(paths: Sequence[str], request: Request, error: Any) -> Response:
    """What Starlette itself refuses: an unknown path, or a method that a path does not take."""
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    message = f"There is no {request.method} {request.url.path[:100]}. Use one of {', '.join(paths)}."
    return await _refused(request, Refusal(error.status_code, message, code, headers=error.headers))


async def _failed(request: Request, error: Exception) -> Response:
    """A bug. It is raised again behind the answer, so that uvicorn logs it."""
    return await _refused(request, refusal_of(error))
