"""What clients may ask for: the bodies of requests, checked whole before anything is done with them.

A key that OpenAI's API has and that would change the answer is carried out or refused, never left unread.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftkit.serve.refusal import Refusal
from ftkit.tasks.decoding import Sampling

Stop = Annotated[str, Field(min_length=1, max_length=256)]
NoneOrZero = Annotated[float, Field(ge=0, le=0)] | None
Kind = TypeVar("Kind", bound="Order")


class Order(BaseModel):
    """What all bodies have. ``user`` and its like say who asks; they change nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Generating(Order):
    """What requests for words have in common. Left out, ``temperature`` is 0: the model answers as it was evaluated."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: NoneOrZero = None
    frequency_penalty: NoneOrZero = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def sampling(self) -> Sampling:
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p, seed)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most(self) -> int | None:
        return self.max_tokens

    @property
    def usage_at_end(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatOrder(Generating):
    """The body of /v1/chat/completions. Messages and tools are read as those of training rows are."""

    messages: list[Any]
    tools: list[Any] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: NoneOrZero = None

    @property
    def most(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionOrder(Generating):
    """The body of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class ClassifyOrder(Order):
    """The body of /v1/classify: a text, or several."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=1024)]

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


# Keys of OpenAI's API whose only allowed values are those that change nothing.
_NOT_HERE = {
    "n": "One answer is given to a request. Send several requests.",
    "best_of": "One answer is given to a request. Leave it out.",
    "logprobs": "Log-probabilities are not given. Leave it out.",
    "top_logprobs": "Log-probabilities are not given. Leave it out.",
    "presence_penalty": "Penalties are not carried out. Leave it out.",
    "frequency_penalty": "Penalties are not carried out. Leave it out.",
    "logit_bias": "Biases are not carried out. Leave it out.",
    "echo": "The prompt is not repeated. Leave it out.",
    "suffix": "Gaps are not filled. Leave it out.",
    "tool_choice": "The model itself chooses whether it calls a tool. Write auto or none.",
}


def read_order(body: bytes, kind: type[Kind]) -> Kind:
    """Raises Refusal (400) for what is no JSON, and for the first key that is missing, unknown or wrong."""
    try:
        document = json.loads(body)
        # What JSON cannot carry, half of a surrogate pair say, no tokenizer takes.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0]
        raise Refusal(400, f"The body is no JSON: {what}. Send a JSON object in UTF-8.", "invalid_json") from None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = str(first["loc"][0]) if first["loc"] else None
    if key is None:
        return Refusal(400, "The body is no JSON object. Send one.", "invalid_json")
    if first["type"] == "missing":
        return Refusal(400, f"{key} is missing. Add it.", "missing_parameter", key)
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"{key} is not known here. Leave it out.", "unknown_parameter", key)
    fix = _NOT_HERE.get(key) or f"{first['msg']}. Correct it."
    return Refusal(400, f"{key}: {fix}", "invalid_value", key)
