"""What a client hears that is refused: a status, and a body in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftkit.serve.engine import Busy, Stopping


class Refusal(Exception):
    """``param``: the key of the request that it is about; ``code``: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if headers is None else dict(headers)

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: Exception) -> Refusal:
    """What a client hears of an error in the engine: nothing of how the program is made."""
    match error:
        case Refusal():
            return error
        case Busy():
            return Refusal(429, "Too many requests wait. Try again.", "too_many_requests", headers={"retry-after": "1"})
        case Stopping():
            return Refusal(503, "The server is stopping. Try again later.", "stopping", headers={"retry-after": "5"})
    return Refusal(500, "The server failed. Its log says why.", "failed")
