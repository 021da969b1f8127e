"""Which columns of instruction data hold what: given by the recipe, or found by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ftkit.data.cells import listed
from ftkit.data.columns import KNOWN, either, missing_column
from ftkit.data.rows import data_error
from ftkit.data.section import Columns
from ftkit.data.template import Template
from ftkit.errors import DataError, Problem
from ftkit.records import Decision

Role = Literal["messages", "prompt", "input", "context", "completion", "history", "system", "tools"]

KNOWN_ROLES: Mapping[Role, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "instruction", "query"),
    "input": ("input",),
    "context": ("context",),
    "completion": ("completion", "answer", "answers", "response", "output", "summary", "target"),
    "history": ("history",),
    "system": ("system",),
    "tools": ("tools",),
}
# Read as the prompt only where no column has a name that says so.
INSTEAD_OF_PROMPT = ("input", "document", "dialogue", "article")
_PREFERENCE = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Form:
    """The columns of a source: ``messages``, or a prompt and one or several equally good answers.

    The prompt is the column ``prompt`` between ``context`` and ``input``, or ``template`` filled in.
    """

    messages: str | None = None
    prompt: str | None = None
    template: Template | None = None
    context: str | None = None
    input: str | None = None
    completion: tuple[str, ...] = ()
    history: str | None = None
    system: str | None = None
    tools: str | None = None
    decisions: tuple[Decision, ...] = ()


def find_form(
    available: Sequence[str], columns: Columns, prompt: str | None, *, shown: str, answers: bool = True
) -> Form:
    """The form of a source with these columns; ``columns`` is data.columns, ``prompt`` task.prompt.

    ``answers=False``: there may be none, as in a file that is answered on the command line. Raises DataError for a
    given column that is not there, and where no column, or more than one, has a known name for what is needed.
    """
    finder = _Finder(available, columns, shown, answers)
    template = _template(prompt, available, shown)
    messages = columns.messages
    if messages is not None:
        finder.check("messages", messages)
    elif template is None and columns.prompt is None and columns.completion is None:
        messages = finder.only("messages")
    if messages is not None:
        decided = () if columns.messages else (finder.decision("messages", messages),)
        others = finder.others(("system", "tools"), (messages,))
        decisions = (*decided, *finder.of_others(others))
        return Form(messages=messages, system=others.get("system"), tools=others.get("tools"), decisions=decisions)
    return finder.pairs(template)


def _template(prompt: str | None, available: Sequence[str], shown: str) -> Template | None:
    if prompt is None:
        return None
    try:
        template = Template.parse(prompt)
    except ValueError as error:
        raise data_error(shown, [Problem("", "task.prompt", str(error))]) from error
    for column in template.columns:
        if column not in available:
            raise missing_column("task.prompt", column, available, shown)
    return template


@dataclass(frozen=True, slots=True)
class _Finder:
    available: Sequence[str]
    columns: Columns
    shown: str
    answers: bool

    def check(self, role: Role, given: str) -> None:
        if given not in self.available:
            raise missing_column(f"data.columns.{role}", given, self.available, self.shown)

    def named(self, names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
        return [name for name in self.available if name.lower() in names and name not in taken]

    def only(self, role: Role, taken: Sequence[str] = ()) -> str | None:
        """The only column with a known name; None where there is none. Raises DataError where there are several."""
        found = self.named(KNOWN_ROLES[role], taken)
        if len(found) > 1:
            raise data_error(self.shown, [self._ambiguous(role, found)])
        return found[0] if found else None

    def others(self, roles: Sequence[Role], taken: Sequence[str]) -> dict[str, str]:
        """What goes with the turns where it is there."""
        found: dict[str, str] = {}
        for role in roles:
            given = self.columns.tools if role == "tools" else None
            if given is not None:
                self.check(role, given)
            column = given or self.only(role, taken)
            if column is not None:
                found[role] = column
        return found

    def of_others(self, others: Mapping[str, str]) -> Iterator[Decision]:
        whys = {
            "history": "pairs of what the user said and the answer, before the prompt",
            "system": "the system turn of its row",
            "tools": "the tools on offer",
        }
        for role, column in others.items():
            if role != "tools" or self.columns.tools is None:
                key = "data.columns.tools" if role == "tools" else "data.columns"
                yield Decision(key, column, f"a column of {self.shown} with a known name: {whys[role]}")

    def decision(self, role: Role, column: str) -> Decision:
        why = f"the only column of {self.shown} with a known name for the {role}"
        return Decision(f"data.columns.{role}", column, why)

    def pairs(self, template: Template | None) -> Form:
        """A prompt and its answers."""
        given = self._given_completion()
        asking = template.columns if template else (self.columns.prompt,) if self.columns.prompt else ()
        for column in asking:
            if column in given:
                key = "task.prompt" if template else "data.columns.prompt"
                message = f"{column} is the answer (data.columns.completion). Name another column in one of the two."
                raise data_error(self.shown, [Problem("", key, message)])
        if not template and self.columns.prompt is not None:
            self.check("prompt", self.columns.prompt)
        prompts, more = (list(asking), {}) if asking or template else self._prompts(given)
        completions = list(given) or self.named(KNOWN_ROLES["completion"], (*prompts, *more.values()))
        problems = [] if template else self._unclear("prompt", prompts)
        if self.answers and not given:
            problems += self._unclear("completion", completions)
        if problems:
            raise self._refusal(problems)
        taken = (*prompts, *completions)
        others = self.others(("history", "system", "tools"), taken)
        decided = [] if asking or template else [self._of_prompt(prompts[0], more)]
        decided += self._left_out(taken) if asking and not template else []
        decided += [] if given else [self.decision("completion", name) for name in completions[:1]]
        return Form(
            prompt=None if template else prompts[0],
            template=template,
            completion=tuple(completions),
            context=more.get("context"),
            input=more.get("input"),
            history=others.get("history"),
            system=others.get("system"),
            tools=others.get("tools"),
            decisions=(*decided, *self.of_others(others)),
        )

    def _given_completion(self) -> tuple[str, ...]:
        """The answers' columns that the recipe names: the one, or those of several that are here."""
        given = self.columns.completion
        if given is None:
            return ()
        if isinstance(given, str):
            if self.answers:
                self.check("completion", given)
            return (given,) if given in self.available else ()
        here = tuple(name for name in given if name in self.available)
        if self.answers and not here:
            message = f"no column is named {either(given) if len(given) > 1 else given[0]}. "
            message += f"Columns here: {listed(self.available)}. Correct the names."
            raise data_error(self.shown, [Problem("", "data.columns.completion", message)])
        return here

    def _prompts(self, taken: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The columns that could hold the prompt, and the input or context that goes with it."""
        prompts = self.named(KNOWN_ROLES["prompt"], taken)
        if not prompts:
            return self.named(INSTEAD_OF_PROMPT, taken), {}
        found: tuple[tuple[Role, str | None], ...] = (
            ("context", self.only("context", taken)),
            ("input", self.only("input", taken)),
        )
        return prompts, {role: column for role, column in found if column is not None}

    def _of_prompt(self, prompt: str, more: Mapping[str, str]) -> Decision:
        if not more:
            return self.decision("prompt", prompt)
        order = [name for name in (more.get("context"), prompt, more.get("input")) if name]
        why = f"columns of {self.shown} with known names, those that are not empty, with a blank line between"
        return Decision("data.columns.prompt", ", ".join(order), why)

    def _left_out(self, taken: Sequence[str]) -> list[Decision]:
        """Says that a column named in the recipe is the prompt alone."""
        beside = self.named((*KNOWN_ROLES["context"], *KNOWN_ROLES["input"]), taken)
        if not beside:
            return []
        return [Decision("data.columns", f"without {', '.join(beside)}", "data.columns.prompt names the whole prompt")]

    def _unclear(self, role: Role, found: Sequence[str]) -> list[Problem]:
        if len(found) == 1:
            return []
        if found:
            return [self._ambiguous(role, found)]
        example = "text" if role == "prompt" and "text" in self.available else "COLUMN"
        message = f"no column is named {either(KNOWN_ROLES[role])}. Columns here: {listed(self.available)}. "
        return [self._to_name(role, message, example)]

    def _ambiguous(self, role: Role, found: Sequence[str]) -> Problem:
        message = f"several columns could hold the {role}: {', '.join(found)}. "
        if role not in Columns.model_fields:
            return Problem("", "data.columns", f"{message}Rename all but one of them, or write task.prompt.")
        return self._to_name(role, message, found[0])

    def _to_name(self, role: Role, message: str, example: str) -> Problem:
        if not self.answers:
            return Problem("", "", f"{message}Name one with --column.")
        return Problem("", f"data.columns.{role}", f"{message}Write data.columns: {{{role}: {example}}}.")

    def _refusal(self, problems: Sequence[Problem]) -> DataError:
        """The error for columns that are not there, with more to say where the data are of another kind."""
        names = {name.lower() for name in self.available} if self.answers else set()
        subject = ", ".join(self.available[:10])
        if names.issuperset(_PREFERENCE):
            message = (
                "these are preferences between two answers, and task sft learns from one. "
                "Name a prompt and an answer: data.columns: {prompt: COLUMN, completion: chosen}; where chosen holds "
                "whole conversations, data.columns: {messages: chosen}."
            )
            return data_error(self.shown, [Problem("", subject, message)])
        pairs = (*KNOWN_ROLES["prompt"], *INSTEAD_OF_PROMPT, *KNOWN_ROLES["completion"])
        if "text" in names and not names.intersection(pairs):
            message = "there is text alone, and no answer to learn. Write task: {type: pretrain}."
            if labels := sorted(names.intersection(KNOWN["label"])):
                columns = f"data.columns: {{prompt: text, completion: {labels[0]}}}"
                message = f"these are texts with labels. Write task: {{type: classify}}, or {columns}."
            return data_error(self.shown, [Problem("", subject, message)])
        return data_error(self.shown, problems)
