"""Recipes of instruction tuning and of label words: what is accepted, and the exact words for what is not."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from ftkit.evals.section import METRICS_OF, MetricName
from ftkit.recipe.editor import json_schema
from ftkit.recipe.yaml12 import read_text
from ftkit.tasks.section import Words
from tests.test_recipe import RAW, WRONG, accepted, paths, problems, said, write
from tests.test_recipe_pretrain import changed

SFT = """\
name: answers
base: org/model
task: {type: sft}
data: {train: train.jsonl}
adapter: lora
"""
WORDS = """\
name: words
base: org/model
task: {type: classify, words: {}}
data: {train: train.csv}
adapter: lora
"""
SFT_KEYS = "Keys here: max_untrained, packing, prompt, system, template, too_long, train_on, type."
CLASSIFY_KEYS = "Keys here: class_weights, label_smoothing, labels, multi_label, type, words."
SFT_METRICS = ", ".join(METRICS_OF["sft"])
SORTED_METRICS = ", ".join(sorted(METRICS_OF["sft"]))


# What is accepted


def test_the_defaults(tmp_path: Path) -> None:
    task = accepted(tmp_path, SFT).recipe.task
    assert (task.prompt, task.system, task.template, task.train_on) == (None, None, "model", "answers")
    assert (task.too_long, task.max_untrained, task.packing) == ("drop", "0%", False)
    words = accepted(tmp_path, WORDS).recipe.task.words
    assert (words.prompt, words.say, words.template) == ("{text}", None, "model")
    assert accepted(tmp_path, changed(WORDS, "task: {type: classify}")).recipe.task.words is None


@pytest.mark.parametrize(
    "lines",
    [
        ("task: {type: sft, prompt: 'As JSON {{...}}: {dialogue}', system: Be brief., template: chatml}",),
        ("task: {type: sft, train_on: last_answer, too_long: truncate_prompt, max_untrained: 5%, packing: true}",),
        ("data: {train: a.jsonl, group: topic, max_rows: 9, columns: {prompt: q, completion: [a, b], tools: t}}",),
        ("data: {train: a.jsonl, columns: {messages: m, tools: t}}",),
        ("data: {train: [{docstrings: [json], form: summaries}, {docstrings: [csv], form: questions}]}",),
        ("train: {best_by: rouge_l, patience: 2, neftune: 5, checkpointing: never}",),
        ("eval: {metrics: [exact_match, perplexity], max_new_tokens: 20}", "gate: {exact_match: {beat: baseline}}"),
        ("gate: {bleu: {min: 20}, chrf: {min: 40}, length_ratio: {min: 0.8, max: 1.2}, repetition: {max: 0.1}}",),
        ("adapter: {preset: qlora, modules_to_save: [lm_head]}",),
        ("task: {type: classify, labels: [a, b], words: {say: {a: bad}, prompt: 'Is it good? {text}'}}",),
        ("task: {type: classify, words: {}}", "eval: {threshold: tune, metrics: [out_of_label]}"),
        ("task: {type: classify, words: {}}", "gate: {out_of_label: {max: 0.1, beat: baseline}}"),
    ],
)
def test_what_else_is_accepted(tmp_path: Path, lines: tuple[str, ...]) -> None:
    text = changed(SFT, *lines)
    accepted(tmp_path, text)
    jsonschema.validate(read_text(text, "x")[0].plain(), json_schema())


def test_the_words_of_labels() -> None:
    words = Words(say={"b": " good "})
    assert words.said(["a ", "b"]) == ("a", "good")


# What is refused: the task


@pytest.mark.parametrize(
    ("task", "subject", "message"),
    [
        (
            "type: sft, prompt: Summarise",
            "prompt",
            "got 'Summarise', which names no column. Write one in braces, such as {question}.",
        ),
        (
            "type: sft, prompt: '{{a}}'",
            "prompt",
            "got '{{a}}', which names no column. Write one in braces, such as {question}.",
        ),
        (
            "type: sft, prompt: 'Sum {a'",
            "prompt",
            "character 5 is a { without its }. Add it, or write {{ for a brace.",
        ),
        (
            "type: sft, prompt: '{a} sum }'",
            "prompt",
            "character 9 is a } without its {. Add it, or write }} for a brace.",
        ),
        ("type: sft, prompt: '{}'", "prompt", "characters 1 and 2 name no column. Write one between the braces."),
        ("type: sft, template: ''", "template", "got ''. Write text that is not empty."),
        ("type: sft, system: ''", "system", "got ''. Write text that is not empty."),
        ("type: sft, train_on: prompts", "train_on", "got 'prompts'. Choices: all, answers, last_answer."),
        ("type: sft, train_on: true", "train_on", "got true. Write all, answers or last_answer."),
        (
            "type: sft, too_long: truncate",
            "too_long",
            "got 'truncate'. Did you mean truncate_prompt? Choices: drop, error, truncate_prompt.",
        ),
        ("type: sft, max_untrained: 5", "max_untrained", "got 5. Write a percentage such as 10%."),
        ("type: sft, max_untrained: 105%", "max_untrained", "got '105%'. Write a percentage such as 10%."),
        ("type: sft, words: {}", "words", f"unknown key. It belongs to {{type: classify}}. {SFT_KEYS}"),
        ("type: sft, samples: 3", "samples", f"unknown key. It belongs to {{type: pretrain}}. {SFT_KEYS}"),
        (
            "type: classify, packing: true",
            "packing",
            f"unknown key. It belongs to {{type: pretrain}} or {{type: sft}}. {CLASSIFY_KEYS}",
        ),
        ("type: chat", "type", "got 'chat'. Did you mean sft? Choices: classify, pretrain, sft."),
        # Label words
        (
            "type: classify, words: {prompt: 'Good?'}",
            "words.prompt",
            "got 'Good?'. Write {text} once, where the row's text goes.",
        ),
        (
            "type: classify, words: {prompt: '{text}{text}'}",
            "words.prompt",
            "got '{text}{text}'. Write {text} once, where the row's text goes.",
        ),
        (
            "type: classify, words: {prompt: '{sentence}'}",
            "words.prompt",
            "got '{sentence}'. Write {text} once, where the row's text goes.",
        ),
        (
            "type: classify, words: {prompt: '{text'}",
            "words.prompt",
            "character 1 is a { without its }. Add it, or write {{ for a brace.",
        ),
        ("type: classify, words: true", "words", "got true. Write keys and values (keys: prompt, say, template)."),
        ("type: classify, words: {bad: no}", "words.bad", "unknown key. Keys here: prompt, say, template."),
        ("type: classify, words: {say: {a: 1}}", "words.say.a", 'got 1. Write "1" in quotes.'),
        ("type: classify, words: {say: {a: ' '}}", "words.say.a", "got ' ', and no word would be learned. Write one."),
        (
            "type: classify, labels: [a, b], words: {say: {c: x}}",
            "words.say.c",
            "is no label of task.labels. Labels: a, b.",
        ),
        (
            "type: classify, labels: [a, b], words: {say: {a: b}}",
            "words.say.a",
            "got 'b', which is the answer for a and for b. Write two words.",
        ),
        (
            "type: classify, words: {say: {a: x, b: ' x'}}",
            "words.say.b",
            "got 'x', which is the answer for a and for b. Write two words.",
        ),
        (
            "type: classify, words: {}, class_weights: balanced",
            "class_weights",
            "is for a head, and task.words has none. Remove it.",
        ),
        (
            "type: classify, words: {}, label_smoothing: 0.1",
            "label_smoothing",
            "is for a head, and task.words has none. Remove it.",
        ),
        (
            "type: classify, words: {}, multi_label: true",
            "multi_label",
            "a decoder answers with one word, and a row may have many labels. Remove words.",
        ),
    ],
)
def test_what_the_task_refuses(tmp_path: Path, task: str, subject: str, message: str) -> None:
    assert said(tmp_path, changed(SFT, f"task: {{{task}}}")) == [("line 3", f"task.{subject}", message)]


# What is refused: other sections

FORM_TEXT = "docstrings of form text hold no answers. Write form: questions or form: summaries."
FIGURES = ", ".join(["loss", *METRICS_OF["sft"][:9]])


@pytest.mark.parametrize(
    ("lines", "subject", "message"),
    [
        (
            ["data: {train: a.jsonl, columns: {messages: m, prompt: p}}"],
            "data.columns.prompt",
            "a conversation holds prompts and answers. Remove it, or remove messages.",
        ),
        (
            ["data: {train: a.jsonl, columns: {messages: m, completion: p}}"],
            "data.columns.completion",
            "a conversation holds prompts and answers. Remove it, or remove messages.",
        ),
        (
            ["task: {type: sft, prompt: '{q}'}", "data: {train: a.jsonl, columns: {messages: m}}"],
            "data.columns.messages",
            "task.prompt says what the user says. Remove one of the two.",
        ),
        (
            ["task: {type: sft, prompt: '{q}'}", "data: {train: a.jsonl, columns: {prompt: m}}"],
            "data.columns.prompt",
            "task.prompt says what the user says. Remove one of the two.",
        ),
        (
            ["data: {train: a.jsonl, columns: {completion: []}}"],
            "data.columns.completion",
            "got []. Write text or a list of texts, at least one.",
        ),
        (["data: {train: {docstrings: [json]}}"], "data.train", FORM_TEXT),
        (["data: {train: a.jsonl, test: [b.jsonl, {docstrings: [json]}]}"], "data.test", FORM_TEXT),
        (
            ["train: {best_by: accuracy}"],
            "train.best_by",
            f"accuracy is no figure of task sft. Figures here: {FIGURES}.",
        ),
        (
            ["train: {best_by: length_ratio}"],
            "train.best_by",
            f"length_ratio is no figure of task sft. Figures here: {FIGURES}.",
        ),
        (
            ["task: {type: classify, multi_label: true}", "train: {best_by: mcc}"],
            "train.best_by",
            "mcc is no figure of task classify. Figures here: accuracy, precision, recall, f1, roc_auc, log_loss, ece.",
        ),
        (
            ["task: {type: classify, words: {}}", "train: {best_by: out_of_label}"],
            "train.best_by",
            "out_of_label is no figure of task classify. "
            "Figures here: accuracy, precision, recall, f1, mcc, roc_auc, log_loss, ece.",
        ),
        (
            ["data: {train: a.jsonl, valid: 0%}", "train: {best_by: chrf}"],
            "train.best_by",
            "needs validation rows, and data.valid is 0%. Write a larger share, or remove the key.",
        ),
        (
            ["data: {train: a.jsonl, valid: 0%}", "train: {patience: 2}"],
            "train.patience",
            "needs validation rows, and data.valid is 0%. Write a larger share, or remove the key.",
        ),
        (["train: {checkpointing: true}"], "train.checkpointing", "got true. Write always, auto or never."),
        (["train: {neftune: 0}"], "train.neftune", "got 0. Write a number greater than 0."),
        (
            ["train: {best_by: rouge}"],
            "train.best_by",
            f"got 'rouge'. Did you mean rouge_l? Choices: {', '.join(sorted(['loss', *METRICS_OF['sft']]))}.",
        ),
        (
            ["eval: {metrics: [rouge-l]}"],
            "eval.metrics[0]",
            f"got 'rouge-l'. Did you mean rouge_l? Choices: {SORTED_METRICS}.",
        ),
        (
            ["eval: {metrics: [perplexity, accuracy]}"],
            "eval.metrics[1]",
            f"accuracy is no metric of task sft. Metrics here: {SFT_METRICS}.",
        ),
        (
            ["eval: {max_tokens: 30}"],
            "eval.max_tokens",
            "unknown key. Did you mean max_new_tokens? Keys here: max_new_tokens, metrics.",
        ),
        (
            ["task: {type: classify}", "eval: {metrics: [out_of_label]}"],
            "eval.metrics[0]",
            "out_of_label is measured where a decoder answers with words. Remove it, or write task.words.",
        ),
        (
            ["task: {type: classify}", "gate: {out_of_label: {max: 0.1}}"],
            "gate.out_of_label",
            "out_of_label is measured where a decoder answers with words. Remove it, or write task.words.",
        ),
        (
            ["gate: {accuracy: {min: 0.8}}"],
            "gate.accuracy",
            f"accuracy is no metric of task sft. Metrics here: {SFT_METRICS}.",
        ),
        (["gate: {rouge_l: {min: 40}}"], "gate.rouge_l.min", "got 40, and rouge_l is at most 1. Write 0.4."),
        (
            ["gate: {bleu: {min: 140}}"],
            "gate.bleu.min",
            "got 140, and bleu is at most 100. Write a number of at most 100.",
        ),
        (
            ["gate: {length_ratio: {beat: baseline}}"],
            "gate.length_ratio.beat",
            "length_ratio is best at 1: neither more nor less beats. Write min and max.",
        ),
        (
            ["eval: {metrics: [perplexity]}", "gate: {exact_match: {min: 0.1}}"],
            "gate.exact_match",
            "is not measured. Add exact_match to eval.metrics (perplexity).",
        ),
        (
            ["adapter: {preset: ia3, modules_to_save: [lm_head]}"],
            "adapter.modules_to_save",
            "unknown key. It belongs to {type: lora}. Keys here: feedforward, preset, targets, type.",
        ),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, list) else None,
)
def test_what_is_refused(tmp_path: Path, lines: list[str], subject: str, message: str) -> None:
    assert [each[1:] for each in said(tmp_path, changed(SFT, *lines))] == [(subject, message)]


def test_a_model_from_scratch_cannot_answer(tmp_path: Path) -> None:
    text = changed(SFT, "base: {init: llama, layers: 2, hidden: 64, vocab: 512}").replace("adapter: lora\n", "")
    message = "a model from scratch knows no text yet. Write pretrain, or name a base."
    assert said(tmp_path, text) == [("line 3", "task.type", message)]


@pytest.mark.parametrize("metric", METRICS_OF["sft"])
def test_a_bound_of_one_is_no_mistake_for_any_metric(tmp_path: Path, metric: MetricName) -> None:
    accepted(tmp_path, SFT + f"gate: {{{metric}: {{min: 1}}}}\n")


# Words of other tools


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("task: {type: sft, chat_template: chatml}", "template"),
        ("task: {type: sft, train_on_inputs: false}", "train_on"),
        ("task: {type: sft, completion_only_loss: true}", "train_on"),
        ("task: {type: sft, assistant_only_loss: true}", "train_on"),
        ("task: {type: sft, system_prompt: x}", "system"),
        ("task: {type: sft, prompt_template: x}", "prompt"),
        ("task: {type: sft, sample_packing: true}", "packing"),
        ("task: {type: sft, cutoff_len: 9}", "train.max_length"),
        ("task: {type: classify, verbalizer: {}}", "words"),
        ("chat_template: chatml", "task.words.template or task.template"),
        ("data: {train: a.jsonl, columns: {instruction: x}}", "prompt"),
        ("data: {train: a.jsonl, columns: {output: x}}", "completion"),
        ("data: {train: a.jsonl, columns: {conversations: x}}", "messages"),
        ("data: {train: a.jsonl, columns: {functions: x}}", "tools"),
        ("data: {train: a.jsonl, field_messages: x}", "data.columns.messages"),
        ("data: {train: a.jsonl, max_samples: 5}", "max_rows"),
        ("adapter: {preset: lora, additional_target: [x]}", "modules_to_save"),
        ("train: {neftune_noise_alpha: 5}", "neftune"),
        ("train: {gradient_checkpointing: true}", "checkpointing"),
        ("train: {activation_checkpointing: true}", "checkpointing"),
        ("train: {metric_for_best_model: loss}", "best_by"),
        ("train: {max_seq_length: 512}", "max_length"),
        ("train: {assistant_only_loss: true}", "task.train_on"),
        ("eval: {eval_max_new_tokens: 9}", "max_new_tokens"),
        ("gate: {rouge: {min: 0.3}}", "rouge_l"),
    ],
)
def test_words_of_other_tools(tmp_path: Path, line: str, meant: str) -> None:
    told = [message for _, _, message in said(tmp_path, changed(SFT, line)) if message.startswith("unknown key")]
    assert len(told) == 1
    assert f"Did you mean {meant}?" in told[0]


# Whatever else may stand there


@pytest.mark.parametrize("key", [path for path in paths() if path.startswith(("task", "data.columns", "train"))])
def test_whatever_is_wrong_is_said_in_words(tmp_path: Path, key: str) -> None:
    """Each key with each wrong kind of value, of both tasks: accepted, or refused with a key and a fix."""
    for text in (SFT, WORDS):
        path = write(tmp_path, text)
        for value in WRONG:
            for problem in problems(path, f"{key}={value}"):
                assert problem.where, (key, value)
                assert problem.subject, (key, value)
                assert problem.message.endswith("."), problem
                assert not any(raw in problem.message for raw in RAW), (value, problem)
