"""With what a run was made: versions, and the command that repeats it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "evaluate", "tokenizers",
    "safetensors", "scikit-learn", "scipy", "numpy", "pydantic",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that shape a result, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def run_command(recipe: str, overrides: Sequence[str]) -> str:
    """The command line that makes the run again."""
    words = ["ftkit", "run", recipe]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def recipe_of(command: str) -> str:
    """The recipe of a command line that ``run_command`` made."""
    return shlex.split(command)[2]


def overrides_of(command: str) -> list[str]:
    """Its ``--set`` options."""
    return shlex.split(command)[4::2]
