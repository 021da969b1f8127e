"""What a server counts of itself, as Prometheus reads it."""

from __future__ import annotations

from ftkit.serve.engine import Engine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts requests, tokens and seconds. Each server has its own, so that two in a process do not mix."""

    def __init__(self, engine: Engine) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = own = CollectorRegistry()
        self._requests = Counter("ftkit_requests", "Requests that were answered.", ["route", "status"], registry=own)
        self._seconds = Histogram(
            "ftkit_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self._tokens = Counter("ftkit_tokens", "Tokens of prompts and answers.", ["model", "direction"], registry=own)
        waiting = Gauge("ftkit_waiting_requests", "Requests that wait for the model.", registry=own)
        waiting.set_function(lambda: engine.waiting)
        running = Gauge("ftkit_running_requests", "Requests that the model is answering.", registry=own)
        running.set_function(lambda: engine.running)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, model: str, prompt: int, answer: int) -> None:
        self._tokens.labels(model, "in").inc(prompt)
        self._tokens.labels(model, "out").inc(answer)

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
