"""The ChatML template of ftkit: for tokenizers trained here, and for bases that have no chat template of their own."""

from __future__ import annotations

START, END = "<|im_start|>", "<|im_end|>"
# Tools and calls in the form of Hermes: JSON between tags. The generation markers tell trainers what the assistant
# says: its words, its calls and the token that ends them.
_TURNS = (
    "{% if tools and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n' }}{{ offered() }}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<tool_call>\n{\"name\": ' + call['function']['name'] | tojson + ', \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson + '}\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '<tool_response>\n' + message['content'] + '\n</tool_response><|im_end|>' }}"
    "{% elif message['role'] == 'system' and loop.first and tools %}"
    "{{ message['content'] + '\n\n' }}{{ offered() }}{{ '<|im_end|>' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_OFFERED = (
    "{% macro offered() %}{{ 'These tools can be called:\n<tools>\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    '{{ \'</tools>\nA call is written as:\n<tool_call>\n{"name": NAME, "arguments": {…}}\n</tool_call>\' }}'
    "{% endmacro %}"
)


def chatml(*, bos: bool) -> str:
    """The template's text. ``bos``: the text begins with the tokenizer's start token."""
    return _OFFERED + ("{{ bos_token }}" if bos else "") + _TURNS
