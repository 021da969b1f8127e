"""The plan of a supervised fine-tuning: conversations as token ids, what is trained of them, and every open value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ftkit.data.conversations import to_conversations
from ftkit.data.findings import Finding, counted, first_rows
from ftkit.data.leakage import Leakage, duplicate_findings, find_leakage
from ftkit.data.lengths import COVERED, choose_max_length, max_positions, percentile, summary, too_long
from ftkit.data.partition import Side
from ftkit.data.rows import data_error
from ftkit.data.section import parse_share
from ftkit.data.splits import Splits, examples_sha256, make_splits
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.evals.section import LOWER_IS_BETTER, MetricName
from ftkit.models.adapters import Adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.plan import common
from ftkit.recipe.load import LoadedRecipe
from ftkit.recipe.schema import Base, Recipe
from ftkit.records import Conversation, Decision
from ftkit.tasks.answers import Answers
from ftkit.tasks.certificate import Certificate, certificate
from ftkit.tasks.chat import Answered, Chat, TooLong, Unfit, fit
from ftkit.tasks.section import Sft
from ftkit.tasks.templates import load_chat

_SAMPLES = 3  # train rows that are shown with what is trained of them


@dataclass(frozen=True, slots=True)
class AnsweredSide:
    """The rows of a side that fit: as they were read, and as token ids."""

    rows: tuple[Conversation, ...]
    answers: Answers
    dropped: tuple[str, ...]  # places of the rows that are too long
    cut: int  # prompts that lost their beginning

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A checked recipe with its conversations encoded. ``limit``: positions of the model, None where it has no limit.

    ``max_length`` bounds training rows; held-out rows may be as long as the model takes.
    """

    loaded: LoadedRecipe
    task: Sft
    base: Base
    adapter: Adapter
    files: BaseFiles
    chat: Chat
    splits: Splits
    sides: dict[Side, AnsweredSide]
    max_length: int
    limit: int | None
    max_new_tokens: int
    leakage: tuple[Leakage, ...]
    certificate: Certificate
    decisions: tuple[Decision, ...]
    findings: tuple[Finding, ...]

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def width(self) -> int | None:
        """Of the model's hidden states, where it is known."""
        return self.files.width

    @property
    def best_by(self) -> MetricName | Literal["loss"]:
        """The figure of the validation rows that the exported checkpoint is chosen by."""
        return self.recipe.train.best_by or "loss"

    @property
    def lowest(self) -> bool:
        """Whether less of that figure is better."""
        return self.best_by == "loss" or self.best_by in LOWER_IS_BETTER

    @property
    def summary(self) -> str:
        rows = ", ".join(f"{len(side):,} {name}" for name, side in self.sides.items())
        trained, tokens = self.certificate.trained_tokens, sum(self.sides["train"].answers.lengths)
        return f"{rows} rows; {trained:,} of {tokens:,} train tokens are learned"

    def document(self, machine: Machine | None, precision: str | None) -> dict[str, Any]:
        """plan.json."""
        train = self.sides["train"]
        lengths = summary(train.answers.lengths)
        data = {
            "files": common.sources_document(self.splits.sources),
            "licence": self.recipe.data.licence,
            "sha256": examples_sha256(self.sides["test"].rows),
            "splits": {name: len(side) for name, side in self.sides.items()},
            "tokens": {name: sum(side.answers.lengths) for name, side in self.sides.items()},
            "empty": len(self.splits.dropped),
            "lengths": {
                "max_length": self.max_length,
                "positions": self.limit,
                "longest": lengths.longest,
                "histogram": [{"upto": upto, "count": count} for upto, count in lengths.histogram],
                "policy": self.task.too_long,
                "too_long": {name: len(side.dropped) for name, side in self.sides.items()},
                "cut": {name: side.cut for name, side in self.sides.items()},
            },
            "packing": self.task.packing,
            "max_new_tokens": self.max_new_tokens,
            "template": self.chat.document(),
            "mask": asdict(self.certificate),
            "leakage": [asdict(leak) for leak in self.leakage],
            "findings": [asdict(finding) for finding in self.findings],
        }
        base = common.base_document(self.base, self.files, weights=machine is not None)
        return common.document(self.loaded, self.decisions, base=base, data=data, machine=machine, precision=precision)


def plan_chat(loaded: LoadedRecipe, *, weights: bool) -> ChatPlan:
    """Reads the rows, finds the base, and makes token ids of all; ``weights=False`` needs the base's small files only.

    Raises DataError for rows that cannot be read or rendered, RecipeError for what does not fit them, MachineError for
    a base that is not to be had.
    """
    recipe, folder = loaded.recipe, loaded.path.resolve().parent
    task, base, adapter = recipe.task, recipe.base, recipe.adapter
    assert isinstance(task, Sft)  # the recipe's rules see to all three
    assert isinstance(base, Base)
    assert adapter is not None
    files = locate(base.model, folder, weights=weights)
    files.config()
    if weights:
        files.weights()
    splits, rows = _read(recipe, task, folder)
    limit = max_positions(files.folder)
    _check_length(loaded, limit)
    chat = load_chat(files, task.template, folder, max_length=limit, trust_remote_code=base.trust_remote_code)
    encoded = {side: _encoded(chat, task, own) for side, own in rows.items()}
    max_length, decisions = _max_length(recipe, encoded["train"], limit)
    sides = {
        side: _within(chat, task, own, encoded[side], max_length if side == "train" else limit, train=side == "train")
        for side, own in rows.items()
    }
    sides["train"] = _with_something_to_learn(loaded, task, sides["train"])
    _check_sides(sides)
    leakage, leaks = find_leakage(
        {name: side.rows for name, side in sides.items()},
        max_exact=parse_share(recipe.data.max_leakage) or 0.0,
        max_near=parse_share(recipe.data.max_near_leakage or ""),
    )
    new_tokens, more = _max_new_tokens(recipe, sides["train"].answers, limit)
    own = (chat.decision,) if chat.decision else ()
    chosen = (*splits.decisions, *own, *decisions, *more)
    found = certificate(chat, sides["train"].answers, sides["train"].rows, samples=_SAMPLES)
    findings = (*_findings(splits, sides, max_length, limit), *duplicate_findings(sides["train"].rows), *leaks)
    return ChatPlan(
        loaded=loaded,
        task=task,
        base=base,
        adapter=adapter,
        files=files,
        chat=chat,
        splits=splits,
        sides=sides,
        max_length=max_length,
        limit=limit,
        max_new_tokens=new_tokens,
        leakage=leakage,
        certificate=found,
        decisions=(*chosen, *common.defaults(recipe, chosen)),
        findings=findings,
    )


def _read(recipe: Recipe, task: Sft, folder: Path) -> tuple[Splits, dict[Side, tuple[Conversation, ...]]]:
    """The rows of each side, and what else is to be told of them. Raises DataError for those that cannot be read."""
    data = recipe.data
    splits = make_splits(
        data,
        folder,
        lambda rows, shown: to_conversations(rows, shown, data, prompt=task.prompt, system=task.system),
        seed=recipe.train.seed,
        multi_label=False,
    )
    named = splits.named().items()
    return splits, {side: tuple(row for row in own if isinstance(row, Conversation)) for side, own in named}


def answered_side(chat: Chat, task: Sft, rows: Sequence[Conversation], most: int | None) -> AnsweredSide:
    """Held-out rows of at most ``most`` tokens. Raises DataError for rows that cannot be rendered, and if none fits."""
    side = _within(chat, task, rows, _encoded(chat, task, rows), most)
    _check_sides({"test": side})
    return side


def _encoded(chat: Chat, task: Sft, rows: Sequence[Conversation]) -> Answers:
    """All rows in full. Raises DataError for those that cannot be rendered."""
    problems: list[Problem] = []

    def found() -> Iterator[Answered]:  # one at a time: as lists of numbers all rows would take seventy bytes a token
        for row in rows:
            try:
                yield chat.encode(row, task.train_on)
            except Unfit as unfit:
                problems.append(Problem("", row.where, str(unfit)))

    encoded = Answers(found())
    if problems:
        raise data_error("the data", problems)
    return encoded


def _within(
    chat: Chat, task: Sft, rows: Sequence[Conversation], encoded: Answers, most: int | None, *, train: bool = False
) -> AnsweredSide:
    """The rows of at most ``most`` tokens, longer ones shortened where the recipe asks for it and that is enough.

    Raises DataError for longer rows where the recipe says that they are an error.
    """
    kept: list[Conversation] = []
    dropped: list[tuple[Conversation, TooLong]] = []
    cut = 0

    def fitting() -> Iterator[Answered]:
        nonlocal cut
        for row, own in zip(rows, encoded, strict=True):
            long = most is not None and len(own.ids) > most
            found = fit(chat, row, most, task.too_long, task.train_on) if long and most is not None else own
            if isinstance(found, TooLong):
                dropped.append((row, found))
            else:
                kept.append(row)
                cut += found.cut > 0
                yield found

    answers = Answers(fitting())
    if dropped and task.too_long == "error":
        raising = " raise train.max_length," if train else ""
        fix = f"and {most:,} fit. Shorten it,{raising} or write task.too_long: drop."
        problems = [Problem("", row.where, f"{found.length:,} tokens, {fix}") for row, found in dropped]
        raise data_error("the data", problems)
    return AnsweredSide(tuple(kept), answers, tuple(row.where for row, _ in dropped), cut)


def _check_length(loaded: LoadedRecipe, limit: int | None) -> None:
    length = loaded.recipe.train.max_length
    wrong = too_long(length, limit) if length is not None else None
    if wrong:
        problem = Problem(*common.place(loaded, "train", "max_length"), wrong)
        raise RecipeError.in_file(str(loaded.path), [problem])


def _max_length(recipe: Recipe, train: Answers, limit: int | None) -> tuple[int, tuple[Decision, ...]]:
    if recipe.train.max_length is not None:
        return recipe.train.max_length, ()
    assert isinstance(recipe.task, Sft)
    # Where a longer row is an error, a length of our choice must not make one.
    covered = 100 if recipe.task.too_long == "error" else COVERED
    decision = choose_max_length(train.lengths, limit, covered=covered)
    return int(decision.value), (decision,)


def _max_new_tokens(recipe: Recipe, train: Answers, limit: int | None) -> tuple[int, tuple[Decision, ...]]:
    given = recipe.eval.max_new_tokens
    if given is not None:
        return given, ()
    covered = percentile(sorted(train.answer_tokens.tolist()), COVERED)
    chosen = math.ceil(covered * 1.25 / 8) * 8
    chosen = chosen if limit is None else min(chosen, limit - 1)
    why = f"left out; {COVERED}% of the train answers have at most {covered} tokens, and a quarter more"
    return chosen, (Decision("eval.max_new_tokens", chosen, why),)


def _with_something_to_learn(loaded: LoadedRecipe, task: Sft, train: AnsweredSide) -> AnsweredSide:
    """Without the rows that have no trained token: no loss can be computed on them.

    Raises DataError where they are more than task.max_untrained.
    """
    learned = [any(label >= 0 for label in row.labels) for row in train.answers]
    without = [row.where for row, own in zip(train.rows, learned, strict=True) if not own]
    if not without:
        return train
    share, most = len(without) / len(train), parse_share(task.max_untrained) or 0.0
    if share > most:
        message = (
            f"{counted(len(without), 'train row')} of {len(train):,} ({100 * share:.3g}%) without a token to learn, "
            f"such as {without[0]}; at most {100 * most:.3g}% may be. Give their answers weight 1, or raise "
            "task.max_untrained."
        )
        problem = Problem(*common.place(loaded, "task", "max_untrained"), message)
        raise DataError.in_file(str(loaded.path), [problem])
    rows = tuple(row for row, own in zip(train.rows, learned, strict=True) if own)
    kept = Answers(row for row, own in zip(train.answers, learned, strict=True) if own)
    return AnsweredSide(rows, kept, train.dropped, train.cut)


def _check_sides(sides: dict[Side, AnsweredSide]) -> None:
    """Raises DataError where no row of train or test is left."""
    for name, side in sides.items():
        if name != "valid" and not len(side):
            more = "Raise train.max_length" if name == "train" else "Name a base that takes more"
            message = (
                f"all {len(side.dropped):,} rows are too long, such as {side.dropped[0]}. {more}, or write "
                "task.too_long: truncate_prompt."
            )
            raise data_error(f"data.{name}", [Problem("", "", message)])


def _findings(splits: Splits, sides: dict[Side, AnsweredSide], max_length: int, limit: int | None) -> Iterator[Finding]:
    if splits.dropped:
        message = f"{counted(len(splits.dropped), 'row')} with an empty prompt or answer left out."
        yield Finding("warning", "empty_text", message, first_rows(splits.dropped))
    for name, side in sides.items():
        most = max_length if name == "train" else limit
        total = len(side) + len(side.dropped)
        if side.dropped:
            # Up to 1% is what a max_length at the 99.5th percentile is expected to leave out of train.
            much = name != "train" or len(side.dropped) > 0.01 * total
            message = (
                f"{counted(len(side.dropped), f'{name} row')} of {total:,} longer than {most:,} tokens left out; an "
                "answer is never cut."
            )
            yield Finding("warning" if much else "note", "too_long", message, first_rows(side.dropped))
        if side.cut:
            message = f"{counted(side.cut, f'{name} row')} lost the beginning of a prompt to fit {most:,} tokens."
            yield Finding("note", "cut_prompt", message)
