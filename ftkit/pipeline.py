"""The whole story of a run, on one screen: plan, train, evaluate, gate, merge, prove, report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ftkit import provenance
from ftkit.console import Console
from ftkit.errors import FtkitError, GateNotMet, Interrupted, MachineError, Problem, RecipeError
from ftkit.export.formats import parse
from ftkit.files import read_json, write_json, write_text
from ftkit.models.quantise import check_loftq
from ftkit.plan.chat import ChatPlan
from ftkit.plan.common import DEFAULT, Plan
from ftkit.plan.labelled import LabelledPlan
from ftkit.plan.make import make_plan
from ftkit.plan.text import TextPlan
from ftkit.recipe.load import load
from ftkit.records import EvalReport
from ftkit.rundir import RUNS, RunDir, latest_runs, new_run

if TYPE_CHECKING:
    from ftkit.models.hardware import Machine


class Work(Protocol):
    """The stages of one task, in the order in which they are called; each leaves its files in the run's folder."""

    def prepare(self, machine: Machine, precision: str, console: Console) -> dict[str, Any]:
        """Makes ready what training and evaluation share; returns plan.json."""

    def train(self, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
        """Trains with a seed."""

    def measure(self, folder: RunDir, others: Sequence[int], *, machine: Machine, console: Console) -> EvalReport:
        """Evaluates what was trained, with the other seeds beside it, and merges where the gate holds."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    recipe: Path
    overrides: Sequence[str] = ()
    out: Path | None = None
    resume: bool = False


def run(request: Request, console: Console) -> RunDir:
    """Carries a recipe out. Raises FtkitError; what was reached until then is kept in the run's folder."""
    from ftkit.models.hardware import settle_environment

    settle_environment()
    loaded = load(request.recipe, request.overrides)
    folder = _choose_folder(request, loaded.recipe.name, loaded.text)
    console.stage(f"checking {request.recipe}")
    plan = make_plan(loaded, weights=True)
    say_plan(plan, console)
    with folder.locked():
        try:
            with _memory_told():
                return _stages(plan, folder, console)
        except KeyboardInterrupt:
            raise Interrupted("stopped", [_go_on(request, folder)]) from None
        except Interrupted as error:
            raise Interrupted(error.headline, [*error.problems, _go_on(request, folder)]) from None
        except GateNotMet as error:
            error.run = str(folder.folder)
            raise
        except FtkitError as error:
            error.run = str(folder.folder)
            write_text(folder.error, f"{error}\n")
            tell(folder, console)
            raise


@contextmanager
def _memory_told() -> Iterator[None]:
    """Raises MachineError where memory runs out; training has its own ways to do with less."""
    from ftkit.models.placement import out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fix = "What was reached is kept. Use a smaller base, or go on with --resume where there is more memory."
        reason = (str(error).strip().splitlines() or ["MemoryError"])[0]
        raise MachineError("memory ran out", [Problem("", "", f"{reason} {fix}")]) from error


def _stages(plan: Plan, folder: RunDir, console: Console) -> RunDir:
    from ftkit.models.hardware import training_dtype

    folder.error.unlink(missing_ok=True)
    folder.start(plan.loaded.text)
    machine = this_machine()
    check_loftq(plan.loaded.recipe.adapter, machine)
    precision = str(training_dtype(plan.loaded.recipe.train.precision, machine, plan.width)).removeprefix("torch.")
    work = work_of(plan)
    write_json(folder.plan, work.prepare(machine, precision, console))
    console.note(f"{machine.gpu or machine.cpu}, {machine.threads} of {machine.cores} cores")
    seed, *others = range(plan.loaded.recipe.train.seed, plan.loaded.recipe.train.seed + plan.loaded.recipe.train.seeds)
    for each in (seed, *others):
        of_seed = folder if each == seed else folder.of_seed(each)
        if not of_seed.train.exists():
            work.train(of_seed, seed=each, machine=machine, console=console)
    report = work.measure(folder, others, machine=machine, console=console)
    targets = [parse(text) for text in plan.loaded.recipe.export or ()]
    if targets and report.gate.passed:
        from ftkit.ladder.rungs import export_run

        export_run(folder, targets, machine, console)
    console.stage("writing the report")
    tell(folder, console)
    for done in (folder, *map(folder.of_seed, others)):
        done.forget_checkpoints()
    folder.write_manifest()
    judge(report, folder)
    return folder


def judge(report: EvalReport, folder: RunDir) -> None:
    """Raises GateNotMet where a condition of the gate does not hold."""
    if not report.gate.passed:
        reasons = [reason for reason in report.gate.reasons if not reason.passed]
        problems = [Problem("", reason.metric, f"needs {reason.need}; got {reason.got}.") for reason in reasons]
        kept = Problem("", "", f"Not merged. The adapter and the report are kept in {folder.folder}.")
        raise GateNotMet("the gate is not met", [*problems, kept])


def this_machine() -> Machine:
    """What this machine can do; the libraries' chatter is off from here on."""
    from ftkit.models.base import quiet_libraries
    from ftkit.models.hardware import settle_machine

    quiet_libraries()
    return settle_machine()


def work_of(plan: Plan) -> Work:
    """The stages of the plan's task."""
    if isinstance(plan, TextPlan):
        from ftkit.pretrain.work import PretrainWork

        return PretrainWork(plan)
    if isinstance(plan, ChatPlan):
        from ftkit.sft.work import SftWork

        return SftWork(plan)
    from ftkit.classify.work import ClassifyWork

    assert isinstance(plan, LabelledPlan)
    return ClassifyWork(plan)


def tell(folder: RunDir, console: Console) -> None:
    """Card, page and terminal summary, from what stands in the folder."""
    from ftkit import card
    from ftkit.report import html, summary
    from ftkit.report.story import Story

    story = Story.read(folder.folder)
    write_text(folder.folder / "README.md", card.render(story))
    write_text(folder.folder / "report.html", html.render(story))
    console.result(summary.render(story))


def say_plan(plan: Plan, console: Console) -> None:
    """What was found and decided, and every warning."""
    console.note(plan.summary)
    fixed = [decision for decision in plan.decisions if decision.why == DEFAULT]
    for decision in plan.decisions:
        if decision not in fixed:
            console.note(f"{decision.key} = {decision.value}  ({decision.why})")
    if fixed:
        console.note(f"left out, so default: {', '.join(f'{each.key} {each.value}' for each in fixed)}")
    for finding in plan.findings:
        where = f" ({', '.join(finding.rows[:3])}{', …' if len(finding.rows) > 3 else ''})" if finding.rows else ""
        (console.warn if finding.level == "warning" else console.note)(f"{finding.message}{where}")


def _choose_folder(request: Request, name: str, text: str) -> RunDir:
    """The run's folder. Raises RecipeError where it holds a run already and resuming was not asked for."""
    found = RunDir(request.out) if request.out else None
    if request.resume and found is None:
        unfinished = [run for run in latest_runs(RUNS / name) if not run.manifest.exists()]
        found = unfinished[-1] if unfinished else None
    if found is None:
        return new_run(name)
    if found.recipe.exists():
        if not request.resume:
            fix = "Add --resume to go on with it, or choose another folder."
            raise RecipeError(f"{found.folder} holds a run already", [Problem("", "--out", fix)])
        _check_same(found, request, text)
    elif not found.is_empty():
        raise RecipeError(
            f"{found.folder} is not empty", [Problem("", "--out", "Choose a folder of its own for the run.")]
        )
    return found


def _check_same(found: RunDir, request: Request, text: str) -> None:
    """A run goes on only with the recipe and the options it was begun with."""
    planned = read_json(found.plan)["recipe"] if found.plan.exists() else None
    now = load(request.recipe, request.overrides).recipe.model_dump(mode="json")
    if found.recipe.read_text(encoding="utf-8") != text or planned not in (None, now):
        fix = "Restore the recipe and the --set options it was begun with, or start a new run without --resume."
        raise RecipeError(f"{found.folder} was begun with another recipe", [Problem("", "--resume", fix)])


def _go_on(request: Request, folder: RunDir) -> Problem:
    command = provenance.run_command(str(request.recipe), request.overrides)
    return Problem("", "", f"Go on with: {command} --out {shlex.quote(str(folder.folder))} --resume")
