"""What every request passes: its id, the key, the limit of its size, the log line and the counts."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from ftkit.serve.metrics import Metrics
from ftkit.serve.refusal import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY = 4 * 2**20  # bytes
_DISCARDED = 16 * MOST_BODY  # of a longer body that are read before the refusal: a client hears it when it has sent all
_BODY_SECONDS = 30.0
_ID = re.compile(r"[\x21-\x7e]{1,128}")
GONE = 499  # the status in log and counts of a client that hung up


@dataclass(slots=True)
class Facts:
    """What the log tells of a request. ``status`` is what the client got, or GONE."""

    id: str
    status: int = 0
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    begun: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Door:
    """An ASGI application around another. ``key``: what a client must send as its bearer token; None: nothing."""

    inside: ASGIApp
    metrics: Metrics
    key: str | None
    routes: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        facts = Facts(given if _ID.fullmatch(given) else secrets.token_hex(12))
        scope["facts"] = facts

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = facts.status or message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", facts.id.encode())]
            await send(message)

        try:
            if scope["path"] != "/health" and not self._may(headers.get("authorization", "")):
                await refuse(_WRONG_KEY, answer)
            else:
                await self.inside(scope, receive, answer)
        finally:
            self._tell(scope, facts)

    def _may(self, authorization: str) -> bool:
        if self.key is None:
            return True
        kind, _, token = authorization.partition(" ")
        # Hashes have one length, so that not even the key's is told by the time that this takes.
        digests = (sha256(text.strip().encode("utf-8", "surrogateescape")).digest() for text in (token, self.key))
        return compare_digest(*digests) and kind.lower() == "bearer"

    def _tell(self, scope: Scope, facts: Facts) -> None:
        seconds = time.monotonic() - facts.begun
        route = scope["path"] if scope["path"] in self.routes else "other"
        self.metrics.answered(route, facts.status, seconds)
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": facts.id,
            "client": (scope.get("client") or [None])[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": facts.status,
            "ms": round(seconds * 1000, 1),
            "model": facts.model,
            "prompt_tokens": facts.prompt_tokens,
            "completion_tokens": facts.completion_tokens,
        }
        sys.stderr.write(json.dumps({name: value for name, value in line.items() if value is not None}) + "\n")


_WRONG_KEY = Refusal(
    401,
    "The API key is missing or wrong. Send the key of the server as Authorization: Bearer KEY.",
    "invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


async def refuse(refusal: Refusal, send: Callable[[Message], Any]) -> None:
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def read_body(request: Request) -> bytes:
    """Raises Refusal for one that is too large (413), too slow (408), or not called JSON (415)."""
    # A page of another site may send a browser's user to this address, but not with this type.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "The body is not called JSON. Send the header Content-Type: application/json.", "not_json")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    parts.clear()
                else:
                    parts.append(part)
                if size > _DISCARDED:
                    break
    except TimeoutError:
        raise Refusal(408, "The body did not come in 30 seconds. Send it again.", "timeout") from None
    if size > MOST_BODY:
        raise Refusal(413, f"The body is larger than {MOST_BODY:,} bytes. Send less.", "body_too_large")
    return b"".join(parts)
