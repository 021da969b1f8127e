"""Instruction data in its usual forms to conversations: what is found, how it is read, and what is refused."""

import json

import pytest

from ftkit.data.conversations import to_conversations
from ftkit.data.forms import INSTEAD_OF_PROMPT, KNOWN_ROLES
from ftkit.data.leakage import duplicate_findings
from ftkit.data.rows import Place, RawRow
from ftkit.data.section import Columns, Data, Docstrings
from ftkit.data.source import read_rows
from ftkit.data.template import Template
from ftkit.errors import DataError
from ftkit.records import Conversation, Turn

USER, ASSISTANT = Turn("user", "Hi"), Turn("assistant", "Hello")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CALL = {"name": "find", "arguments": {"what": "salt"}}


def mapped(values, *, prompt=None, system=None, columns=None, **keys):
    data = Data(train="a.jsonl", columns=Columns(**(columns or {})), **keys)
    rows = (RawRow(Place("d/a.jsonl", "line", number), row) for number, row in enumerate(values, 1))
    return to_conversations(rows, "d/a.jsonl", data, prompt=prompt, system=system)


def one(row, **keys) -> Conversation:
    (conversation,) = mapped([row], **keys).examples
    return conversation


def turns(row, **keys) -> tuple[Turn, ...]:
    return one(row, **keys).turns


def said(row, **keys) -> tuple[str, str]:
    """The prompt and the answer."""
    user, assistant = turns(row, **keys)
    assert (user.role, assistant.role) == ("user", "assistant")
    return user.content, assistant.content


def refusal(values, **keys) -> str:
    with pytest.raises(DataError) as caught:
        mapped(values, **keys)
    return str(caught.value)


def wrong(message, **keys) -> str:
    """What is said of a conversation with this message in it."""
    text = refusal([{"messages": [message, *CHAT]}], **keys)
    return text.removeprefix("error: d/a.jsonl has 1 problem\n  line 1   messages   turn 1: ")


def decided(values, **keys):
    return [(decision.key, decision.value) for decision in mapped(values, **keys).decisions]


# Prompts and answers


@pytest.mark.parametrize("name", [*KNOWN_ROLES["prompt"], *INSTEAD_OF_PROMPT, "Question", "PROMPT"])
def test_known_prompts_are_found(name):
    row = {"id": 7, "text": "x", name: "Hi", "answer": "Hello"}
    assert said(row) == ("Hi", "Hello")
    assert decided([row]) == [("data.columns.prompt", name), ("data.columns.completion", "answer")]


@pytest.mark.parametrize("name", [*KNOWN_ROLES["completion"], "Response"])
def test_known_answers_are_found(name):
    assert said({"id": 7, "prompt": "Hi", name: "Hello"}) == ("Hi", "Hello")


def test_a_row_becomes_a_conversation():
    result = mapped([{"prompt": " Hi\n", "completion": "Hello ", "who": 7}], group="who")
    assert result.examples == (
        Conversation(
            id="a.jsonl:1",
            where="d/a.jsonl line 1",
            text=" Hi\n",
            labels=(),
            group="7",
            turns=(Turn("user", " Hi\n"), Turn("assistant", "Hello ")),
            references=("Hello ",),
        ),
    )


@pytest.mark.parametrize(
    ("more", "prompt"),
    [
        ({"input": "salt"}, "Find\n\nsalt"),
        ({"input": ""}, "Find"),
        ({"input": None}, "Find"),
        ({"context": "A cook asks."}, "A cook asks.\n\nFind"),
        ({"input": "salt", "context": "A cook asks."}, "A cook asks.\n\nFind\n\nsalt"),
    ],
)
def test_input_follows_and_context_goes_before(more, prompt):
    assert said({"instruction": "Find", "output": "here", **more}) == (prompt, "here")


def test_the_joined_columns_are_said():
    (decision, _) = mapped([{"instruction": "Find", "input": "salt", "output": "here"}]).decisions
    assert (decision.key, decision.value) == ("data.columns.prompt", "instruction, input")
    assert decision.why == (
        "columns of d/a.jsonl with known names, those that are not empty, with a blank line between"
    )


def test_a_named_prompt_is_the_whole_prompt_and_that_is_said():
    row = {"instruction": "Find", "input": "salt", "output": "here"}
    assert said(row, columns={"prompt": "instruction"}) == ("Find", "here")
    assert decided([row], columns={"prompt": "instruction", "completion": "output"}) == [
        ("data.columns", "without input")
    ]
    assert decided([{"a": "x", "b": "y"}], columns={"prompt": "a", "completion": "b"}) == []


def test_history_and_system_of_alpaca():
    row = {
        "instruction": "And now?",
        "output": "Stir.",
        "history": [["Hi", "Hello"], ["How?", "Cut."]],
        "system": "Cook.",
    }
    assert [(turn.role, turn.content) for turn in turns(row)] == [
        ("system", "Cook."), ("user", "Hi"), ("assistant", "Hello"), ("user", "How?"), ("assistant", "Cut."),
        ("user", "And now?"), ("assistant", "Stir."),
    ]  # fmt: skip
    assert decided([row])[-2:] == [("data.columns", "history"), ("data.columns", "system")]
    assert [turn.role for turn in turns({**row, "history": [], "system": ""})] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        ("one", ("one",)),
        (["one", " ", "two", "one"], ("one", "two")),
        ({"text": ["one", "two"], "answer_start": [1, 2]}, ("one", "two")),
        ([{"text": "one", "answer_start": 1}], ("one",)),
    ],
)
def test_equally_good_answers(answers, references):
    """Each once, and the first is trained."""
    found = one({"question": "Which?", "answers": answers})
    assert found.references == references
    assert found.turns[-1] == Turn("assistant", "one")


def test_several_columns_of_answers():
    """Those that a source has, in the order of the recipe."""
    columns = {"completion": ("summary", "s2", "s1")}
    assert one({"dialogue": "d", "s1": "one", "s2": "two"}, columns=columns).references == ("two", "one")
    assert one({"dialogue": "d", "summary": "one"}, columns=columns).references == ("one",)
    result = mapped(
        [{"dialogue": "d", "s1": "a", "s2": "b"}, {"dialogue": "d", "s1": "one", "s2": ""}], columns=columns
    )
    assert result.examples[1].references == ("one",)
    assert refusal([{"dialogue": "d", "topic": "t"}], columns=columns) == (
        "error: d/a.jsonl has 1 problem\n  data.columns.completion   no column is named summary, s2 or s1. "
        "Columns here: dialogue, topic. Correct the names."
    )


def test_prompts_and_completions_of_turns():
    """As TRL reads them: what stands in the prompt is given, not learned."""
    row = {
        "prompt": [*CHAT, {"role": "user", "content": "Find salt"}],
        "completion": [{"role": "assistant", "content": "Here"}],
    }
    found = one(row)
    assert found.turns == (
        Turn("user", "Hi", False), Turn("assistant", "Hello", False), Turn("user", "Find salt", False),
        Turn("assistant", "Here"),
    )  # fmt: skip
    assert found.references == ("Here",)
    assert found.text == "user: Hi\n\nassistant: Hello\n\nuser: Find salt"
    assert turns({**row, "completion": "Here"}) == found.turns


# Conversations


@pytest.mark.parametrize("name", [*KNOWN_ROLES["messages"], "Messages"])
def test_messages(name):
    row = {"prompt_id": "p", "prompt": "Hi", name: CHAT}
    assert turns(row) == (USER, ASSISTANT)
    assert one(row).text == "Hi"
    assert one(row).references == ("Hello",)
    assert decided([row]) == [("data.columns.messages", name)]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("human", "user"), ("user", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"), ("bing", "assistant"),
        ("bard", "assistant"), ("Assistant", "assistant"), ("system", "system"), ("observation", "tool"),
        ("tool", "tool"), ("function_response", "tool"),
    ],
)  # fmt: skip
def test_the_roles_of_sharegpt(name, role):
    first, *_ = turns({"conversations": [{"from": name, "value": "x"}, {"from": "human", "value": "Hi"}, *CHAT]})
    assert first == Turn(role, "x")


def test_a_system_column_is_a_turn_and_the_recipes_is_for_rows_without():
    rows = [{"messages": CHAT, "system": "Cook."}, {"messages": CHAT, "system": None}]
    own, given = mapped(rows, system="Be kind.").examples
    assert own.turns[0] == Turn("system", "Cook.")
    assert own.text == "system: Cook.\n\nuser: Hi"
    assert given.turns == (Turn("system", "Be kind."), USER, ASSISTANT)
    assert given.text == "Hi"  # the recipe's is the same in all rows


def test_typed_parts_are_joined():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "value": "lo"}]
    assert turns({"messages": [CHAT[0], {"role": "assistant", "content": parts}]}) == (USER, ASSISTANT)


@pytest.mark.parametrize("key", ["loss_weight", "weight", "train"])
@pytest.mark.parametrize(
    ("weight", "trained"), [(0, False), (0.0, False), (False, False), (1.0, True), (True, True), (None, True)]
)
def test_weights_of_turns(key, weight, trained):
    chat = [*CHAT[:1], {**CHAT[1], key: weight}]
    assert turns({"messages": chat})[1].trained is trained


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"role": "assistant", "tool_calls": [{"function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}]},
        {"role": "assistant", "content": "", "function_call": CALL},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps([CALL])},
    ],
)
def test_calls(calling):
    found = one({"messages": [CHAT[0], calling, {"role": "function", "content": "here"}, CHAT[1]]})
    assert found.turns == (USER, Turn("assistant", "", calls=(CALL,)), Turn("tool", "here"), ASSISTANT)
    assert found.text == ('user: Hi\n\nassistant: {"name": "find", "arguments": {"what": "salt"}}\n\ntool: here')


def test_a_call_is_an_answer():
    found = one({"messages": [CHAT[0], {"from": "function_call", "value": json.dumps(CALL)}]})
    assert found.references == ('{"name": "find", "arguments": {"what": "salt"}}',)


def test_tools():
    bare = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
    whole = {"type": "function", "function": bare}
    for tools in ([bare], [whole], json.dumps([bare])):
        assert one({"messages": CHAT, "tools": tools}).tools == (whole,)
    for tools in ("", None, []):
        assert one({"messages": CHAT, "tools": tools}).tools == ()
    assert one({"messages": CHAT, "offer": [bare]}, columns={"tools": "offer"}).tools == (whole,)
    assert decided([{"messages": CHAT, "tools": []}])[1] == ("data.columns.tools", "tools")


# Rows with several questions


def test_self_instruct():
    rows = [
        {"instruction": "Double", "instances": [{"input": "1", "output": "2"}, {"input": "2", "output": "4"}]},
        {"instruction": "Say", "instances": [{"input": "", "output": "x"}]},
    ]
    assert [(row.id, row.where, row.text, row.references) for row in mapped(rows).examples] == [
        ("a.jsonl:1#1", "d/a.jsonl line 1#1", "Double\n\n1", ("2",)),
        ("a.jsonl:1#2", "d/a.jsonl line 1#2", "Double\n\n2", ("4",)),
        ("a.jsonl:2", "d/a.jsonl line 2", "Say", ("x",)),
    ]


def test_squad_from_its_own_json(tmp_path):
    """An unanswerable question is dropped; the title of the article can be the group."""
    questions = [
        {
            "id": "1",
            "question": "Where?",
            "answers": [{"text": "Here", "answer_start": 0}, {"text": "here", "answer_start": 3}],
        },
        {"id": "2", "question": "When?", "answers": []},
    ]
    article = {"title": "Salt", "paragraphs": [{"context": "Salt is here.", "qas": questions}]}
    (tmp_path / "s.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    data = Data(train="s.json", group="title")
    result = to_conversations(read_rows("s.json", tmp_path), "s.json", data, prompt=None, system=None)
    (found,) = result.examples
    assert (found.id, found.group, found.text) == ("s.json:1#1", "Salt", "Salt is here.\n\nWhere?")
    assert found.references == ("Here", "here")
    assert result.dropped == ("s.json row 1#2",)
    template = to_conversations(
        read_rows("s.json", tmp_path), "s.json", data, prompt="{title}: {question}", system=None
    )
    assert template.examples[0].text == "Salt: Where?"


@pytest.mark.parametrize(
    ("form", "columns"), [("questions", ("question", "answer")), ("summaries", ("document", "summary"))]
)
def test_docstrings(form, columns, tmp_path):
    source = Docstrings(docstrings=("json", "abc"), form=form)
    result = to_conversations(read_rows(source, tmp_path), str(source), Data(train=source), prompt=None, system=None)
    assert [decision.value for decision in result.decisions] == list(columns)
    for row, raw in zip(result.examples, read_rows(source, tmp_path), strict=True):
        assert (row.text, *row.references) == tuple(raw.values[column] for column in columns)


# A prompt of the recipe's


def test_a_template_is_filled_and_other_prompts_are_ignored():
    row = {"question": "no", "Topic of": "salt", "n": 2, "messages": CHAT, "answer": "Here"}
    assert said(row, prompt="{{{n}}} of {Topic of}: {{go}}") == ("{2} of salt: {go}", "Here")
    assert decided([row], prompt="{n}") == [("data.columns.completion", "answer")]


def test_a_row_without_what_the_template_asks_for_is_dropped_only_where_all_is_empty():
    rows = [{"a": "", "b": "x", "answer": "y"}, {"a": " ", "b": None, "answer": "y"}]
    result = mapped(rows, prompt="{a}+{b}")
    assert [row.text for row in result.examples] == ["+x"]
    assert result.dropped == ("d/a.jsonl line 2",)


def test_the_pieces_of_a_template():
    assert Template.parse("{{{a}}} b {c d}") == Template(("{", "} b ", ""), ("a", "c d"))
    assert Template.parse("a").columns == ()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{qestion}", "no column is named qestion. Did you mean question? Columns here: question, answer."),
        ("Say {question", "character 5 is a { without its }. Add it, or write {{ for a brace."),
        ("Say question}", "character 13 is a } without its {. Add it, or write }} for a brace."),
        ("Say {}", "characters 5 and 6 name no column. Write one between the braces."),
        (
            "{answer} {question}",
            "answer is the answer (data.columns.completion). Name another column in one of the two.",
        ),
    ],
)
def test_templates_that_cannot_be_filled(prompt, message):
    rows = [{"question": "Which?", "answer": "This"}]
    assert refusal(rows, prompt=prompt, columns={"completion": "answer"}) == (
        f"error: d/a.jsonl has 1 problem\n  task.prompt   {message}"
    )


def test_values_that_fill_no_template():
    assert refusal([{"a": "x", "answer": "y"}, {"a": True, "answer": "y"}, {"answer": "y"}, {"a": [1], "answer": "y"}], prompt="{a}") == (
        "error: d/a.jsonl has 3 problems\n"
        "  line 2   a   got True. A prompt is filled with texts and numbers: name another column.\n"
        "  line 3   a   is missing. Keys of this row: answer.\n"
        "  line 4   a   got [1]. A prompt is filled with texts and numbers: name another column."
    )  # fmt: skip


# What is refused


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"prompt": "a", "Question": "b", "answer": "c"}, {},
            "data.columns.prompt   several columns could hold the prompt: prompt, Question. Write data.columns: {prompt: prompt}.",
        ),
        (
            {"prompt": "a", "answer": "b", "output": "c"}, {},
            "data.columns.completion   several columns could hold the completion: answer, output. Write data.columns: {completion: answer}.",
        ),
        (
            {"messages": [], "conversations": []}, {},
            "data.columns.messages   several columns could hold the messages: messages, conversations. Write data.columns: {messages: messages}.",
        ),
        (
            {"text": "a", "summary": "b"}, {},
            "data.columns.prompt   no column is named prompt, question, instruction or query. Columns here: text, summary. Write data.columns: {prompt: text}.",
        ),
        (
            {"prompt": "a", "reply": "b"}, {},
            "data.columns.completion   no column is named completion, answer, answers, response, output, summary or target. Columns here: prompt, reply. "
            "Write data.columns: {completion: COLUMN}.",
        ),
        (
            {"prompt": "a", "input": "b", "INPUT": "c", "answer": "d"}, {},
            "data.columns   several columns could hold the input: input, INPUT. Rename all but one of them, or write task.prompt.",
        ),
        ({"text": "a", "url": "b"}, {}, "text, url   there is text alone, and no answer to learn. Write task: {type: pretrain}."),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"}, {},
            "prompt, chosen, rejected   these are preferences between two answers, and task sft learns from one. Name a prompt and an answer: "
            "data.columns: {prompt: COLUMN, completion: chosen}; where chosen holds whole conversations, data.columns: {messages: chosen}.",
        ),
        ({"messages": CHAT}, {"messages": "message"}, "data.columns.messages   no column is named message. Did you mean messages? Columns here: messages."),
        ({"prompt": "a", "b": "c"}, {"completion": "c"}, "data.columns.completion   no column is named c. Columns here: prompt, b."),
        ({"a": "a", "answer": "c"}, {"prompt": "b"}, "data.columns.prompt   no column is named b. Columns here: a, answer."),
        ({"messages": CHAT}, {"tools": "t"}, "data.columns.tools   no column is named t. Columns here: messages."),
        (
            {"a": "a"}, {"prompt": "a", "completion": "a"},
            "data.columns.prompt   a is the answer (data.columns.completion). Name another column in one of the two.",
        ),
    ],
)  # fmt: skip
def test_columns_that_do_not_tell_what_they_hold(row, columns, message):
    assert refusal([row], columns=columns) == f"error: d/a.jsonl has 1 problem\n  {message}"


def test_neither_prompt_nor_answer():
    assert refusal([{"a": "b", "c": "d"}]).splitlines()[0] == "error: d/a.jsonl has 2 problems"


def test_preferences_can_be_trained_where_the_recipe_names_the_answer():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert said(row, columns={"completion": "chosen"}) == ("a", "b")
    assert turns({**row, "chosen": CHAT}, columns={"messages": "chosen"}) == (USER, ASSISTANT)
    assert refusal([{**row, "chosen": CHAT}], columns={"completion": "chosen"}).splitlines()[1] == (
        "  line 1   chosen   its first turn is the user's, and an answer begins with the assistant's. "
        "Whole conversations: write data.columns: {messages: chosen}."
    )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Hi", """got 'Hi'. Write an object: {"role": "user", "content": …}."""),
        ({"content": "Hi"}, "has no role. Keys of this turn: content. Write role and content."),
        ({"role": "asistant", "content": "Hi"}, "the role 'asistant' is not known. Did you mean assistant? Correct it."),
        ({"role": 3, "content": "Hi"}, "the role 3 is not known. Roles here: system, user, assistant, tool. Correct it."),
        ({"role": "user"}, "has no content. Keys of this turn: role. Write its content."),
        ({"role": "user", "content": 5}, "its content is 5, which is no text. Write it in quotes."),
        ({"role": "user", "content": [{"type": "image"}]}, "has a part of type image, and text alone can be trained. Remove the part, or the row."),
        ({"role": "user", "content": [{"type": "text"}]}, """a part of it is {'type': 'text'}. Write {"type": "text", "text": …}."""),
        ({"role": "user", "content": "x \ud83d"}, "character 3 is half of a surrogate pair. Remove it, or write the whole character."),
        ({"role": "user", "content": "x", "weight": 0.5}, "weight is 0.5. Write 0 or 1: a turn is trained, or it is not."),
        ({"role": "user", "content": "x", "weight": 0, "train": 1}, "weight and train say both whether it is trained. Keep one."),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "the user calls a tool, which only the assistant can. Remove its calls."),
        ({"role": "assistant", "tool_calls": CALL}, "tool_calls is {'name': 'find', 'arguments': {'what': '…. Write a list of calls."),
        ({"role": "assistant", "tool_calls": [{"name": ""}]}, """got the call {'name': ''}. Write {"name": …, "arguments": {…}}."""),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, """arguments of f are [1]. Write an object: {"NAME": value}."""),
        (
            {"from": "function_call", "value": "find(salt)"},
            "its value: no JSON (Expecting value: line 1 column 1 (char 0)). Write it as JSON.",
        ),
    ],
)  # fmt: skip
def test_turns_that_are_none(message, said):
    assert wrong(message) == said


def test_all_bad_rows_are_named_at_once():
    values = [
        {"messages": CHAT, "system": "", "tools": "", "g": 1},
        {"messages": "Hi", "g": 1},
        {"messages": CHAT[:1], "g": 1},
        {"messages": [*CHAT, CHAT[0]], "g": 1},
        {"messages": [*CHAT, {"role": "system", "content": "x"}, *CHAT], "g": 1},
        {"messages": [{"role": "system", "content": "x"}, *CHAT], "system": "y", "g": 1},
        {"messages": CHAT, "system": 5, "g": 1},
        {"messages": CHAT, "tools": "{", "g": 1},
        {"messages": CHAT, "tools": [{"description": "x"}], "g": 1},
        {"messages": CHAT, "g": None},
        {"g": 1},
        {"messages": [], "g": 1},
    ]
    assert refusal(values, group="g").splitlines() == [
        "error: d/a.jsonl has 10 problems",
        """  line 2    messages   got 'Hi'. Write a list of turns: [{"role": "user", "content": …}, …].""",
        "  line 3    messages   no turn is the assistant's, so there is no answer to learn. Add one, or remove the row.",
        "  line 4    messages   the last turn is the user's. End with the assistant's turn, or remove the row.",
        "  line 5    messages   turn 3 is a system turn, which only the first can be. Move it to the start.",
        "  line 6    messages   its first turn and the column system are both system turns. Keep one of them.",
        "  line 7    system     got 5, which is no text. Write it in quotes, or name another column.",
        "  line 8    tools      is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). Write a list of tools as JSON.",
        """  line 9    tools      tool 1: got {'description': 'x'}. Write an object such as {"name": …, "parameters": …}.""",
        "  line 10   g          the group is missing. Write it, or remove the row.",
        "  line 11   messages   is missing. Keys of this row: g.",
    ]


def test_bad_prompts_answers_and_histories():
    values = [
        {"instruction": "a", "input": "", "history": None, "output": "b"},
        {"instruction": 5, "output": "b"},
        {"output": "b"},
        {"instruction": "a"},
        {"instruction": "a", "output": [1]},
        {"instruction": "a \ud83d", "output": "b"},
        {"instruction": "a", "output": "b \ud83d"},
        {"instruction": "a", "output": "b", "history": "Hi"},
        {"instruction": "a", "output": "b", "history": [["Hi"]]},
        {"instruction": CHAT, "input": "x", "output": "b"},
    ]
    assert refusal(values).splitlines()[1:] == [
        "  line 2    instruction   got 5, which is no text. Write it in quotes, or name another column.",
        "  line 3    instruction   is missing. Keys of this row: output.",
        "  line 4    output        is missing. Keys of this row: instruction.",
        "  line 5    output        got 1, which is no text. Write it in quotes, or name another column.",
        "  line 6    instruction   character 3 is half of a surrogate pair. Remove it, or write the whole character.",
        "  line 7    output        character 3 is half of a surrogate pair. Remove it, or write the whole character.",
        "  line 8    history       got 'Hi'. Write a list of pairs: [[what the user said, the answer], …].",
        "  line 9    history       got the pair ['Hi']. Write two texts: [what the user said, the answer].",
        "  line 10   instruction   a list of turns, to which input cannot be added. Write task.prompt.",
    ]


def test_bad_parts_are_named_with_their_number():
    rows = [
        {"instruction": "a", "instances": [{"input": "", "output": "b"}, {"input": "", "output": 5}]},
        {"instruction": "a", "instances": "b"},
        {"instruction": "a", "instances": []},
    ]
    assert refusal(rows).splitlines()[1:] == [
        "  line 1#2   output      got 5, which is no text. Write it in quotes, or name another column.",
        "  line 2     instances   got 'b'. Write a list of objects.",
        "  line 3     instances   is empty. Write an instance with input and output, or remove the row.",
    ]


def test_empty_prompts_and_answers_are_dropped_and_named():
    pairs = [{"prompt": "a", "answer": "b"}, {"prompt": " ", "answer": "b"}, {"prompt": "a", "answer": None}]
    assert mapped(pairs).dropped == ("d/a.jsonl line 2", "d/a.jsonl line 3")
    empty = {"role": "assistant", "content": " "}
    chats = [{"messages": chat} for chat in (CHAT, [CHAT[0], empty], CHAT[1:], None, [])]
    assert mapped(chats, system="x").dropped == tuple(f"d/a.jsonl line {number}" for number in (2, 3, 4, 5))
    assert refusal(pairs[1:]) == (
        "error: d/a.jsonl has 1 problem\n"
        "  answer   prompt or answer is empty in all 2 rows. Name other columns in data.columns."
    )


def test_two_user_turns_in_a_row_are_allowed():
    assert turns({"messages": [CHAT[0], *CHAT]}) == (USER, USER, ASSISTANT)


def test_one_prompt_with_several_answers_is_no_conflict():
    """Only a prompt with the same answer again is a repetition."""
    rows = [("a", "x"), ("A ", "y"), ("a", "x "), ("b", "x")]
    found = mapped([{"prompt": prompt, "answer": answer} for prompt, answer in rows]).examples
    (finding,) = duplicate_findings(found)
    assert finding.message == "train repeats rows with the same prompt and answer 1 time: they count more than once."
    assert finding.rows == ("d/a.jsonl line 1 = d/a.jsonl line 3",)
    assert duplicate_findings(found[:2]) == []
