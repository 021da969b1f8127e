"""What must hold between keys that are each valid by themselves. Each function yields what does not, and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftkit.data.findings import counted
from ftkit.data.language import unknown_languages
from ftkit.data.section import Data, Docstrings, Source, parse_share
from ftkit.data.template import Template
from ftkit.evals.section import METRICS_OF, NEITHER_IS_BETTER, WORDS_ONLY, Eval, Gate, TaskName
from ftkit.export.formats import NEEDED, parse
from ftkit.export.source import Needs
from ftkit.models.adapters import Adapter
from ftkit.models.scratch import Scratch
from ftkit.recipe.tree import Key
from ftkit.section import Section
from ftkit.tasks.section import Classify, Merge, Pretrain, Sft, Task, Train, Words

Broken = tuple[Key, str]
"""The key, relative to the section that the rule is about, and the message."""

# The tasks that read a key outside ``task``, where not all do.
READ_BY: Mapping[Key, tuple[TaskName, ...]] = {
    ("data", "columns", "text"): ("classify", "pretrain"),
    ("data", "columns", "label"): ("classify",),
    ("data", "columns", "prompt"): ("sft",),
    ("data", "columns", "completion"): ("sft",),
    ("data", "columns", "messages"): ("sft",),
    ("data", "columns", "tools"): ("sft",),
    ("data", "group"): ("classify", "sft"),
    ("data", "label_separator"): ("classify",),
    ("data", "max_leakage"): ("classify", "sft"),
    ("data", "max_near_leakage"): ("classify", "sft"),
    ("data", "split"): ("pretrain",),
    ("data", "clean"): ("pretrain",),
    ("data", "max_rows"): ("pretrain", "sft"),
    ("data", "max_tokens"): ("pretrain",),
    ("data", "weights"): ("pretrain",),
    ("train", "best_by"): ("classify", "sft"),
    ("eval", "average"): ("classify",),
    ("eval", "threshold"): ("classify",),
    ("eval", "max_new_tokens"): ("sft",),
}
_SINGLE_LABEL_ONLY = ("mcc",)
_NO_AIM = frozenset({*WORDS_ONLY, "ended", "length_ratio", "repetition"})  # a checkpoint is not chosen by these
_SMALLEST = {"mcc": -1.0, "perplexity": 1.0}
_LARGEST: Mapping[str, float | None] = {
    "bleu": 100.0,
    "chrf": 100.0,
    **dict.fromkeys(("log_loss", "perplexity", "bits_per_byte", "length_ratio")),
}
_ENCODERS = ("bert",)  # architectures for the masked objective
_FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")  # a hub id or a folder may hold all three splits


def of_task(task: Task, base: Any) -> Iterator[Broken]:
    if isinstance(task, Pretrain):
        yield from _of_pretrain(task, base)
        return
    if isinstance(base, Scratch):
        yield ("type",), "a model from scratch knows no text yet. Write pretrain, or name a base."
    if isinstance(task, Sft):
        yield from _of_prompt(task.prompt)
        return
    yield from _of_labels(task)
    if task.words is not None:
        yield from _of_words(task, task.words)


def _of_prompt(prompt: str | None) -> Iterator[Broken]:
    if prompt is None:
        return
    try:
        template = Template.parse(prompt)
    except ValueError as error:
        yield ("prompt",), str(error)
        return
    if not template.columns:
        yield ("prompt",), f"got {prompt!r}, which names no column. Write one in braces, such as {{question}}."


def _of_labels(task: Classify) -> Iterator[Broken]:
    labels = task.labels
    if labels is not None:
        for index, label in enumerate(labels):
            if not label.strip():
                yield ("labels", index), "is empty. Write the label as it stands in the data."
        yield from _repeated("labels", labels)
    if isinstance(task.class_weights, dict) and labels is not None:
        for label in task.class_weights:
            if label not in labels:
                yield ("class_weights", label), f"is no label of task.labels. Labels: {', '.join(labels)}."
        without = [label for label in labels if label not in task.class_weights]
        if without:
            yield ("class_weights",), f"no weight for {', '.join(without)}. Give each label one."


def _of_words(task: Classify, words: Words) -> Iterator[Broken]:
    try:
        if Template.parse(words.prompt).columns != ("text",):
            yield ("words", "prompt"), f"got {words.prompt!r}. Write {{text}} once, where the row's text goes."
    except ValueError as error:
        yield ("words", "prompt"), str(error)
    if task.multi_label:
        yield ("multi_label",), "a decoder answers with one word, and a row may have many labels. Remove words."
    for name in ("class_weights", "label_smoothing"):
        if name in task.model_fields_set:
            yield (name,), "is for a head, and task.words has none. Remove it."
    said = words.say or {}
    for label, word in said.items():
        if task.labels is not None and label not in task.labels:
            yield ("words", "say", label), f"is no label of task.labels. Labels: {', '.join(task.labels)}."
        if not word.strip():
            yield ("words", "say", label), f"got {word!r}, and no word would be learned. Write one."
    yield from ((("words", *key), message) for key, message in said_twice(words, task.labels or tuple(said)))


def said_twice(words: Words, labels: Sequence[str]) -> Iterator[Broken]:
    """Words that stand for several labels, below ``task.words``: which of them is meant could not be told."""
    said = words.said(labels)
    for number, (label, word) in enumerate(zip(labels, said, strict=True)):
        first = labels[said.index(word)]
        if said.index(word) < number:
            key = ("say", label) if label in (words.say or {}) else ("say", first)
            yield key, f"got {word!r}, which is the answer for {first} and for {label}. Write two words."


def _of_pretrain(task: Pretrain, base: Any) -> Iterator[Broken]:
    masked = task.objective == "masked"
    if isinstance(base, Scratch) and (base.init in _ENCODERS) != masked:
        other = "masked" if base.init in _ENCODERS else "causal"
        yield ("objective",), f"got {task.objective}, and {base.init} is trained with {other}. Write {other}."
    if masked and task.packing:
        yield ("packing",), "the masked objective looks both ways, so packed texts would see each other. Write false."
    if masked and task.samples and "samples" in task.model_fields_set:
        yield ("samples",), "a masked model does not go on with a text. Remove it, or write 0."
    for name in ("mask_share", "whole_word"):
        if not masked and name in task.model_fields_set:
            yield (name,), "is for the masked objective. Remove it, or write objective: masked."


def of_data(data: Data, task: Task | None, base: Any) -> Iterator[Broken]:
    yield from _of_another_task("data", data, task)
    sources = {"train": _listed(data.train), "valid": _listed(data.valid), "test": _listed(data.test)}
    yield from _misplaced_shares(sources)
    for name, earlier in (("valid", "train"), ("test", "train"), ("test", "valid")):
        for index, source in enumerate(sources[name]):
            if isinstance(source, str) and source.endswith(_FILES) and source in sources[earlier]:
                key = (name,) if isinstance(getattr(data, name), str) else (name, index)
                yield key, f"{source} is also in data.{earlier}. Rows that are measured on must be others: remove one."
    if isinstance(task, Classify):
        for name, values in sources.items():
            if any(isinstance(value, Docstrings) for value in values):
                yield (name,), "docstrings have no labels. Name files, or write task: {type: pretrain}."
    if isinstance(task, Sft):
        for name, values in sources.items():
            if any(isinstance(value, Docstrings) and value.form == "text" for value in values):
                yield (name,), "docstrings of form text hold no answers. Write form: questions or form: summaries."
        yield from _of_mapping(data, task)
    if data.weights is not None and len(data.weights) != len(sources["train"]):
        of = counted(len(sources["train"]), "source")
        message = f"got {len(data.weights)} weights for {of} of train. Write one for each."
        yield ("weights",), message
    if data.max_tokens is not None and isinstance(base, Scratch):
        yield ("max_tokens",), "the tokenizer is trained on what is read, so it cannot count before. Write max_rows."
    for index, code in enumerate(data.clean.languages or ()):
        if code in unknown_languages([code]):
            yield ("clean", "languages", index), f"{code} is no language that can be told. Write an ISO 639-1 code."


def _of_mapping(data: Data, task: Sft) -> Iterator[Broken]:
    """Two ways to say what a row is."""
    columns = data.columns
    for name in ("prompt", "completion"):
        if columns.messages is not None and getattr(columns, name) is not None:
            yield ("columns", name), "a conversation holds prompts and answers. Remove it, or remove messages."
    if task.prompt is not None:
        for name in ("prompt", "messages"):
            if getattr(columns, name) is not None:
                yield ("columns", name), "task.prompt says what the user says. Remove one of the two."


def of_train(section: Train, task: Task | None, data: Data | None) -> Iterator[Broken]:
    """Figures that the task or its rows do not have, and windows so short that nothing in them could be predicted."""
    yield from _of_another_task("train", section, task)
    if section.best_by is not None and isinstance(task, Classify | Sft):
        known = _figures(task)
        if section.best_by not in known:
            yield ("best_by",), f"{section.best_by} is no figure of task {task.type}. Figures here: {', '.join(known)}."
    for name in ("best_by", "patience"):
        if getattr(section, name) is not None and data is not None and parse_share(str(data.valid)) == 0:
            yield (name,), "needs validation rows, and data.valid is 0%. Write a larger share, or remove the key."
    if isinstance(task, Pretrain) and section.max_length is not None:
        least = 3 if task.objective == "masked" else 2
        if section.max_length < least:
            yield (
                ("max_length",),
                f"got {section.max_length}, and a window needs {least} tokens to predict one. Write more.",
            )


def _figures(task: Classify | Sft) -> list[str]:
    """What a checkpoint may be chosen by."""
    unfit = _NO_AIM.union(_SINGLE_LABEL_ONLY if isinstance(task, Classify) and task.multi_label else ())
    measured = [name for name in METRICS_OF[task.type] if name not in unfit]
    return ["loss", *measured] if isinstance(task, Sft) else [*measured]


def of_adapter(adapter: Section | None, base: Any) -> Iterator[Broken]:
    if adapter is None and not isinstance(base, Scratch):
        yield (), 'missing. Write a line such as "adapter: lora".'
    if adapter is not None and isinstance(base, Scratch):
        yield (), "a model from scratch is trained whole. Remove the adapter, or name a base."


def _of_another_task(name: str, section: Section, task: Task | None) -> Iterator[Broken]:
    """Keys that are written, and that only another task reads."""
    for (top, *key), tasks in READ_BY.items():
        if top == name and task is not None and task.type not in tasks and _is_set(section, key):
            yield tuple(key), f"is for task: {{type: {' or '.join(tasks)}}}. Remove it."


def _is_set(section: Any, key: Sequence[Any]) -> bool:
    for step in key:
        if step not in section.model_fields_set:
            return False
        section = getattr(section, step)
    return True


def of_eval(section: Eval, task: Task | None) -> Iterator[Broken]:
    metrics = section.metrics or ()
    yield from _repeated("metrics", metrics)
    yield from _of_another_task("eval", section, task)
    if task is None:
        return
    for index, metric in enumerate(metrics):
        wrong = _unfit(metric, task)
        if wrong:
            yield ("metrics", index), wrong
    if not isinstance(task, Classify):
        return
    for index, metric in enumerate(metrics):
        if task.multi_label and metric in _SINGLE_LABEL_ONLY:
            yield ("metrics", index), f"{metric} needs one label a row, and task.multi_label is true. Remove it."
    if section.threshold == "tune" and not task.multi_label and len(task.labels or ()) > 2:
        yield ("threshold",), "tune needs two labels, or task.multi_label: true. Remove it: the likeliest label wins."


def of_gate(gate: Gate, section: Eval | None, task: Task | None, base: Any) -> Iterator[Broken]:
    for metric, bound in gate.items():
        wrong = None if task is None else _unfit(metric, task)
        if wrong:
            yield (metric,), wrong
        elif section is not None and section.metrics is not None and metric not in section.metrics:
            yield (metric,), f"is not measured. Add {metric} to eval.metrics ({', '.join(section.metrics)})."
        elif isinstance(task, Classify) and task.multi_label and metric in _SINGLE_LABEL_ONLY:
            yield (metric,), f"{metric} needs one label a row, and task.multi_label is true. Remove it."
        if bound.beat is not None and isinstance(base, Scratch):
            yield (metric, "beat"), "a model from scratch has no baseline to beat. Write min or max."
        if bound.beat is not None and metric in NEITHER_IS_BETTER:
            yield (metric, "beat"), f"{metric} is best at 1: neither more nor less beats. Write min and max."
        low = _SMALLEST.get(metric, 0.0)
        high = _LARGEST.get(metric, 1.0)
        if bound.min is not None and high is not None and bound.min > high:
            fix = _fraction(bound.min) if high == 1 else f"Write a number of at most {high:g}."
            yield (metric, "min"), f"got {bound.min:g}, and {metric} is at most {high:g}. {fix}"
        if bound.max is not None and bound.max < low:
            yield (metric, "max"), f"got {bound.max:g}, and {metric} is at least {low:g}. Write a larger number."
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            yield (metric, "max"), f"got {bound.max:g}, below min ({bound.min:g}), so nothing passes. Remove one."


def of_merge(section: Merge, adapter: Adapter | None, data: Data | None) -> Iterator[Broken]:
    """``adapter`` and ``data`` are None where they are wrong themselves."""
    if "into" not in section.model_fields_set or adapter is None:
        return
    if adapter.quantize is None:
        yield ("into",), "is for a base in 4 bits (adapter.quantize). Remove it."
    elif adapter.init == "loftq" and section.into != "dequantised":
        yield ("into",), "a LoftQ adapter holds what 4 bits lose, so it fits them alone. Write dequantised."
    elif section.into == "auto" and data is not None and parse_share(str(data.valid)) == 0:
        yield ("into",), "auto needs validation rows, and data.valid is 0%. Write a larger share, full or dequantised."


def of_export(formats: Sequence[str], task: Task | None, base: Any, merge: Any) -> Iterator[Broken]:
    """``task``, ``base`` and ``merge`` are None where they are wrong themselves."""
    targets = [parse(text) for text in formats]
    names = [target.name for target in targets]
    merged = merge is not False or isinstance(base, Scratch)
    for index, target in enumerate(targets):
        first = names.index(target.name)
        if first < index:
            yield (index,), f"{target.name} stands there twice (also export[{first}]). Remove one."
        elif task is not None and target.format.needs not in _trains(task, base):
            yield (index,), f"{target.format.name} is for {NEEDED[target.format.needs]}. Remove it."
        elif not merged and target.format.needs != "adapter":
            yield (index,), f"{target.format.name} is made of the merged model. Write merge: true, or remove it."


def _trains(task: Task, base: Any) -> set[Needs]:
    """What the model of a run is, of what formats need."""
    if isinstance(task, Classify) and task.words is None:
        return {"model", "head"}
    if isinstance(task, Pretrain) and task.objective == "masked":
        return {"model"}
    return {"model", "decoder"} if isinstance(base, Scratch) else {"model", "decoder", "adapter"}


def _unfit(metric: Any, task: Task) -> str | None:
    """Why the task does not have a metric; None where it has it."""
    if metric not in METRICS_OF[task.type]:
        return f"{metric} is no metric of task {task.type}. Metrics here: {', '.join(METRICS_OF[task.type])}."
    if metric == "bits_per_byte" and isinstance(task, Pretrain) and task.objective == "masked":
        return "bits_per_byte needs every byte predicted, and the masked objective predicts some. Write perplexity."
    if metric in WORDS_ONLY and isinstance(task, Classify) and task.words is None:
        return f"{metric} is measured where a decoder answers with words. Remove it, or write task.words."
    return None


def _fraction(value: float) -> str:
    return f"Write {value / 100:g}." if value <= 100 else "Write a number of at most 1."


def _listed(sources: Source | tuple[Source, ...]) -> tuple[Source, ...]:
    return sources if isinstance(sources, tuple) else (sources,)


def _misplaced_shares(sources: dict[str, tuple[Source, ...]]) -> Iterator[Broken]:
    for name, values in sources.items():
        for index, value in enumerate(values):
            if isinstance(value, str) and parse_share(value) is not None and (name == "train" or len(values) > 1):
                key: Key = (name,) if len(values) == 1 else (name, index)
                where = "valid and test can be a share of train" if name == "train" else "a share stands alone"
                yield key, f"got {value}, and {where}. Write a file, a folder or a hub id."


def _repeated(name: str, values: Sequence[str]) -> Iterator[Broken]:
    for index, value in enumerate(values):
        first = values.index(value)
        if first < index:
            yield (name, index), f"{value} stands there twice (also {name}[{first}]). Remove one."
