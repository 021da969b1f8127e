"""A Modelfile for Ollama: the GGUF file, the trained chat template in Ollama's own language, and the stop words.

Ollama's templates (Go's text/template) cannot run a Jinja program, so only a template that is a plain sequence can be
written: something before each turn by its role, and something before the answer. What these are is found by rendering a
few conversations, and proved by rendering others: the plain form and the Jinja template must write the same text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 8192  # tokens of context by default: Ollama reserves memory for all of them
Turns = Sequence[tuple[str, str]]
_MARK = "\ue000{}\ue001"  # private use: no template writes these
_TRIED: tuple[Turns, ...] = (
    (("user", "Who are you?"),),
    (("system", "Be brief."), ("user", "Who are you?")),
    (("user", "One"), ("assistant", "Two"), ("user", "Three")),
    (("system", "Count.\nOn."), ("user", "One\n\n1"), ("assistant", "Two, {{ x }}"), ("user", 'Three "3"')),
    (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
    (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "é 🙂")),
)
_PADDED: Turns = (("user", "  a \n"), ("assistant", " b\n\n"), ("user", "\tc "))


@dataclass(frozen=True, slots=True)
class Plain:
    """A chat template as a sequence of texts.

    ``start``: before everything; ``unasked``: after that, where there is no system turn (a default one). The others
    stand around the words of a turn; ``asked`` before the answer that comes next.
    """

    start: str
    unasked: str
    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    asked: str

    def render(self, turns: Turns) -> str:
        """What it writes for a conversation that ends with the user's turn."""
        text = self.start + (self.unasked if turns[0][0] != "system" else "")
        around = {
            "system": (self.before_system, self.after_system),
            "user": (self.before_user, ""),
            "assistant": (self.before_answer, self.after_answer),
        }
        return text + "".join(around[role][0] + words + around[role][1] for role, words in turns) + self.asked

    def go(self) -> str:
        """The same in Go's text/template. Texts are quoted, so that no white space of them can be lost."""
        content = "{{ .Content }}"
        parts = [
            _quoted(self.start),
            "{{ if not .System }}" + _quoted(self.unasked) + "{{ end }}" if self.unasked else "",
            "{{ range .Messages }}",
            '{{ if eq .Role "system" }}' + _quoted(self.before_system) + content + _quoted(self.after_system),
            '{{ else if eq .Role "user" }}' + _quoted(self.before_user) + content,
            '{{ else if eq .Role "assistant" }}' + _quoted(self.before_answer) + content + _quoted(self.after_answer),
            "{{ end }}{{ end }}",
            _quoted(self.asked),
        ]
        return "".join(parts)


def write_modelfile(model: Path, gguf: Path, out: Path) -> dict[str, Any]:
    """Writes the Modelfile ``out`` for the file ``gguf`` that was made of the model's folder ``model``.

    Returns {"template", "stop", "notes"}: whether the template was translated, the stop words, and what a user should
    know, in sentences. Raises DataError where the tokenizer cannot be loaded.
    """
    from transformers import AutoConfig

    from ftkit.export.gguf.vocabulary import read_tokenizer, read_vocabulary

    config = AutoConfig.from_pretrained(model)
    tokenizer = read_tokenizer(model)
    vocabulary = read_vocabulary(model, config.vocab_size)
    adds_start = bool(vocabulary.metadata["tokenizer.ggml.add_bos_token"])
    plain, notes = translate(tokenizer, adds_start=adds_start)
    lines = [f"FROM ./{os.path.relpath(gguf, out.parent)}"]
    if plain is None:
        lines += [f"# {note}" for note in notes]
    else:
        lines += ["# The trained chat template; " + " ".join(notes)] if notes else ["# The trained chat template."]
        lines += [f'TEMPLATE """{plain.go()}"""']
    stop = list(dict.fromkeys((*vocabulary.stop, *_ends_of_turns(tokenizer, plain))))
    lines += [f"PARAMETER stop {json.dumps(word, ensure_ascii=False)}" for word in stop]
    lines += [f"PARAMETER num_ctx {min(config.max_position_embeddings, _LONGEST)}"]
    write_text(out, "\n".join(lines) + "\n")
    return {"template": plain is not None, "stop": stop, "notes": notes}


def translate(tokenizer: PreTrainedTokenizerBase, *, adds_start: bool) -> tuple[Plain | None, list[str]]:
    """The tokenizer's chat template in the plain form, and notes; None where it has none, or is no plain sequence.

    ``adds_start``: whoever reads the text puts the start token before it, so the form leaves it out.
    """
    if not tokenizer.chat_template:
        return None, ["No TEMPLATE: the model has no chat template. Ollama passes the text on as it is."]
    plain = _derive(tokenizer)
    if plain is None or any(plain.render(turns) != _render(tokenizer, turns) for turns in _TRIED):
        note = "No TEMPLATE: the chat template does more than a plain sequence of turns, which was not translated."
        return None, [note + " Ollama then falls back on what it knows of the template in the file: check its answers."]
    notes = []
    if plain.render(_PADDED) != _render(tokenizer, _PADDED):
        notes.append("the original also removes white space around a turn's words.")
    bos = tokenizer.bos_token
    if adds_start and bos:
        if not plain.start.startswith(str(bos)):
            notes.append(f"Ollama begins every text with {bos}, which the original does not.")
        plain = replace(plain, start=plain.start.removeprefix(str(bos)))
    return plain, notes


def _derive(tokenizer: PreTrainedTokenizerBase) -> Plain | None:
    """The pieces between marked words of a conversation with a system turn, and of one without."""
    with_system = _pieces(tokenizer, ("system", "user", "assistant", "user"))
    without = _pieces(tokenizer, ("user", "assistant", "user"))
    if with_system is None or without is None:
        return None
    before_system, system_user, before_answer, answer_user, asked = with_system
    if without[1:] != with_system[2:]:
        return None
    before_user = _common_start(without[0][::-1], system_user[::-1], answer_user[::-1])[::-1]
    first = without[0].removesuffix(before_user)
    start = _common_start(first, before_system)
    return Plain(
        start,
        first[len(start) :],
        before_system[len(start) :],
        system_user.removesuffix(before_user),
        before_user,
        before_answer,
        answer_user.removesuffix(before_user),
        asked,
    )


def _pieces(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> list[str] | None:
    """What is written before, between and after the words; None where the template changes or refuses them."""
    words = [_MARK.format(number) for number in range(len(roles))]
    text = _render(tokenizer, list(zip(roles, words, strict=True))) or ""
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def _common_start(*texts: str) -> str:
    length = 0
    for letters in zip(*texts, strict=False):
        if len({*letters}) > 1:
            break
        length += 1
    return texts[0][:length]


def _render(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str | None:
    """What the Jinja template writes, with what it puts before an answer; None where it refuses the conversation."""
    from jinja2 import TemplateError

    messages = [{"role": role, "content": words} for role, words in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError, LookupError):  # a template is a program, and fails as one
        return None


def _ends_of_turns(tokenizer: PreTrainedTokenizerBase, plain: Plain | None) -> list[str]:
    """The special token with which the template ends an answer, where the model's settings do not name it."""
    words = tokenizer.all_special_tokens if plain else []
    after = plain.after_answer.strip() if plain else ""
    return [str(word) for word in words if after.startswith(str(word))][:1]


def _quoted(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
