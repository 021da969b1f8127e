"""Rows of instruction data to conversations, whichever of the usual forms they have.

messages      [{role, content}, …], or ShareGPT's conversations [{from, value}, …]
pairs         a prompt (with input or context, history, system) and an answer, or several equally good ones
nested        SQuAD's own JSON, a conversation for each question; self-instruct, one for each instance
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ftkit.data.cells import listed, no_text, no_unicode, scalar, short
from ftkit.data.columns import Mapped, missing_column, peek
from ftkit.data.forms import Form, find_form
from ftkit.data.nested import Item, items
from ftkit.data.rows import RawRow, data_error, problem_in
from ftkit.data.section import Columns, Data
from ftkit.data.turns import RowError, check_asked, check_order, plain_text, read_tools, read_turns, said
from ftkit.errors import Problem
from ftkit.records import Conversation, Prompt, Turn


def to_conversations(
    rows: Iterable[RawRow], shown: str, data: Data, *, prompt: str | None, system: str | None
) -> Mapped:
    """Rows to conversations. One whose prompt or last answer is empty is dropped, and its place kept to be reported.

    ``prompt`` is task.prompt (columns in braces), ``system`` task.system: a system turn for rows that have none. It
    does not count as prompt, nor does it stand in ``Conversation.text``, being the same in all rows.
    Raises DataError where the columns are not to be told, one for all rows that cannot be read, and where none is
    left.
    """
    first, rows = peek(rows)
    columns = dict.fromkeys(name for row in first for name in row.values)
    peeked, parts = peek(items(rows, list(columns)))
    available = list(dict.fromkeys(name for part in peeked for name in part.values))
    form = find_form(available, data.columns, prompt, shown=shown)
    if data.group is not None and data.group not in available:
        raise missing_column("data.group", data.group, available, shown)
    mapper = _Mapper(form, data.group, system)
    found: list[Conversation] = []
    dropped: list[str] = []
    problems: list[Problem] = []
    for part in parts:
        try:
            conversation = mapper.conversation(part)
        except RowError as error:
            problems.append(problem_in(part.where, shown, error.column, str(error), part=part.part))
            continue
        if conversation is None:
            dropped.append(f"{part.where}{part.part}")
        else:
            found.append(conversation)
    if problems:
        raise data_error(shown, problems)
    if not found:
        message = f"prompt or answer is empty in all {len(dropped):,} rows. Name other columns in data.columns."
        raise data_error(shown, [Problem("", form.messages or ", ".join(form.completion), message)])
    return Mapped(tuple(found), tuple(dropped), form.decisions)


def to_prompts(
    rows: Iterable[RawRow], shown: str, columns: Columns, *, prompt: str | None, system: str | None
) -> Iterator[Prompt]:
    """Rows to what is to be answered, one after another: what stands before the last answer, which may be left out.

    Takes the forms that ``to_conversations`` takes, with ``columns`` as data.columns. Raises DataError where the
    columns are not to be told, and for the first row that cannot be read or leaves nothing to answer.
    """
    first, rows = peek(rows)
    names = dict.fromkeys(name for row in first for name in row.values)
    peeked, parts = peek(items(rows, list(names)))
    available = list(dict.fromkeys(name for part in peeked for name in part.values))
    mapper = _Mapper(find_form(available, columns, prompt, shown=shown, answers=False), None, system)
    for part in parts:
        try:
            yield mapper.prompt(part)
        except RowError as error:
            raise data_error(
                shown, [problem_in(part.where, shown, error.column, str(error), part=part.part)]
            ) from error


@dataclass(frozen=True, slots=True)
class _Mapper:
    form: Form
    group: str | None
    system: str | None

    def conversation(self, item: Item) -> Conversation | None:
        """The conversation of a row or part; None where its prompt or its last answer is empty. Raises RowError."""
        if item.wrong is not None:
            raise item.wrong
        form, values = self.form, item.values
        if form.messages is not None:
            turns = read_turns(_present(values, form.messages), form.messages)
            references = tuple(said(turn) for turn in turns[-1:])
        else:
            turns, references = _pair(form, values)
        turns = _with_system(turns, values, form, self._about)
        check_order(turns, self._about)
        text = plain_text(turns[:-1])
        if not any(said(turn).strip() for turn in turns[:-1]) or not said(turns[-1]).strip():
            return None
        return Conversation(
            id=f"{PurePath(item.where.file).name}:{item.where.number}{item.part}",
            where=f"{item.where}{item.part}",
            text=text,
            labels=(),
            group=self._group(values),
            turns=self._instructed(turns),
            references=references,
            tools=self._tools(values),
        )

    def prompt(self, item: Item) -> Prompt:
        """What is to be answered in a row or part. Raises RowError where there is nothing."""
        if item.wrong is not None:
            raise item.wrong
        form, values = self.form, item.values
        if form.messages is not None:
            turns = read_turns(_present(values, form.messages), form.messages)
            turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
        else:
            # An answer may be several turns: then the last of them is what is asked for.
            answered = any(_holds_turns(values.get(column)) for column in form.completion)
            answer = _answer(form, values)[0] if answered else ()
            turns = (*_with_history(_asked(form, values), form, values), *answer[:-1])
        turns = _with_system(turns, values, form, self._about)
        check_asked(turns, self._about)
        where = f"{item.where}{item.part}"
        return Prompt(where, plain_text(turns), self._instructed(turns), self._tools(values))

    @property
    def _about(self) -> str:
        return self.form.messages or self.form.prompt or "task.prompt"

    def _instructed(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """The turns behind the recipe's system turn, where they have none of their own."""
        if self.system is None or turns[0].role == "system":
            return turns
        return (Turn("system", self.system), *turns)

    def _tools(self, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        return read_tools(values.get(self.form.tools), self.form.tools) if self.form.tools else ()

    def _group(self, values: Mapping[str, Any]) -> str | None:
        if self.group is None:
            return None
        group, wrong = scalar(values.get(self.group), "group")
        if wrong:
            raise RowError(self.group, wrong)
        return group


def _with_system(turns: tuple[Turn, ...], values: Mapping[str, Any], form: Form, about: str) -> tuple[Turn, ...]:
    """The turns behind the system turn of the row's own column, where that says something."""
    content = _text(values, form.system) if form.system else ""
    if not turns or not content.strip():
        return turns
    if turns[0].role == "system":
        raise RowError(about, f"its first turn and the column {form.system} are both system turns. Keep one of them.")
    return (Turn("system", content), *turns)


def _pair(form: Form, values: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """The turns of a prompt and its answer, and all the equally good last answers. No turns where one is empty."""
    asked = _asked(form, values)
    answer, references = _answer(form, values)
    if not asked or not answer:
        return (), ()
    return (*_with_history(asked, form, values), *answer), references


def _with_history(asked: tuple[Turn, ...], form: Form, values: Mapping[str, Any]) -> tuple[Turn, ...]:
    history = _history(values.get(form.history), form.history) if form.history and asked else ()
    if history and asked[0].role == "system":
        raise RowError(form.history or "", "turns go before a prompt that has a system turn. Put them into the prompt.")
    return (*history, *asked)


def _asked(form: Form, values: Mapping[str, Any]) -> tuple[Turn, ...]:
    if form.template is not None:
        cells = {column: _cell(values, column) for column in form.template.columns}
        empty = not any(cell.strip() for cell in cells.values())
        return () if empty else (Turn("user", form.template.fill(cells)),)
    assert form.prompt is not None  # a form has messages, a template or this
    beside = [_text(values, column) if column else "" for column in (form.context, form.input)]
    if isinstance(values.get(form.prompt), list):
        if any(text.strip() for text in beside):
            message = f"a list of turns, to which {form.context or form.input} cannot be added. Write task.prompt."
            raise RowError(form.prompt, message)
        # As TRL reads prompt and completion: what stands in a prompt is given, not learned.
        turns = read_turns(values[form.prompt], form.prompt)
        return tuple(Turn(turn.role, turn.content, False, turn.calls) for turn in turns)
    _present(values, form.prompt)
    prompt = _text(values, form.prompt)
    parts = [part for part in (beside[0], prompt, beside[1]) if part.strip()]
    return (Turn("user", "\n\n".join(parts)),) if prompt.strip() else ()


def _answer(form: Form, values: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """The turns of the answer, and the references, the trained one first. Both are empty where the answer is."""
    here = [column for column in form.completion if column in values]
    if not here:
        _present(values, form.completion[0])
    first = values[here[0]]
    if _holds_turns(first):
        turns = read_turns(first, here[0])
        if turns[0].role == "user":
            message = "its first turn is the user's, and an answer begins with the assistant's. "
            message += f"Whole conversations: write data.columns: {{messages: {here[0]}}}."
            raise RowError(here[0], message)
        check_order(turns, here[0])
        return turns, (said(turns[-1]),)
    texts = [text for column in here for text in _texts(values[column], column) if text.strip()]
    references = tuple(dict.fromkeys(texts))
    return tuple(Turn("assistant", text) for text in references[:1]), references


def _holds_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "text" not in value[0]


def _texts(value: Any, column: str) -> list[str]:
    """The answers of one column: a text, a list of texts, {"text": […]} or [{"text": …}] as SQuAD has them."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if value is None:
        return []
    listed_texts = value if isinstance(value, list) else [value]
    texts = [text["text"] if isinstance(text, dict) and "text" in text else text for text in listed_texts]
    for text in texts:
        if not isinstance(text, str):
            raise RowError(column, no_text(text))
        if wrong := no_unicode(text):
            raise RowError(column, wrong)
    return texts


def _history(value: Any, column: str) -> tuple[Turn, ...]:
    """The turns of [[what the user said, the answer], …]."""
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise RowError(column, f"got {short(value)}. Write a list of pairs: [[what the user said, the answer], …].")
    turns: list[Turn] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(column, f"got the pair {short(pair)}. Write two texts: [what the user said, the answer].")
        if wrong := no_unicode("".join(pair)):
            raise RowError(column, wrong)
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return tuple(turns)


def _present(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise RowError(column, f"is missing. Keys of this row: {listed(list(values))}.")
    return values[column]


def _text(values: Mapping[str, Any], column: str) -> str:
    """The text of a column that may be left out."""
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(column, no_text(value))
    if wrong := no_unicode(value):
        raise RowError(column, wrong)
    return value


def _cell(values: Mapping[str, Any], column: str) -> str:
    """What a placeholder of task.prompt is filled with: a text, or a number as it is written."""
    value = _present(values, column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise RowError(column, f"got {short(value)}. A prompt is filled with texts and numbers: name another column.")
    return _text(values, column)
