"""The models of runs, loaded to be served: each by a name, and several adapters on one base where that can be."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from ftkit.answer import chat_of, load_answerer, loader_of
from ftkit.errors import Problem, RecipeError
from ftkit.files import read_json
from ftkit.generate import NEW_TOKENS, load_generator
from ftkit.models.base import inference_mode, weights_dtype
from ftkit.models.hardware import Machine
from ftkit.predict import Predictor, load_predictor
from ftkit.records import Turn
from ftkit.rundir import RunDir, task_of
from ftkit.tasks.chat import Chat, Unfit
from ftkit.tasks.pieces import Pieces
from ftkit.tasks.rendering import left_out, render
from ftkit.tasks.section import Sft
from ftkit.tasks.tokens import start_token
from ftkit.tasks.tool_calls import CallForm
from ftkit.tasks.tool_forms import call_form
from ftkit.trained import Trained, base_address, trained_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.tasks.rendering import Tools


@dataclass(frozen=True, slots=True)
class Labels:
    """A classifier under its name. ``created``: seconds since 1970."""

    name: str
    created: int
    predictor: Predictor


@dataclass(frozen=True, slots=True)
class Language:
    """A language model under its name.

    ``adapter``: which of those on the model it is, None where the model is its own. ``chat``: None for one that goes on
    with texts only. ``limit``: positions, None where there is no limit. ``system``: what the recipe has the system say.
    ``calls``: how it writes calls of tools, None where it has no form that can be read.
    Prompts are made in any thread, ``one`` at a time, as a tokenizer must not be used by two; ``writer`` is a copy of
    it for who generates.
    """

    name: str
    created: int
    model: PreTrainedModel
    adapter: str | None
    tokenizer: PreTrainedTokenizerBase
    chat: Chat | None
    limit: int | None
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    system: str | None
    calls: CallForm | None
    writer: PreTrainedTokenizerBase
    one: Lock = field(default_factory=Lock)

    @property
    def pad_token_id(self) -> int:
        return int(str(self.tokenizer.pad_token_id))

    def answer_to(self, turns: Sequence[Turn], tools: Tools) -> list[int]:
        """The token ids of a conversation that asks for an answer, behind the recipe's system turn where it has none.

        Raises Unfit where it holds a mark of the template, or the template leaves some of it out.
        """
        assert self.chat is not None
        if self.system is not None and turns[0].role != "system":
            turns = (Turn("system", self.system), *turns)
        with self.one:
            ids = self.chat.prompt(turns, tools)
            missing = left_out(render(self.tokenizer, turns, tools, asked=True), turns, tools)
        if missing:
            raise Unfit(f"the template of the model leaves out {missing}. Leave it out of the request.")
        return ids

    def going_on(self, text: str) -> list[int]:
        """The token ids of a text to go on with. It is raw: marks in it are marks."""
        start = None if self.chat else start_token(self.tokenizer)
        with self.one:
            found = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*([] if start is None else [start]), *found]

    def pieces(self, stops: Sequence[str], *, chat: bool, kept: Collection[int]) -> Pieces:
        """What writes the words of an answer; ``chat``: of one in a conversation. ``kept``: as Pieces has it."""
        opening = self.chat.opening if self.chat and chat else ""
        return Pieces(self.writer, opening=opening, stops=stops, trimmed=chat, kept=kept)


Served = Labels | Language


def load_served(runs: Sequence[RunDir], machine: Machine) -> dict[str, Served]:
    """The models of the runs by their names: the recipe's, or recipe/run-id where two runs have the same.

    Adapters of one base are loaded onto it together where each is nothing but an update of its weights; any other run
    gets its merged model, or a base of its own. Raises RecipeError for a run that is not trained, that is given twice,
    or that fills gaps, MachineError where a base is not to be had.
    """
    named = named_runs(runs)
    shared: dict[Any, list[str]] = {}
    for name, run in named.items():
        if task_of(run) == "sft":
            shared.setdefault(_base_of(run, machine) or name, []).append(name)
    together: dict[str, Language] = {}
    for names in shared.values():
        if len(names) > 1:
            together |= _on_one_base({name: named[name] for name in names}, machine)
    return {name: together.get(name) or _alone(name, run, machine) for name, run in named.items()}


def named_runs(runs: Sequence[RunDir]) -> dict[str, RunDir]:
    titles = [str(trained_by(run).plan["recipe"]["name"]) for run in runs]
    found: dict[str, RunDir] = {}
    for title, run in zip(titles, runs, strict=True):
        name = title if titles.count(title) == 1 else f"{title}/{run.folder.name}"
        if name in found:
            fix = f"Both would be called {name}. Give each run once, and rename the folder of one where they differ."
            raise RecipeError("two models have one name", [Problem("", "RUN", fix)])
        found[name] = run
    return found


def _alone(name: str, run: RunDir, machine: Machine) -> Served:
    task = task_of(run)
    if task == "classify":
        return Labels(name, _created(run), load_predictor(run, machine))
    trained = trained_by(run)
    if task == "sft":
        answerer = load_answerer(trained, machine)
        return _talking(name, trained, answerer.model, answerer.chat, None)
    if trained.plan["recipe"]["task"]["objective"] != "causal":
        fix = "It fills gaps in texts. Use ftkit predict."
        raise RecipeError(f"{run.folder} cannot be served", [Problem("", "RUN", fix)])
    generator = load_generator(run, machine)
    end = generator.tokenizer.eos_token_id
    return Language(
        name=name,
        created=_created(run),
        model=generator.model,
        adapter=None,
        tokenizer=generator.tokenizer,
        chat=None,
        limit=generator.max_length,
        stop_ids=() if end is None else (int(str(end)),),
        max_new_tokens=NEW_TOKENS,
        system=None,
        calls=None,
        writer=copy.deepcopy(generator.tokenizer),
    )


def _talking(name: str, trained: Trained, model: PreTrainedModel, chat: Chat, adapter: str | None) -> Language:
    data, task = trained.plan["data"], trained.section("task", Sft)
    return Language(
        name=name,
        created=_created(trained.run),
        model=model,
        adapter=adapter,
        tokenizer=chat.tokenizer,
        chat=chat,
        limit=data["lengths"]["positions"],
        stop_ids=chat.stop_ids,
        max_new_tokens=int(data["max_new_tokens"]),
        system=task.system,
        calls=call_form(chat.tokenizer),
        writer=copy.deepcopy(chat.tokenizer),
    )


def _created(run: RunDir) -> int:
    return int(run.plan.stat().st_mtime)


def _base_of(run: RunDir, machine: Machine) -> tuple[Any, ...] | None:
    """What two runs have in common whose adapters can stand on one base; None where this run's can on none.

    Not where the adapter brings embeddings or whole modules, where PEFT changes the base's weights to begin with, nor
    where it was trained on a base in 4 bits and is merged: that model is another than the one on the 4 bits.
    """
    trained = trained_by(run)
    if trained.adapter is None or not run.adapter.is_dir():
        return None
    if trained.adapter.quantize is not None and not trained.quantised:
        return None
    config = read_json(run.adapter / "adapter_config.json")
    plain = config.get("init_lora_weights", True) in (True, False) and trained.adapter.init == "default"
    if not plain or config.get("modules_to_save") or config.get("trainable_token_indices"):
        return None
    if config.get("bias", "none") != "none":
        return None
    dtype = weights_dtype(trained.plan["recipe"]["train"]["precision"], machine, trained.adapter)
    return base_address(trained.plan["base"]), config["peft_type"], trained.trusted, dtype, trained.quantised


def _on_one_base(runs: Mapping[str, RunDir], machine: Machine) -> dict[str, Language]:
    """The runs' adapters, all on one base."""
    found: dict[str, Language] = {}
    model: Any = None
    for number, (name, run) in enumerate(runs.items(), 1):
        trained = replace(trained_by(run), folder=run.adapter)
        chat = chat_of(trained)
        if model is None:
            model, adapter = trained.model(loader_of(trained, chat, machine), machine), "default"
        else:
            adapter = f"adapter{number}"
            model.load_adapter(run.adapter, adapter, torch_device=machine.device)
        found[name] = _talking(name, trained, model, chat, adapter)
    inference_mode(model)
    return found
