"""Chat templates that write calls of tools as those of well-known models do, and a tokenizer for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.records import Turn
from ftkit.tasks.rendering import render

SPECIAL = ["<pad>", "</s>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|eot_id|>"]
START = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}"
ASKED = "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
# One call an answer, bare, and "parameters", as Llama 3.1 has it.
LLAMA = (
    START + "{{ message.role + ': ' }}{% if message.tool_calls %}"
    "{% if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' + call.arguments | tojson + '}' }}"
    "{% else %}{{ message.content | trim }}{% endif %}{{ '<|eot_id|>' }}" + ASKED
)
# A special token, and a list, as Mistral's have it.
MISTRAL = (
    START + "{{ message.role + ': ' }}{% if message.tool_calls %}{{ '[TOOL_CALLS] [' }}"
    "{% for call in message.tool_calls %}{{ call.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}{{ ']' }}"
    "{% else %}{{ message.content }}{% endif %}{{ '</s>' }}" + ASKED
)
# OpenAI's own objects in a bare list, behind an opening that each answer has.
NESTED = (
    START + "{{ message.role + ': ' }}{% if message.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '</s>' }}" + ASKED
)
# Marks around all calls, and marks around each.
WRAPPED = (
    START + "{{ message.role + ': ' + message.content }}{% if message.tool_calls %}{{ '<calls>\n' }}"
    "{% for call in message.tool_calls %}{{ '<call>' + call.function | tojson + '</call>\n' }}{% endfor %}"
    "{{ '</calls>' }}{% endif %}{{ '</s>' }}" + ASKED
)
# As Python calls: no JSON.
PYTHONIC = (
    START + "{{ message.role + ': ' + message.content }}{% for call in message.tool_calls or [] %}"
    "{{ '[' + call.function.name + '(' }}{% for key, value in call.function.arguments.items() %}"
    "{{ key + '=' + value | tojson }}{% endfor %}{{ ')]' }}{% endfor %}{{ '</s>' }}" + ASKED
)
# The name outside the object.
NAME_FIRST = PYTHONIC.replace("'[' + call.function.name + '('", "'[ARGS]' + call.function.name + ' '")
OTHER_STOP = MISTRAL.replace("{{ ']' }}", "{{ ']<|eot_id|>' }}").replace(
    "{{ '</s>' }}", "{{ '</s>' if message.content }}"
)


def byte_tokenizer() -> Any:
    """A byte-level tokenizer without a template; its end token is </s>."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(["which of them? the first"], vocab_size=300, special_tokens=SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(learned.to_str()),
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens=SPECIAL[2:],
    )


def written(tokenizer: Any, calls: Sequence[dict[str, Any]], content: str = "") -> str:
    """An answer as the template writes it: what a model would have to say."""
    before, end = Turn("user", "hello"), {"<|im_end|>\n", "</s>", "<|eot_id|>"}
    prompt = render(tokenizer, [before], (), asked=True)
    text = render(tokenizer, [before, Turn("assistant", content, calls=tuple(calls))], (), asked=False)
    assert text.startswith(prompt)
    (inner,) = [text[len(prompt) :].removesuffix(mark) for mark in end if text.endswith(mark)]
    return inner.removeprefix("<think>\n\n</think>\n\n")
