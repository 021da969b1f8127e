"""Runs as a command of vLLM's own server (``vllm serve``), and the start of that command in the place of this process.

Flags, variables and limits are those of the source of vLLM 0.33.0 (2026-11). Nothing of vLLM is imported: it asks for
other versions of the libraries than ftkit, so its program mostly belongs to another environment.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ftkit.answer import chat_of
from ftkit.errors import MachineError, Problem, RecipeError
from ftkit.files import cache_folder, read_json, sha256_text, write_text
from ftkit.merging import stored_dtype
from ftkit.models.base import GENERATION, load_tokenizer
from ftkit.models.locate import BaseFiles
from ftkit.rundir import RunDir, task_of
from ftkit.serve.served import named_runs
from ftkit.serve.vllm_adapters import check_together, max_rank
from ftkit.tasks.section import Sft
from ftkit.tasks.tokens import start_token
from ftkit.trained import Trained, trained_by

_PROGRAM = "vllm"
_GREEDY = '{"temperature": 0.0}'  # unless a request asks for another: the model answers as it was evaluated
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the key that clients must send, None where they need none."""

    host: str
    port: int
    key: str | None

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/v1"


@dataclass(frozen=True, slots=True)
class Launch:
    """A server that is to be started, with its ``models`` by the names that clients send.

    ``argv`` begins with the program's name. ``environment`` is put over this process's own; a key is in it, and not in
    ``argv``, which every user of the machine can read. ``files`` are written before the start. ``notes``: what clients
    meet otherwise than with ftkit's own server.
    """

    models: tuple[str, ...]
    url: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    files: Mapping[Path, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Voice:
    """How a run's model is spoken to. ``template``: None for one that goes on with texts only; ``limit``: tokens."""

    template: Path | None
    stop_ids: tuple[int, ...]
    eos: int | None
    limit: int | None
    notes: tuple[str, ...]


def launch_of(runs: Sequence[RunDir], address: Address) -> Launch:
    """The server for one merged model or model from scratch, or for one base with the adapters of the runs.

    One run alone gets its merged model where there is one. Nothing is started or written. Raises RecipeError for what
    vLLM cannot serve, or not in one server, MachineError where a base is not to be had, DataError for a base that is
    not the one that was trained on.
    """
    for run in runs:
        _check_task(run)
    named = {name: trained_by(run) for name, run in named_runs(runs).items()}
    (name, first), *others = named.items()
    if not others and first.folder != first.run.adapter:
        return _launch(first.own, name, {name: first}, (), address)
    adapted = {name: replace(trained, folder=trained.run.adapter) for name, trained in named.items()}
    rank = max_rank([*adapted.values()])
    check_together(adapted)
    return _on_base(adapted, rank, address)


def start(launch: Launch) -> NoReturn:
    """Says what is started, and lets it take this process's place: signals and the exit code are then vLLM's own.

    Raises MachineError where vLLM is not installed.
    """
    program = find_program()
    for path, text in launch.files.items():
        write_text(path, text)
    command = [program, *launch.argv[1:]]
    for note in launch.notes:
        sys.stderr.write(f"{note}\n")
    sys.stderr.write(f"Starting vLLM for {', '.join(launch.models)} at {launch.url}: {shlex.join(command)}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, command, {**os.environ, **launch.environment})


def find_program() -> str:
    """Where vLLM's program is: beside Python's, or on the PATH. Raises MachineError where it is not installed."""
    found = shutil.which(_PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(_PROGRAM)
    if found is None:
        fix = (
            "Install it into an environment of its own (pip install vllm), and put the bin folder of that on the PATH. "
            "Or leave --engine out."
        )
        raise MachineError("vllm is not installed", [Problem("", "--engine", fix)])
    return os.path.abspath(found)


def _check_task(run: RunDir) -> None:
    fix = None
    if task_of(run) == "classify":
        fix = f"It gives labels, not words. Leave --engine out: ftkit serve {run.folder}"
    elif read_json(run.plan)["recipe"]["task"].get("objective") == "masked":
        fix = "It fills gaps in texts. Use ftkit predict."
    if fix:
        raise RecipeError(f"{run.folder} cannot be served by vLLM", [Problem("", "--engine", fix)])


def _on_base(adapted: Mapping[str, Trained], rank: int, address: Address) -> Launch:
    """A base with adapters beside it. It answers too, under a name that no recipe can have."""
    first = next(iter(adapted.values()))
    files = first.base()
    base = f"base:{files.folder.name if files.source == 'folder' else files.address}"
    modules = [
        json.dumps({"name": name, "path": str(trained.folder.resolve()), "base_model_name": base})
        for name, trained in adapted.items()
    ]
    more = ["--tokenizer", str(first.folder.resolve()), "--enable-lora", "--max-loras", str(len(adapted))]
    more += ["--max-lora-rank", str(rank), "--lora-modules", *modules]
    launch = _launch(files, base, adapted, more, address)
    note = f"The base without an adapter answers as {base}, and where a request names no model."
    return replace(launch, notes=(*launch.notes, note))


def _launch(
    files: BaseFiles, served: str, models: Mapping[str, Trained], more: Sequence[str], address: Address
) -> Launch:
    """``files``: of the model that vLLM loads; ``served``: its own name; ``more``: what there is to say of adapters."""
    folder = files.folder.resolve()
    voices = [_voice(name, trained) for name, trained in models.items()]
    argv = [_PROGRAM, "serve", str(folder), "--served-model-name", served]
    argv += ["--host", address.host, "--port", str(address.port)]
    # vLLM's own choice would round float32 to 16 bits.
    argv += ["--dtype", str(stored_dtype(files)).removeprefix("torch.")]
    limits = [voice.limit for voice in voices if voice.limit is not None]
    argv += ["--max-model-len", str(min(limits))] if limits else []
    template, settings = voices[0].template, _settings(folder, voices[0])
    argv += [] if template is None else ["--chat-template", str(template)]
    # "vllm": the end tokens of the model's folder, and none of its settings for sampling.
    argv += ["--generation-config", "vllm" if settings is None else str(settings[0].parent)]
    argv += ["--override-generation-config", _GREEDY, *more]
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if any(trained.trusted for trained in models.values()):
        argv.append("--trust-remote-code")  # the code may stand in another repository of the hub
    else:
        environment["HF_HUB_OFFLINE"] = "1"
    if address.key is not None:
        environment["VLLM_API_KEY"] = address.key
    written = {} if settings is None else {settings[0]: settings[1]}
    notes = tuple(note for voice in voices for note in voice.notes)
    return Launch(tuple(models), address.url, tuple(argv), environment, written, notes)


def _voice(name: str, trained: Trained) -> _Voice:
    lengths = trained.plan["data"]["lengths"]
    if task_of(trained.run) == "sft":
        chat, system = chat_of(trained), trained.section("task", Sft).system
        note = f"{name}: task.system ({system!r}) is not put before messages. Send it as the system turn."
        return _Voice(
            template=(trained.folder / _TEMPLATE).resolve(),
            stop_ids=chat.stop_ids,
            eos=chat.tokenizer.eos_token_id,
            limit=lengths["positions"],
            notes=() if system is None else (note,),
        )
    tokenizer = load_tokenizer(trained.own, max_length=None)
    eos, begin = tokenizer.eos_token_id, start_token(tokenizer)
    mark = None if begin is None else tokenizer.convert_ids_to_tokens(begin)
    note = f"{name}: {mark} is not put before a text, as it was in training. Begin each prompt with it."
    return _Voice(
        template=None,
        stop_ids=() if eos is None else (int(str(eos)),),
        eos=eos,
        limit=int(lengths["max_length"]),
        notes=() if begin is None or tokenizer("a")["input_ids"][0] == begin else (note,),
    )


def _settings(model: Path, voice: _Voice) -> tuple[Path, str] | None:
    """A generation configuration with the stop tokens, where the model's own lacks one of them.

    vLLM stops at the tokenizer's end token and at those of the generation configuration that it loads from a folder;
    an end token in --override-generation-config changes nothing.
    """
    source = next((model / name for name in (GENERATION, "config.json") if (model / name).is_file()), None)
    found: Any = None if source is None else read_json(source).get("eos_token_id")
    if {voice.eos, *(found if isinstance(found, list) else [found])} >= {*voice.stop_ids}:
        return None
    text = json.dumps({"eos_token_id": [*voice.stop_ids]}) + "\n"
    return (cache_folder() / _PROGRAM / sha256_text(text)[:16] / GENERATION).resolve(), text
