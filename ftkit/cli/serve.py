"""``ftkit serve``."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Mapping
from threading import Thread
from typing import TYPE_CHECKING, NoReturn

from ftkit.errors import MachineError, Problem, RecipeError
from ftkit.interruption import after_the_step
from ftkit.models.hardware import settle_environment, settle_machine
from ftkit.rundir import RunDir, find_run, task_of

if TYPE_CHECKING:
    from ftkit.serve.served import Served

KEY = "FTKIT_API_KEY"
_GRACE = 20.0  # seconds that requests have to end when the server is stopped
_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def serve_runs(runs: list[str], host: str, port: int, *, max_waiting: int = 256) -> None:
    """Serves models until Ctrl-C or SIGTERM; then running requests have 20 seconds to end, or until a second signal.

    ``port`` 0: one that is free. ``max_waiting``: requests that are held at once, those being answered included.

    Raises RecipeError for an open address without a key and for runs that cannot be served, MachineError where a
    package is missing or the address cannot be had.
    """
    warnings.simplefilter("ignore")
    key = _key(host)
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        fix = "Install what serving needs: pip install 'ftkit[serve]'."
        raise MachineError(f"{', '.join(missing)} is not installed", [Problem("", "serve", fix)])
    found = [find_run(run) for run in runs]
    for run in found:
        task_of(run)
    with _bound(host, port) as listener:
        settle_environment()
        from ftkit.models.base import quiet_libraries
        from ftkit.serve.served import load_served

        quiet_libraries()
        models = load_served(found, settle_machine())
        _say_whole(found)
        _serve(models, listener, key, max_waiting)


def serve_by_vllm(runs: list[str], host: str, port: int) -> NoReturn:
    """Starts vLLM's own server for the runs, which takes the place of this process.

    ``port`` 0: one that is free. Raises RecipeError for an open address without a key and for runs that vLLM cannot
    serve, MachineError where vLLM is not installed, a base is not to be had, or the address is taken.
    """
    warnings.simplefilter("ignore")
    key = _key(host)
    from ftkit.serve.vllm import Address, find_program, launch_of, start

    find_program()
    found = [find_run(run) for run in runs]
    with _bound(host, port) as listener:
        port = listener.getsockname()[1]
    launch = launch_of(found, Address(host, port, key))
    _say_whole(found)
    if not _is_own(host):
        sys.stderr.write(
            "vLLM asks for the key under /v1 and its like only, and answers at /invocations without it. "
            "Put a proxy before it that passes /v1 alone.\n"
        )
    start(launch)


def _key(host: str) -> str | None:
    """The API key from the environment. Raises RecipeError where the address needs one and there is none."""
    key = os.environ.get(KEY, "").strip()
    if not key and not _is_own(host):
        fix = f"Set {KEY} to a long secret, which clients then send as their API key, or leave --host out."
        raise RecipeError(f"anybody could use the models at {host}", [Problem("", "--host", fix)])
    return key or None


def _is_own(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, taken before any model is loaded; it does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_address(host, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error) from None
    return listener


def _no_address(host: str, port: int, error: OSError) -> MachineError:
    fix = f"{error.strerror}. Choose another with --host and --port (0: one that is free)."
    return MachineError(f"{host} port {port} cannot be had", [Problem("", "--port", fix)])


def _say_whole(runs: list[RunDir]) -> None:
    """As predict says it: what a training row's columns were put into is not put around a message."""
    from ftkit.tasks.section import Sft
    from ftkit.trained import trained_by

    for run in runs:
        task = trained_by(run).section("task", Sft) if task_of(run) == "sft" else None
        if task is not None and task.prompt is not None:
            sys.stderr.write(f"{run.folder}: task.prompt ({task.prompt!r}) is not put around messages.\n")


def _serve(models: Mapping[str, Served], listener: socket.socket, key: str | None, max_waiting: int) -> None:
    import uvicorn

    from ftkit.serve.app import make_app
    from ftkit.serve.engine import Engine

    engine = Engine(max_waiting, _log)
    engine.start()
    app = make_app(models, engine, key)
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        # After the engine's: by then every request has its answer, or the refusal that tells why it has none.
        timeout_graceful_shutdown=int(_GRACE) + 5,
    )
    server = uvicorn.Server(settings)
    # In a thread of its own, so that signals come here, and not to uvicorn, which would raise them again at the end.
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    host, port = listener.getsockname()[:2]
    with after_the_step() as stop:
        thread.start()
        while thread.is_alive() and not server.started:
            thread.join(0.02)
        shown = f"[{host}]" if ":" in host else host
        sys.stderr.write(f"Serving {', '.join(models)} at http://{shown}:{port}/v1. Ctrl-C stops.\n")
        while thread.is_alive() and not stop.requested:
            thread.join(0.2)
        if not stop.requested:
            raise MachineError("the server ended by itself", [Problem("", "serve", "What stands above says why.")])
        sys.stderr.write(f"Stopping: running requests have {_GRACE:.0f} seconds to end.\n")
        server.should_exit = True
        engine.stop(_GRACE)
        thread.join()


def _log(what: str, error: Exception) -> None:
    sys.stderr.write(f"error: {what}\n{''.join(traceback.format_exception(error))}")
