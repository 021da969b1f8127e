"""Modelfiles: the chat template in Go's language writes what the Jinja template writes, or is not there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from ftkit.export.ollama import write_modelfile
from tests.conversations import TEMPLATE
from tests.gguf_models import edit_json

CHATS = [
    [("user", "hello")],
    [("system", "Be brief."), ("user", "hello"), ("assistant", "yes?"), ("user", 'what {{ is }} "it"\n?')],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content + "
    "' [/INST]' }}{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN_25 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}" + TEMPLATE
)
TRIMMED = TEMPLATE.replace("message['content']", "message['content'] | trim")
NUMBERED = TEMPLATE.replace("'<|im_start|>' +", "'<|im_start|>' + loop.index | string +")


def go(template: str, turns: list[tuple[str, str]]) -> str:
    """Runs what Modelfiles use of Go's text/template: texts, if, else if, range, and the fields of a message."""
    program = re.split(r"(\{\{.*?\}\})", template)
    texts, loop = [], []
    assert program[0] == ""
    start = program.index("{{ range .Messages }}")
    end = len(program) - 1 - program[::-1].index("{{ end }}")  # the last end closes the range
    has_system = any(role == "system" for role, _ in turns)

    def run(part: list[str], turn: tuple[str, str] | None) -> None:
        on = True
        for code in filter(None, part):
            inner = code[2:-2].strip()
            assert code.startswith("{{"), code
            if inner == "if not .System":
                on = not has_system
            elif match := re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', inner):
                on = turn is not None and turn[0] == match[1]
            elif inner == "end":
                on = True
            elif on:
                assert inner == ".Content" or inner.startswith('"'), inner
                texts.append(turn[1] if inner == ".Content" and turn else json.loads(inner))

    run(program[:start], None)
    for turn in turns:
        run(program[start + 1 : end], turn)
    run(program[end + 1 :], None)
    assert not loop
    return "".join(texts)


@pytest.fixture
def chatting(tmp_path: Path, decoder):
    """A function from a family and a template to a copy of the model that has it."""

    def give(family: str, template: str | None) -> Path:
        folder = Path(shutil.copytree(decoder(family), tmp_path / "model"))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return folder

    return give


def modelfile(folder: Path) -> tuple[dict, str]:
    out = folder.parent / "Modelfile"
    said = write_modelfile(folder, folder.parent / "model.gguf", out)
    return said, out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("family", "template", "bos"),
    [("llama", None, True), ("qwen2", None, False), ("qwen2", QWEN_25, False), ("llama", LLAMA_2, True)],
    ids=["chatml", "qwen", "default system turn", "llama 2"],
)
def test_a_template_of_plain_turns_is_translated(chatting, family, template, bos):
    from transformers import AutoTokenizer

    folder = chatting(family, template)
    said, text = modelfile(folder)
    assert said["template"] is True
    assert said["notes"] == []
    written = re.search(r'^TEMPLATE """(.*?)"""$', text, re.M | re.S)
    assert written is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for turns in CHATS:
        messages = [{"role": role, "content": words} for role, words in turns]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # Ollama puts the start token before the text itself, as the GGUF file says.
        assert (str(tokenizer.bos_token) if bos else "") + go(written[1], turns) == rendered


def test_a_modelfile_in_full(chatting):
    said, text = modelfile(chatting("qwen2", None))
    assert text == (
        "FROM ./model.gguf\n"
        "# The trained chat template.\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}{{ "<|im_start|>system\\n" }}{{ .Content }}'
        '{{ "<|im_end|>\\n" }}{{ else if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}'
        '{{ else if eq .Role "assistant" }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}{{ .Content }}'
        '{{ "<|im_end|>\\n" }}{{ end }}{{ end }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER num_ctx 96\n"
    )
    assert said == {"template": True, "stop": ["<|im_end|>"], "notes": []}


def test_what_the_original_also_does_is_said(chatting):
    said, text = modelfile(chatting("qwen2", TRIMMED))
    assert said["template"] is True
    assert said["notes"] == ["the original also removes white space around a turn's words."]
    assert "# The trained chat template; the original also removes white space around a turn's words.\n" in text


def test_every_stop_token_is_named(chatting):
    folder = chatting("qwen2", None)
    edit_json(folder / "generation_config.json", eos_token_id=[0, 1])
    said, text = modelfile(folder)
    assert said["stop"] == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    assert text.count("PARAMETER stop ") == 3


@pytest.mark.parametrize(
    ("family", "template", "why"),
    [
        ("gpt2", None, "No TEMPLATE: the model has no chat template. Ollama passes the text on as it is."),
        (
            "qwen2",
            NUMBERED,
            "No TEMPLATE: the chat template does more than a plain sequence of turns, which was not translated. "
            "Ollama then falls back on what it knows of the template in the file: check its answers.",
        ),
        (
            "qwen2",
            "{{ raise_exception('no') }}" + TEMPLATE,
            "No TEMPLATE: the chat template does more than a plain sequence of turns, which was not translated. "
            "Ollama then falls back on what it knows of the template in the file: check its answers.",
        ),
    ],
    ids=["none", "numbered", "refuses"],
)
def test_another_template_is_left_out_and_that_is_said(chatting, family, template, why):
    said, text = modelfile(chatting(family, template))
    assert said["template"] is False
    assert said["notes"] == [why]
    assert f"# {why}\n" in text
    assert 'TEMPLATE "' not in text
