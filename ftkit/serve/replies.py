"""What a client gets of an answer: all at once, or piece by piece as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.serve.door import GONE, Facts
from ftkit.serve.engine import Answer, Ended, Event, Failed, Job, Said
from ftkit.serve.metrics import Metrics
from ftkit.serve.refusal import refusal_of
from ftkit.tasks.tool_calls import Call, CallReader, calls_of, content_of

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send


class Hearing:
    """Carries what the engine's thread says to the coroutine that answers a request, and that the client hung up."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Event | None] = asyncio.Queue()

    def hear(self, event: Event) -> None:
        """For the engine's thread."""
        self._loop.call_soon_threadsafe(self._heard.put_nowait, event)

    async def events(self, job: Job) -> AsyncGenerator[Event]:
        """All that is heard of the job; it ends early where the client hangs up. Left, it tells the engine so."""
        watch = asyncio.create_task(self._watch())
        try:
            while (event := await self._heard.get()) is not None:
                yield event
                if not isinstance(event, Said):
                    break
        finally:
            job.gone = True
            watch.cancel()

    async def _watch(self) -> None:
        """The body has been read: what else is received is the end of the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._heard.put_nowait(None)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as OpenAI's API has it: of a ``chat``, or the continuation of a text.

    ``calls``: what reads its calls of tools, None where all of it is text.
    """

    facts: Facts
    created: int
    chat: bool
    usage_at_end: bool
    metrics: Metrics
    calls: CallReader | None = None

    async def whole(self, job: Answer, hearing: Hearing) -> Response:
        """Raises Refusal where the engine failed."""
        from starlette.responses import JSONResponse

        parts: list[str | Call] = []
        async with aclosing(self._events(job, hearing)) as events:
            async for event in events:
                parts += self._settled(event)
                match event:
                    case Failed(error):
                        raise refusal_of(error)
                    case Ended(reason):
                        said = {"message": _message(parts)} if self.chat else {"text": content_of(parts)}
                        choice = self._choice(said, _reason(reason, len(calls_of(parts))))
                        return JSONResponse(self._document(choice) | {"usage": self._usage(event)})
        return gone(self.facts)

    def stream(self, job: Answer, hearing: Hearing) -> Any:
        """An ASGI response. What fails after its beginning is an event with an error."""
        return _Stream(self._lines(job, hearing))

    async def _lines(self, job: Answer, hearing: Hearing) -> AsyncGenerator[bytes]:
        ended, calls = False, 0
        async with aclosing(self._events(job, hearing)) as events:
            if self.chat:
                yield self._piece({"delta": {"role": "assistant", "content": "" if self.calls is None else None}})
            async for event in events:
                for part in self._settled(event):
                    yield self._piece({"delta": _delta(part, calls)} if self.chat else {"text": part})
                    calls += isinstance(part, Call)
                match event:
                    case Said():
                        continue
                    case Failed(error):
                        yield _line(refusal_of(error).body)
                    case Ended(reason):
                        yield self._piece({"delta": {}} if self.chat else {"text": ""}, _reason(reason, calls))
                        if self.usage_at_end:
                            yield _line(self._document() | {"usage": self._usage(event)})
                        yield b"data: [DONE]\n\n"
                ended = True
        if not ended:
            gone(self.facts)

    def _settled(self, event: Event) -> list[str | Call]:
        """The text and the calls that an event settles."""
        match event:
            case Said(text):
                return [text] if self.calls is None else self.calls.add(text)
            case Ended():
                return [] if self.calls is None else self.calls.end()
        return []

    async def _events(self, job: Answer, hearing: Hearing) -> AsyncGenerator[Event]:
        try:
            async with aclosing(hearing.events(job)) as events:
                async for event in events:
                    yield event
        finally:
            made = 0 if job.row is None else len(job.row.made)
            self.facts.completion_tokens = made
            self.metrics.tokens(job.served.name, len(job.prompt), made)

    def _piece(self, said: Mapping[str, Any], reason: str | None = None) -> bytes:
        return _line(self._document(self._choice(said, reason), chunk=True))

    @staticmethod
    def _choice(said: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def _document(self, *choices: dict[str, Any], chunk: bool = False) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk or not choices else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.facts.id}",
            "object": kind,
            "created": self.created,
            "model": self.facts.model,
            "choices": [*choices],
        }

    def _usage(self, ended: Ended) -> dict[str, int]:
        asked = self.facts.prompt_tokens or 0
        return {"prompt_tokens": asked, "completion_tokens": ended.tokens, "total_tokens": asked + ended.tokens}


@dataclass(frozen=True, slots=True)
class _Stream:
    """Server-sent events: each is sent as soon as it is there."""

    lines: AsyncGenerator[bytes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self.lines):
            async for line in self.lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def gone(facts: Facts) -> Response:
    """What is answered to nobody; the log has it as hung up."""
    from starlette.responses import Response

    facts.status = GONE
    return Response(status_code=GONE)


def _message(parts: Sequence[str | Call]) -> dict[str, Any]:
    content, calls = content_of(parts), [_as_openai(call) for call in calls_of(parts)]
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | {"content": content or None, "tool_calls": calls} if calls else message


def _delta(part: str | Call, calls: int) -> dict[str, Any]:
    """What a part adds to a streamed message that has so many calls."""
    return {"content": part} if isinstance(part, str) else {"tool_calls": [{"index": calls, **_as_openai(part)}]}


def _as_openai(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _reason(ended: str, calls: int) -> str:
    """An answer that was cut off says so, with calls or without."""
    return "tool_calls" if calls and ended == "stop" else ended


def _line(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"
