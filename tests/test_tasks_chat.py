"""Chat templates: what is rendered, what is trained, and that training, generation and the saved tokenizer agree."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from ftkit.errors import MachineError, RecipeError
from ftkit.models.chatml import chatml
from ftkit.models.locate import BaseFiles
from ftkit.models.train_tokenizer import train_tokenizer
from ftkit.records import Conversation, Decision, Turn
from ftkit.tasks.certificate import certificate, pieces
from ftkit.tasks.chat import Chat, TooLong, Unfit, fit
from ftkit.tasks.rendering import decode, render, tokenise
from ftkit.tasks.templates import load_chat
from ftkit.tasks.windows import IGNORED

MARKS = ["<|im_start|>", "<|im_end|>"]
CORPUS = inspect.getsource(argparse).split("\n\n")[:150]
PLAIN = (  # ChatML without markers
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns.') }}{% endif %}"
    "{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% set said = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if message.role == 'assistant' and loop.last %}"
    "{% set thought = message.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in message.content else '' %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = PLAIN.replace(
    "message.content + '<|im_end|>\n' }}",
    "'' }}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}",
)
NO_STOP = "{% for message in messages %}{{ '### ' + message.role + ':\n' + message.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
# Templates by name: the text, the special tokens it needs, the tokenizer's kind, whether it takes a system turn.
FAMILIES = {
    "chatml": (None, [], "bytes", True),
    "plain": (PLAIN, MARKS, "bytes", True),
    "marked": (MARKED, MARKS, "bytes", True),
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "bytes", True),
    "llama2": (LLAMA2, [], "pieces", True),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "pieces", False),
    "chatml-pieces": (None, [], "pieces", True),
    "chatml-legacy": (None, [], "legacy", True),
}


def says(*turns, tools=()) -> Conversation:
    made = tuple(turn if isinstance(turn, Turn) else Turn(*turn) for turn in turns)
    return Conversation("a:1", "a.jsonl line 1", "", (), turns=made, tools=tools)


SHORT = says(("user", "What is it?"), ("assistant", "A parser."))
LONG = says(
    ("system", "Be brief."),
    ("user", "What is it 🎉?"),
    ("assistant", "A parser."),
    ("user", "And the\n\nother?"),
    ("assistant", "None é 🎉."),
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    """Folders with a tokenizer without template: byte-level BPE, and BPE in the manner of Llama 2, new and old."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = train_tokenizer(CORPUS, vocab=420, max_length=512)
    state = json.loads(made.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<|im_")]
    for index, mark in ((2, "<|im_start|>"), (3, "<|im_end|>")):
        del state["model"]["vocab"][mark]
        state["model"]["vocab"][f"<unused{index}>"] = index
    state["post_processor"]["special_tokens"].pop("<|im_end|>")
    backend = Tokenizer.from_str(json.dumps(state))
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|bos|>", pad_token="<|pad|>"
    )
    plain.save_pretrained(folder / "bytes")
    pieces_tokenizer().save_pretrained(folder / "pieces")
    legacy = folder / "legacy"
    pieces_tokenizer().save_pretrained(legacy)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (legacy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return {path.name: path for path in folder.iterdir()}


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with spaces as ▁, one put before the text, and bytes for what it does not know."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    learned.train_from_iterator([" ".join(text.split()) for text in CORPUS], trainers.BpeTrainer(vocab_size=300))
    state = json.loads(learned.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    merges = [tuple(merge) for merge in state["merges"]]
    model = models.BPE(
        {word: index for index, word in enumerate(words)}, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def load(tokenizers, tmp_path_factory):
    """A function to a Chat: a tokenizer's kind, the base's own template, its special tokens, the recipe's template."""

    def make(kind="bytes", own=None, special=(), template="model", folder=Path()) -> Chat:
        base = tmp_path_factory.mktemp("base")
        tokenizer = AutoTokenizer.from_pretrained(tokenizers[kind])
        tokenizer.add_special_tokens({"extra_special_tokens": list(special)})
        tokenizer.chat_template = own
        tokenizer.save_pretrained(base)
        if kind == "legacy":
            config = json.loads((base / "tokenizer_config.json").read_text())
            (base / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
        return load_chat(
            BaseFiles("pico", "folder", base, None), template, folder, max_length=None, trust_remote_code=False
        )

    return make


@pytest.fixture(scope="module")
def chats(load) -> dict[str, Chat]:
    return {name: load(kind, own, special) for name, (own, special, kind, _) in FAMILIES.items()}


@pytest.fixture(scope="module")
def again(chats, tmp_path_factory) -> dict[str, Chat]:
    """The same chats from what their tokenizers are saved as."""
    found = {}
    for name, chat in chats.items():
        folder = tmp_path_factory.mktemp(name)
        chat.tokenizer.save_pretrained(folder)
        files = BaseFiles("saved", "folder", folder, None)
        found[name] = load_chat(files, "model", folder, max_length=None, trust_remote_code=False)
    return found


@pytest.fixture(scope="module")
def qwen3(load) -> Chat:
    return load(own=QWEN3, special=MARKS)


def trained(chat: Chat, conversation: Conversation, train_on="answers") -> list[str]:
    return [text for text, yes in pieces(chat, chat.encode(conversation, train_on)) if yes]


def stop(chat: Chat) -> str:
    return chat.tokenizer.convert_ids_to_tokens(chat.stop_ids[0])


def problem(act, *arguments) -> str:
    with pytest.raises(Unfit) as error:
        act(*arguments)
    return str(error.value)


WORDS = st.text(alphabet=" \n\tabc1é🎉'\"\\.<|", max_size=12)
SAID = WORDS.filter(str.strip)


@st.composite
def conversations(draw, *, system: bool) -> Conversation:
    turns = [Turn("system", draw(SAID))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn("user", draw(SAID)), Turn("assistant", draw(SAID), trained=draw(st.booleans()))]
    return says(*turns)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_trained_is_what_the_assistant_says_and_generation_starts_where_it_begins(name, chats, again, data):
    chat = chats[name]
    conversation = data.draw(conversations(system=FAMILIES[name][3]))
    answers = [
        turn.content.strip() + stop(chat) for turn in conversation.turns if turn.role == "assistant" and turn.trained
    ]
    row = chat.encode(conversation, "answers")
    assert len(row.ids) == len(row.labels)
    assert {label in (IGNORED, token) for label, token in zip(row.labels, row.ids, strict=True)} == {True}
    shown = pieces(chat, row)
    assert "".join(text for text, _ in shown) == decode(chat.tokenizer, row.ids)
    assert [without_space(text, chat) for text, yes in shown if yes] == [without_space(text, chat) for text in answers]
    assert row.ids[: row.answer] == chat.prompt(conversation.turns[:-1])
    assert row.ids[row.end] == chat.stop_ids[0]
    assert chat.said(row.ids[row.answer : row.end]) == conversation.turns[-1].content.strip()
    assert row == again[name].encode(conversation, "answers")
    only = chat.encode(conversation, "last_answer")
    assert set(only.labels[: only.answer] + only.labels[only.end + 1 :]) <= {IGNORED}
    assert only.labels[only.answer : only.end + 1] == row.labels[row.answer : row.end + 1]


def without_space(text: str, chat: Chat) -> str:
    """An answer without the white space around it, which the template may strip or a token of the header hold."""
    return text.removesuffix(stop(chat)).strip() + stop(chat)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rendered_text_is_the_tokenizers_own(name, chats):
    chat = chats[name]
    turns = [turn for turn in LONG.turns if FAMILIES[name][3] or turn.role != "system"]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert render(chat.tokenizer, turns, (), asked=False) == chat.tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    asked = chat.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
    assert chat.prompt(turns[:-1]) == asked["input_ids"]


@given(text=WORDS)
@example(text="  a\n\n b")
def test_each_character_belongs_to_a_token(chats, text):
    for name in ("chatml", "llama2"):
        ids, starts = tokenise(chats[name].tokenizer, text)
        assert len(ids) == len(starts)
        assert starts == sorted(starts)
        assert not starts or starts[0] == 0


def test_the_space_that_trimmed_offsets_leave_out_is_a_part_of_its_token(tokenizers):
    tokenizer = AutoTokenizer.from_pretrained(tokenizers["bytes"])
    text = "return  value of x"
    whole = tokenise(tokenizer, text)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trimmed = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert [start for start, _ in trimmed] != whole[1]  # or nothing is shown
    assert tokenise(tokenizer, text) == whole


def test_a_base_without_a_template_gets_chatml_and_its_tokens_and_that_is_said(load):
    chat = load()
    assert chat.source == "chatml"
    assert chat.decision == Decision("task.template", "chatml", "pico has no chat template of its own")
    assert chat.added == ("<|im_start|>", "<|im_end|>")
    assert chat.tokenizer.chat_template == chatml(bos=True)
    assert chat.tokenizer.eos_token == "<|bos|>"
    assert chat.tokenizer.convert_ids_to_tokens(list(chat.stop_ids)) == ["<|im_end|>", "<|bos|>"]
    assert pieces(chat, chat.encode(LONG, "answers")) == [
        (
            "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it 🎉?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("A parser.<|im_end|>", True),
        ("\n<|im_start|>user\nAnd the\n\nother?<|im_end|>\n<|im_start|>assistant\n", False),
        ("None é 🎉.<|im_end|>", True),
        ("\n", False),
    ]
    assert chat.said(chat.tokenizer("<|im_start|> Yes.<|im_end|>", add_special_tokens=False)["input_ids"]) == "Yes."


def test_a_tokenizer_that_has_the_marks_and_adds_no_start_token_keeps_them_so(load):
    chat = load(special=MARKS, template="chatml")
    assert (chat.added, chat.decision) == ((), None)
    tokenizer = AutoTokenizer.from_pretrained(chat.tokenizer.name_or_path)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(chat.tokenizer.name_or_path)
    files = BaseFiles("pico", "folder", Path(chat.tokenizer.name_or_path), None)
    plain = load_chat(files, "chatml", Path(), max_length=99, trust_remote_code=False)
    assert plain.tokenizer.chat_template == chatml(bos=False)
    assert plain.tokenizer.model_max_length == 99
    assert chat.encode(SHORT, "answers").ids == [chat.tokenizer.bos_token_id, *plain.encode(SHORT, "answers").ids]


def test_what_a_tokenizer_has_of_its_own_stays_and_marks_it_knows_are_not_new(load, tokenizers, tmp_path):
    assert load(special=["<own>"]).tokenizer.extra_special_tokens == ["<own>", "<|im_start|>", "<|im_end|>"]
    tokenizer = AutoTokenizer.from_pretrained(tokenizers["bytes"])
    tokenizer.add_tokens(MARKS)  # as words, not as special tokens
    tokenizer.save_pretrained(tmp_path)
    files = BaseFiles("pico", "folder", tmp_path, None)
    chat = load_chat(files, "chatml", tmp_path, max_length=None, trust_remote_code=False)
    assert (chat.added, len(chat.tokenizer)) == ((), len(tokenizer))
    row = chat.encode(SHORT, "answers")
    assert chat.tokenizer.decode(row.ids[row.answer :], skip_special_tokens=True) == "A parser.\n"


def test_chatml_writes_tools_calls_and_what_they_return(load):
    tools = ({"type": "function", "function": {"name": "look_up", "parameters": {"é": "<b>"}}},)
    turns = [
        Turn("user", "What is it?"),
        Turn(
            "assistant",
            "I look.",
            calls=({"name": "look_up", "arguments": {"q": "é"}}, {"name": "look_up", "arguments": {}}),
        ),
        Turn("tool", "a parser"),
        Turn("assistant", "A parser."),
    ]
    chat = load()
    offered = (
        'These tools can be called:\n<tools>\n{"type": "function", "function": {"name": "look_up", "parameters": {"é": "<b>"}}}\n'
        '</tools>\nA call is written as:\n<tool_call>\n{"name": NAME, "arguments": {…}}\n</tool_call><|im_end|>\n'
    )
    rest = (
        "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
        'I look.\n<tool_call>\n{"name": "look_up", "arguments": {"q": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n<tool_response>\na parser\n</tool_response><|im_end|>\n<|im_start|>assistant\nA parser.<|im_end|>\n"
    )
    for system in ("", "Be brief.\n\n"):
        before = [Turn("system", "Be brief.")] if system else []
        row = chat.encode(says(*before, *turns, tools=tools), "answers")
        assert decode(chat.tokenizer, row.ids) == f"<|bos|><|im_start|>system\n{system}{offered}{rest}"
        said = [text for text, yes in pieces(chat, row) if yes]
        assert said == [
            rest.partition("assistant\n")[2].partition("<|im_end|>")[0] + "<|im_end|>",
            "A parser.<|im_end|>",
        ]
        assert row.ids[: row.answer] == chat.prompt([*before, *turns[:-1]], tools)
    alone = says(turns[0], replace(turns[1], content=""))
    assert trained(chat, alone)[0].startswith('<tool_call>\n{"name"')


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("answers", ["A parser.<|im_end|>", "Or none.<|im_end|>"]),
        ("last_answer", ["Or none.<|im_end|>"]),
        ("all", None),
    ],
)
def test_what_is_trained_is_what_the_recipe_asks_for(chats, train_on, expected):
    for name in ("chatml", "plain", "marked"):
        chat = chats[name]
        turns = [*SHORT.turns, Turn("user", "Sure?"), Turn("assistant", "Or none.")]
        text = render(chat.tokenizer, turns, (), asked=False)
        rest = decode(chat.tokenizer, chat.encode(says(*turns), "all").ids[1:])
        assert trained(chat, says(*turns), train_on) == (expected or [rest])
        turns[1] = replace(turns[1], trained=False)
        _, _, after = text.partition("A parser.<|im_end|>")
        expected_now = [
            text for text in expected or [rest.partition("A parser.<|im_end|>")[0], after] if "A parser" not in text
        ]
        assert trained(chat, says(*turns), train_on) == expected_now
        turns[3] = replace(turns[3], trained=False)
        if train_on != "all":
            assert trained(chat, says(*turns), train_on) == []


def test_a_border_that_the_tokenizer_merges_is_cut_where_generation_starts(chats):
    chat = chats["plain"]
    row = chat.encode(says(("user", "What is it?"), ("assistant", "        a parser")), "answers")
    assert row.recut
    assert row.ids != tokenise(chat.tokenizer, decode(chat.tokenizer, row.ids))[0]
    assert [text for text, yes in pieces(chat, row) if yes] == ["        a parser<|im_end|>"]
    assert row.ids[: row.answer] == chat.prompt([Turn("user", "What is it?")])
    assert not chat.encode(SHORT, "answers").recut


def test_a_template_that_writes_earlier_answers_anew_trains_the_last_one_only(qwen3):
    assert qwen3.opening == "<think>\n\n</think>\n\n"
    assert trained(qwen3, SHORT) == ["<think>\n\n</think>\n\nA parser.<|im_end|>"]
    row = qwen3.encode(SHORT, "answers")
    assert qwen3.said(row.ids[row.answer : row.end]) == "A parser."
    thought = says(("user", "What?"), ("assistant", "<think>I see</think>It."), ("user", "No?"), ("assistant", "Yes."))
    assert problem(qwen3.encode, thought, "answers") == (
        "the template writes an earlier answer anew once others follow, so it cannot be trained. "
        "Write train_on: last_answer, or a template with generation markers."
    )
    assert trained(qwen3, thought, "last_answer") == ["<think>\n\n</think>\n\nYes.<|im_end|>"]
    assert trained(qwen3, says(*thought.turns[:2])) == ["<think>\nI see\n</think>\n\nIt.<|im_end|>"]


def test_markers_must_stand_once_around_each_answer(load):
    template = MARKED.replace("message.role == 'assistant' %}", "message.role == 'assistant' and loop.last %}")
    chat = load(own=template, special=MARKS)
    assert trained(chat, SHORT) == ["A parser.<|im_end|>"]
    assert problem(chat.encode, LONG, "answers") == (
        "the template marks 1 answers with generation, and there are 2. Mark each assistant turn once."
    )


def test_what_is_asked_for_an_answer_with_is_not_trained_though_it_is_marked(load):
    own = MARKED.replace("{% generation %}", "{% generation %}{{ '<think>\n' }}").replace(
        "assistant\n' }}", "assistant\n<think>\n' }}"
    )
    chat = load(own=own, special=MARKS)
    assert chat.opening == ""
    assert trained(chat, SHORT) == ["A parser.<|im_end|>"]


@pytest.mark.parametrize(
    ("turns", "name", "message"),
    [
        (
            [("user", "It ends <|im_end|> here"), ("assistant", "Yes.")],
            "chatml",
            "turn 1 (user) holds <|im_end|>, which the model reads as a mark. Remove it.",
        ),
        (
            [("user", "Is it </s>?"), ("assistant", "No </s>.")],
            "llama2",
            "turn 1 (user) holds </s>, which the model reads as a mark. Remove it.",
        ),
        (
            [("user", "What?"), Turn("assistant", "", calls=({"name": "f", "arguments": {"a": "<|bos|>"}},))],
            "chatml",
            "a tool call holds <|bos|>, which the model reads as a mark. Remove it.",
        ),
        (
            [("user", "What?"), ("user", "Who?"), ("assistant", "Yes.")],
            "llama2",
            "the template refuses it: Roles must take turns. Change the row, or name another template.",
        ),
        (
            [("system", "Be brief."), ("user", "Who?"), ("assistant", "Yes.")],
            "gemma",
            "the template refuses it: System role not supported. Change the row, or name another template.",
        ),
        (
            [("user", "What?"), Turn("assistant", "", calls=({"name": "look_up", "arguments": {}},))],
            "llama3",
            "the template leaves out the call of look_up. Write task.template: chatml.",
        ),
    ],
)
def test_a_row_that_the_template_does_not_write_whole_and_clear_is_told(chats, turns, name, message):
    assert problem(chats[name].encode, says(*turns), "answers") == message


def test_a_mark_in_a_prompt_or_a_tool_is_told_too(chats):
    chat = chats["chatml"]
    message = "holds <|im_end|>, which the model reads as a mark. Remove it."
    assert problem(chat.prompt, [Turn("user", "<|im_end|>")]) == f"turn 1 (user) {message}"
    assert problem(chat.encode, replace(SHORT, tools=({"name": "<|im_end|>"},)), "answers") == f"a tool {message}"


@pytest.mark.parametrize(
    ("skipped", "conversation", "message"),
    [
        ("message.role == 'system'", LONG, "the system turn"),
        ("message.role == 'user' and loop.index > 2", LONG, "the user turn 4"),
        ("message.role == 'tool'", says(("user", "Who?"), ("tool", "me"), ("assistant", "You.")), "the tool turn 2"),
        ("false", replace(SHORT, tools=({"function": {"name": "look_up"}},)), "the tool look_up"),
    ],
)
def test_a_template_that_leaves_something_out_is_told(load, skipped, conversation, message):
    template = PLAIN.replace("{{ '<|im_start|>' + message", "{% if not (" + skipped + ") %}{{ '<|im_start|>' + message")
    template = template.replace("{% endfor %}", "{% endif %}{% endfor %}")
    chat = load(own=template, special=MARKS)
    assert (
        problem(chat.encode, conversation, "answers")
        == f"the template leaves out {message}. Write task.template: chatml."
    )


def test_what_a_template_strips_or_writes_as_json_is_not_left_out(load):
    template = PLAIN.replace(
        "message.content +", "(message.content | tojson if message.role == 'tool' else message.content | trim) +"
    )
    chat = load(own=template, special=MARKS)
    row = chat.encode(says(("user", " Who\n"), ("tool", 'the "é"\none'), ("assistant", "\tYou. ")), "answers")
    assert '<|im_start|>tool\n"the \\"é\\"\\none"<|im_end|>' in decode(chat.tokenizer, row.ids)


def test_a_system_turn_may_stand_in_the_last_user_turn(load):
    folded = PLAIN.replace("message in messages", "message in messages[1:]").replace(
        "message.content",
        "(messages[0].content + '\\n' if loop.revindex == 1 + (messages[-1].role == 'assistant') else '') + message.content",
    )
    probed = "{% if messages[0].role == 'user' %}" + PLAIN + "{% else %}" + folded + "{% endif %}"
    chat = load(own=probed, special=MARKS)
    assert "user\nBe brief.\nAnd the" in decode(chat.tokenizer, chat.encode(LONG, "last_answer").ids)
    assert trained(chat, LONG, "last_answer") == ["None é 🎉.<|im_end|>"]


def test_a_template_that_asks_for_an_answer_otherwise_in_longer_conversations_is_told(load):
    own = PLAIN.replace("assistant\n' }}{% endif", "assistant\n' + ('Hm' if messages | length > 1 else '') }}{% endif")
    chat = load(own=own, special=MARKS)
    assert trained(chat, SHORT) == ["A parser.<|im_end|>"]
    assert problem(chat.encode, LONG, "last_answer") == (
        "what the template asks for an answer with is not what it writes before one. "
        "Write task.template: chatml, or a template where add_generation_prompt writes the same."
    )


def test_no_tools_are_none_to_the_template(load):
    own = "{% if tools is not none %}{{ raise_exception('tools') }}{% endif %}" + PLAIN
    assert trained(load(own=own, special=MARKS), SHORT) == ["A parser.<|im_end|>"]


PARTS = "what it asks for an answer with (add_generation_prompt) is not what it writes before one"


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (NO_STOP, "it ends an answer with no special token, so the model would never learn to stop"),
        ("{{ bos_token + bos_token }}" + PLAIN, "it begins with <|bos|> twice"),
        (
            PLAIN.partition("{% if add")[0],
            "it writes '<|im_start|>assistant' before an answer, and not where add_generation_prompt asks for one",
        ),
        (PLAIN.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"), PARTS),
        (
            PLAIN.replace("{% endfor %}", ""),
            "line 4: Unexpected end of template. Jinja was looking for the following tags",
        ),
        ("{{ raise_exception('No.') }}", "No"),
        ("{{ 'a' + messages }}", 'can only concatenate str (not "list") to str'),
        ("{{ messages.first.other }}", "'list object' has no attribute 'first'"),
        ({"other": PLAIN}, "This model has multiple chat templates with no default specified!"),
    ],
)
def test_a_template_of_the_base_that_cannot_be_trained_with_is_told_before_the_data(load, own, why):
    with pytest.raises(RecipeError) as error:
        load(own=own, special=MARKS)
    assert str(error.value).startswith(
        f"error: the chat template of the base cannot be trained with\n  task.template   {why}"
    )
    assert str(error.value).endswith(". Write task.template: chatml, or a Jinja file of your own.")


def test_a_prompt_whose_last_token_holds_the_answers_first_space_is_told(load):
    own = "{% for message in messages %}{{ message.role + ': ' + message.content }}{{ eos_token if message.role == 'assistant' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    with pytest.raises(RecipeError) as error:
        load("pieces", own)
    assert error.value.problems[0].message == (
        "the tokens of the prompt run into those of the answer and cannot be parted. "
        "Write task.template: chatml, or a Jinja file of your own."
    )
    assert trained(load("pieces", own.replace(": '", ":\n'")), SHORT) == ["A parser.</s>"]


def test_a_template_from_a_file_beside_the_recipe(load, tmp_path):
    (tmp_path / "mine.jinja").write_text(PLAIN + "\n", encoding="utf-8")
    chat = load(special=MARKS, template="mine.jinja", folder=tmp_path)
    assert (chat.source, chat.decision) == ("mine.jinja", None)
    assert chat.tokenizer.chat_template == PLAIN + "\n"
    assert trained(chat, SHORT) == ["A parser.<|im_end|>"]
    assert load(special=MARKS, own=PLAIN + "\n").sha256 == chat.sha256 != load(special=MARKS, own=PLAIN).sha256


def test_a_template_file_that_is_missing_or_broken_is_told_with_the_fix(load, tmp_path):
    def said(name: str) -> str:
        with pytest.raises(RecipeError) as error:
            load(special=MARKS, template=name, folder=tmp_path)
        return str(error.value)

    assert said("none.jinja") == (
        "error: there is no chat template none.jinja\n"
        f"  task.template   Write model, chatml, or the path of a Jinja file that is there: looked for {tmp_path}/none.jinja."
    )
    assert said("chatlm") == "error: there is no chat template chatlm\n  task.template   Did you mean chatml?"
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    assert said("latin.jinja").startswith("error: the chat template latin.jinja cannot be read\n")
    assert said("latin.jinja").endswith(". Give a text file in UTF-8.")
    (tmp_path / "bare.jinja").write_text(NO_STOP, encoding="utf-8")
    assert said("bare.jinja") == (
        "error: the chat template bare.jinja cannot be trained with\n"
        "  task.template   it ends an answer with no special token, so the model would never learn to stop. "
        "Write {{ eos_token }} after an answer. Or write task.template: chatml."
    )
    (tmp_path / "open.jinja").write_text("{% for m in messages %}\n{{ m.content }", encoding="utf-8")
    assert "  task.template   line 2: unexpected '}'. Correct it. Or write task.template: chatml." in said("open.jinja")


def test_a_tokenizer_that_does_not_tell_places_is_refused(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(MachineError) as error:
        load_chat(
            BaseFiles("byt5", "folder", tmp_path, None), "chatml", tmp_path, max_length=None, trust_remote_code=False
        )
    assert str(error.value) == (
        "error: the tokenizer of byt5 has no tokenizer.json\n"
        "  base   Convert it to tokenizer.json, or name another base: the place of each token in the text must be known."
    )


@given(room=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_a_row_too_long_loses_the_beginning_of_its_first_user_turn_and_nothing_else(chats, room):
    for name in ("chatml", "llama2"):
        chat = chats[name]
        question = "one two three 🎉🎉 four, five; six seven eight nine ten eleven"
        conversation = says(("system", "Be brief."), ("user", question), ("assistant", "Four."))
        whole = chat.encode(conversation, "answers")
        least = len(chat.encode(says(("system", "Be brief."), ("user", "n"), ("assistant", "Four.")), "answers").ids)
        row = fit(chat, conversation, least + room, "truncate_prompt", "answers")
        for policy in ("drop", "error"):
            other = fit(chat, conversation, least + room, policy, "answers")
            assert other == (whole if len(whole.ids) <= least + room else TooLong(len(whole.ids)))
        assert not isinstance(row, TooLong)
        assert len(row.ids) <= least + room
        assert (row.cut == 0) == (len(whole.ids) <= least + room)
        assert row.cut >= len(whole.ids) - (least + room)
        text, full = decode(chat.tokenizer, row.ids), decode(chat.tokenizer, whole.ids)
        before, _, after = full.partition(question)
        assert text.startswith(before)
        assert text.endswith(after)
        assert question.endswith(text.removeprefix(before).removesuffix(after).strip())
        assert [text for text, yes in pieces(chat, row) if yes] == [text for text, yes in pieces(chat, whole) if yes]
        assert row.ids[row.answer :] == whole.ids[whole.answer :]


def test_what_does_not_fit_even_so_is_too_long(chats):
    chat = chats["chatml"]
    row = chat.encode(SHORT, "answers")
    assert fit(chat, SHORT, len(row.ids), "error", "answers") == row
    assert fit(chat, SHORT, len(row.ids) - row.answer, "truncate_prompt", "answers") == TooLong(len(row.ids))
    alone = says(("system", "Be brief and clear."), ("assistant", "Yes."))
    length = len(chat.encode(alone, "answers").ids)
    assert fit(chat, alone, length - 1, "truncate_prompt", "answers") == TooLong(length)


def test_the_certificate_counts_what_the_labels_say(chats):
    chat = chats["chatml"]
    silent = says(("user", "Who?"), Turn("assistant", "Nobody.", trained=False))
    spaced = says(("user", "What is it?"), ("assistant", "        a parser"))
    rows = [SHORT, LONG, replace(silent, where="a.jsonl line 7"), spaced]
    encoded = [chat.encode(row, "answers") for row in rows]
    made = certificate(chat, encoded, rows, samples=2)
    counts = [sum(label != IGNORED for label in row.labels) for row in encoded]
    assert counts[2] == 0
    assert (made.rows, made.untrained, made.untrained_at) == (4, 1, ("a.jsonl line 7",))
    assert (made.stopped, made.two_bos, made.recut) == (3, 0, 1)
    assert (made.min, made.max, made.trained_tokens) == (0, max(counts), sum(counts))
    assert made.median == sorted(counts)[1] / 2 + sorted(counts)[2] / 2
    assert made.mean == sum(counts) / 4
    assert made.share == pytest.approx(sum(counts) / sum(len(row.ids) for row in encoded), abs=1e-6)
    assert (made.source, made.sha256) == ("chatml", chat.sha256)
    assert made.tokens["stop"] == [
        {"token": "<|im_end|>", "id": chat.stop_ids[0]},
        {"token": "<|bos|>", "id": chat.stop_ids[1]},
    ]
    assert made.tokens["pad"] == [{"token": "<|pad|>", "id": chat.tokenizer.pad_token_id}]
    assert (made.lengths.rows, made.lengths.longest) == (4, max(len(row.ids) for row in encoded))
    assert made.samples == tuple(tuple(pieces(chat, row)) for row in encoded[:2])
    assert json.loads(json.dumps(asdict(made)))["samples"][0][1] == ["A parser.<|im_end|>", True]


def test_the_certificate_shows_a_row_that_begins_twice_or_does_not_stop(chats):
    chat = chats["llama2"]
    row = chat.encode(SHORT, "answers")
    twice = replace(row, ids=[1, *row.ids], labels=[IGNORED, *row.labels], answer=row.answer + 1, end=row.end + 1)
    endless = replace(row, labels=[IGNORED if label == 2 else label for label in row.labels])
    made = certificate(chat, [row, twice, endless], [SHORT] * 3)
    assert (made.two_bos, made.stopped, made.untrained) == (1, 2, 0)
    everything = chats["chatml"].encode(SHORT, "all")
    assert everything.labels[-1] not in (IGNORED, *chats["chatml"].stop_ids)
    assert certificate(chats["chatml"], [everything], [SHORT]).stopped == 1


def test_a_pad_token_that_is_the_end_token_is_trained_where_it_ends_an_answer(load):
    chat = load("pieces", LLAMA2)
    assert chat.tokenizer.pad_token == chat.tokenizer.eos_token == "</s>"
    row = chat.encode(SHORT, "answers")
    assert row.labels[row.end] == row.ids[row.end] == chat.tokenizer.pad_token_id
    assert [groups for groups, _ in groupby(label != IGNORED for label in row.labels)] == [False, True]


def test_a_special_token_that_swallows_the_line_end_still_stops(load):
    special = ["<|im_start|>", AddedToken("<|im_end|>", rstrip=True, special=True, normalized=False)]
    chat = load(own=PLAIN, special=special)
    assert trained(chat, LONG)[-1] == "None é 🎉.<|im_end|>"
    marked = load(own=MARKED, special=special)
    assert trained(marked, LONG) == trained(chat, LONG)
