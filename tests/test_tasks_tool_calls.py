"""Calls of tools in the forms of real templates: found out, read back, and read the same wherever the text is cut."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.models.chatml import chatml
from ftkit.tasks.pieces import Pieces
from ftkit.tasks.tool_calls import Call, CallForm, CallReader, calls_of, content_of
from ftkit.tasks.tool_forms import call_form
from tests.conversations import TEMPLATE
from tests.tool_templates import (
    LLAMA,
    MISTRAL,
    NAME_FIRST,
    NESTED,
    OTHER_STOP,
    PYTHONIC,
    WRAPPED,
    byte_tokenizer,
    written,
)

FORMS = {"chatml": chatml(bos=False), "llama": LLAMA, "mistral": MISTRAL, "nested": NESTED, "wrapped": WRAPPED}
SEVERAL = [name for name in FORMS if name != "llama"]
NAMES = ("look_up", "send")
# What stands around calls of the form, to write broken ones.
BROKEN = {
    "chatml": "<tool_call>\n{}\n</tool_call>",
    "llama": "{}",
    "mistral": "[TOOL_CALLS] [{}]",
    "nested": "[{}]",
    "wrapped": "<calls>\n<call>{}</call>\n</calls>",
}


@pytest.fixture(scope="module")
def with_template():
    tokenizer = byte_tokenizer()

    def make(template: Any) -> Any:
        found = copy.deepcopy(tokenizer)
        found.chat_template = template
        return found

    return make


@pytest.fixture(scope="module")
def known(with_template) -> dict[str, tuple[Any, CallForm]]:
    """Tokenizers with the templates that have a form, and the form."""
    tokenizers = {name: with_template(template) for name, template in FORMS.items()}
    return {name: (found, call_form(found)) for name, found in tokenizers.items()}


def sent_back(calls: list[Call]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]


def in_pieces(form: CallForm, text: str, cuts: list[int]) -> list[str | Call]:
    reader, borders = CallReader(form, NAMES), [0, *sorted(cuts), len(text)]
    parts: list[str | Call] = []
    for start, end in pairwise(borders):
        parts += reader.add(text[start:end])
    return parts + reader.end()


def facts(form: CallForm | None) -> Any:
    return None if form is None else (form.begin, form.between, form.end, form.mark)


def test_the_form_is_the_templates(known):
    assert {name: facts(form) for name, (_, form) in known.items()} == {
        "chatml": ("<tool_call>", "</tool_call>\n<tool_call>", "</tool_call>", "<tool_call>"),
        "llama": ("", None, "", ""),
        "mistral": ("[TOOL_CALLS] [", ",", "]", "[TOOL_CALLS]"),
        "nested": ("[", ",", "]", ""),
        "wrapped": ("<calls>\n<call>", "</call>\n<call>", "</call>\n</calls>", "<calls>"),
    }
    keys = {name: sorted(form.shape) for name, (_, form) in known.items()}
    assert keys.pop("llama") == ["name", "parameters"]
    assert keys.pop("nested") == ["function", "type"]
    assert set(map(tuple, keys.values())) == {("arguments", "name")}


@pytest.mark.parametrize("template", [TEMPLATE, PYTHONIC, NAME_FIRST, OTHER_STOP, "{{ raise_exception('no') }}"])
def test_a_template_without_calls_or_with_others_than_json_has_no_form(with_template, template):
    assert call_form(with_template(template)) is None


def test_the_template_for_tools_is_the_one_that_counts(with_template):
    assert facts(call_form(with_template({"default": PYTHONIC, "tool_use": MISTRAL}))) == (
        "[TOOL_CALLS] [",
        ",",
        "]",
        "[TOOL_CALLS]",
    )


def test_a_call_that_ends_the_turn_lets_none_follow(with_template):
    """Two calls in two turns are two answers."""
    each = MISTRAL.replace("', ' if not loop.last", "']</s>assistant: [TOOL_CALLS] [' if not loop.last")
    form = call_form(with_template(each))
    assert facts(form) == ("[TOOL_CALLS] [", None, "]", "[TOOL_CALLS]")


TEXTS = st.text(
    st.sampled_from('ab "\\\n\t{}[],:é日😀</>\u2028') | st.characters(exclude_categories=["Cs"]), max_size=12
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
    | st.sampled_from(["</tool_call>", "[TOOL_CALLS] [", "</call>", '{"name": "send"}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
CALLS = st.lists(
    st.builds(
        lambda name, arguments: {"name": name, "arguments": arguments},
        st.sampled_from(NAMES),
        st.dictionaries(TEXTS, VALUES, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(calls=CALLS, data=st.data())
def test_what_is_read_is_written_again_as_it_was(known, name, calls, data):
    tokenizer, form = known[name]
    calls = calls if form.between is not None else calls[:1]
    text = written(tokenizer, calls)
    content, found = form.read(text, NAMES)
    assert content == ""
    assert sent_back(found) == calls
    assert written(tokenizer, sent_back(found)) == text
    parts = in_pieces(form, text, data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert parts == found


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("words", ["}}}}]]]]", "{{[[", '\\"}}}}', '"}}}}', "\\", "</tool_call></call></calls>]</s>"])
def test_what_closes_within_a_string_closes_nothing(known, name, words):
    """However long the string is not whole yet."""
    tokenizer, form = known[name]
    calls = [{"name": "send", "arguments": {words: [words, {"deep": words}]}}]
    text = written(tokenizer, calls)
    assert sent_back(in_pieces(form, text, [*range(len(text))])) == calls


@pytest.mark.parametrize("name", ["chatml", "wrapped"])
def test_words_before_a_call_are_content(known, name):
    tokenizer, form = known[name]
    calls = [{"name": "send", "arguments": {"to": "all"}}]
    text = written(tokenizer, calls, "I send\n it.")
    content, found = form.read(text, NAMES)
    assert (content, sent_back(found)) == ("I send\n it.", calls)
    assert written(tokenizer, sent_back(found), content) == text
    # What stands behind it as well, and white space between words stays.
    assert content_of(in_pieces(form, f"{text}\n\nDone. ", [])) == (
        "I send\n it." + ("\n" * (name == "chatml")) + "\n\nDone."
    )


GOOD = {"name": "send", "arguments": {"to": "all"}}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "wrong",
    [
        "not JSON",
        "{}",
        json.dumps(GOOD)[:-1],
        json.dumps(GOOD).replace('"all"', "NaN"),
        json.dumps(GOOD).replace('"all"', "1e999"),
        json.dumps(GOOD).replace('"all"', '"\\ud83d"'),
        json.dumps(GOOD).replace('"all"', '"a\nb"'),
        json.dumps(GOOD).replace('"to": "all"', '"to": 1, "to": 2'),
        json.dumps(GOOD).replace('"all"', "[" * 3000 + "]" * 3000),
        json.dumps(GOOD).replace("send", "unknown"),
        json.dumps(GOOD).replace('"send"', "7"),
        json.dumps(GOOD).replace('{"to": "all"}', '["all"]'),
        json.dumps(GOOD).replace('{"to": "all"}', '"{}"'),
        json.dumps({**GOOD, "why": "for fun"}),
        json.dumps({"name": "send"}),
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text_as_it_was_written(known, name, wrong):
    tokenizer, form = known[name]
    right = written(tokenizer, [GOOD])
    for text in (
        BROKEN[name].replace("{}", wrong, 1),
        right.replace(right[right.index("{") : right.rindex("}") + 1], wrong),
    ):
        assert form.read(text, NAMES) == (text, [])
        assert content_of(in_pieces(form, text, [*range(0, len(text), 7 if len(text) < 999 else 700)])) == text


@pytest.mark.parametrize("name", FORMS)
def test_a_call_that_was_cut_off_stays_text(known, name):
    tokenizer, form = known[name]
    text = written(tokenizer, [GOOD])
    for end in range(1, len(text)):
        assert form.read(text[:end], NAMES) == (text[:end].rstrip(), [])
    assert form.read(text, NAMES)[1]


@pytest.mark.parametrize("name", SEVERAL)
def test_a_broken_call_costs_others_only_where_they_share_the_marks(known, name):
    tokenizer, form = known[name]
    text = written(tokenizer, [GOOD, {"name": "unknown", "arguments": {}}])
    content, found = form.read(text, NAMES)
    if name == "chatml":
        assert sent_back(found) == [GOOD]
        assert content == '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'
    else:
        assert (content, found) == (text, [])


def test_bare_calls_begin_the_answer_or_are_none(known):
    _, form = known["llama"]
    call = '{"name": "send", "parameters": {}}'
    assert form.read(f" \n{call}", NAMES) == ("", [Call("send", "{}")])
    assert form.read(f"Such as {call}", NAMES) == (f"Such as {call}", [])
    # The template writes one: more of them could not be sent back.
    assert form.read(f"{call}{call}", NAMES) == (call, [Call("send", "{}")])


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<calls>", "<call>", "</call>", "</calls>", "<", "<tool", "[", "]",
     '{"name": "send", "arguments": {"a": "}}}"}}', '{"name": "send", "parameters": {}}', '{"name": "un', "{", "}", '"',
     "\\", " ", "\n", "a", ",", '{"type": "function", "function": {"name": "look_up", "arguments": {}}}'],
)  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=150, deadline=None)
@given(words=st.lists(PARTS, max_size=12), data=st.data())
def test_the_parts_do_not_depend_on_the_pieces_and_nothing_is_lost(known, name, words, data):
    form = known[name][1]
    text = "".join(words)
    whole = form.read(text, NAMES)
    for cuts in ([*range(len(text))], data.draw(st.lists(st.integers(0, len(text)), max_size=5))):
        parts = in_pieces(form, text, cuts)
        assert (content_of(parts), calls_of(parts)) == whole
    content, calls = whole
    if not calls:
        assert content == text.strip()
    rest = iter(text)
    assert all(char in rest for char in content)  # in order


@pytest.mark.parametrize("name", ["chatml", "mistral", "wrapped"])
def test_text_is_held_back_only_where_a_call_may_have_begun(known, name):
    _, form = known[name]
    reader, mark = CallReader(form, NAMES), form.mark
    assert reader.add("a word") == ["a word"]
    assert reader.add(" more " + mark[:3]) == [" more"]
    assert reader.add("x") == [f" {mark[:3]}x"]
    assert reader.add(mark + " no") == [mark + " no"]
    assert reader.add(written(known[name][0], [GOOD])[:-1]) == []
    assert reader.add(written(known[name][0], [GOOD])[-1]) == [Call("send", '{"to": "all"}')]


def test_marks_that_are_special_tokens_survive_decoding(known):
    tokenizer, form = known["mistral"]
    (mark,) = form.special
    assert tokenizer.convert_ids_to_tokens(mark) == "[TOOL_CALLS]"
    assert known["chatml"][1].special == frozenset()
    text = written(tokenizer, [GOOD])
    ids = tokenizer(f"<pad>é{text}</s>", add_special_tokens=False)["input_ids"]
    said = {}
    for kept in ((), form.special):
        pieces = Pieces(tokenizer, kept=kept)
        said[bool(kept)] = "".join([*map(pieces.add, ids), pieces.end()])
    assert said == {True: f"é{text}", False: "é" + text.removeprefix("[TOOL_CALLS]")}
