"""Facts of a run as (term, value) pairs, and its limits as sentences: what card and report list beside the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftkit.report import numbers, rungs, tables, wording
from ftkit.report.story import Story

Facts = list[tuple[str, str]]
FEW_ROWS = 300


def base(story: Story) -> Facts:
    found = story.planned("base") or {}
    if story.from_scratch:
        return _present(
            ("Weights", "initialised at random and trained from scratch"),
            ("Parameters", numbers.count(found["parameters"]) if found.get("parameters") else None),
            ("Shape", numbers.plain(found["init"]) if found.get("init") else None),
        )
    return _present(
        ("Base model", found.get("ref")),
        ("Taken from", found.get("source")),
        ("Licence", found.get("licence") or "not stated"),
        ("SHA-256 of the weights", found.get("sha256")),
    )


def data(story: Story) -> Facts:
    found = story.planned("data") or {}
    labels = found.get("labels") or []
    packing: dict[Any, str] = {
        True: f"{story.data_unit}s share a window, and none sees another",
        False: "a window holds text of one document" if story.task == "pretrain" else "a window holds one row",
    }
    return _present(
        (f"{story.data_unit.capitalize()}s", _by_split(found.get("splits"))),
        ("Tokens", _by_split(found.get("tokens"))),
        ("Bytes of text", _by_split(found.get("bytes"))),
        ("Windows", _by_split(found.get("windows"))),
        ("Packing", packing.get(found.get("packing"))),
        ("Labels", f"{len(labels)}" if labels else None),
        ("Licence", found.get("licence") or "not stated"),
        ("SHA-256 of the data", found.get("sha256")),
        *_length_facts(story, found.get("lengths") or {}, found.get("splits") or {}),
    )


def limit_of_lengths(story: Story) -> str:
    """What ``max_length`` of the data is, before the number."""
    if story.task == "pretrain":
        return "A window holds"
    return "A row may have" if story.task == "sft" else "Rows are cut at"


def template(story: Story) -> Facts:
    """How turns become text for a decoder that answers; empty for another model."""
    found = story.planned("data", "template") or {}
    sources = {"model": "the base's own", "chatml": "ChatML"}
    answer = story.planned("data", "max_new_tokens")
    return _present(
        ("Chat template", sources.get(str(found.get("source")), found.get("source"))),
        ("SHA-256 of the template", found.get("sha256")),
        ("An answer ends at", " or ".join(map(str, found.get("stop") or []))),
        ("Tokens added to the base", ", ".join(map(str, found.get("added") or []))),
        ("Longest answer written", f"{numbers.count(answer)} tokens" if answer else None),
    )


def learned(story: Story) -> Facts:
    """Which tokens of the training rows the loss was computed on; empty where it is on all of them anyway."""
    found = story.planned("data", "mask") or {}
    if not found:
        return []
    spread = ", ".join(
        f"{name} {numbers.count(found[key])}"
        for name, key in (("least", "min"), ("median", "median"), ("mean", "mean"), ("most", "max"))
        if found.get(key) is not None
    )
    trained, share = found.get("trained_tokens"), found.get("share")
    return _present(
        ("Training rows checked", numbers.count(found.get("rows"))),
        ("Tokens learned", f"{numbers.count(trained)} ({numbers.percent(share)} of all)" if share else None),
        ("Tokens learned in a row", spread),
        ("Rows with nothing to learn", numbers.count(found.get("untrained"))),
        ("Rows that teach where to stop", numbers.count(found.get("stopped"))),
        ("Rows split anew before the answer", numbers.count(found["recut"]) if found.get("recut") else None),
    )


def cleaning(story: Story) -> list[tuple[str, str, str]]:
    """Each step of the cleaning of a corpus, with how many documents it changed and dropped."""
    return [
        (str(step.get("step", "")), numbers.count(step.get("changed")), numbers.count(step.get("dropped")))
        for step in story.planned("data", "cleaning") or []
    ]


def training(story: Story) -> Facts:
    train = story.train
    if train is None:
        return []
    share = numbers.percent(train.trainable_parameters, train.total_parameters)
    trainable = f"{numbers.count(train.trainable_parameters)} of {numbers.count(train.total_parameters)} ({share})"
    validation, checkpoints = numbers.seconds(train.validation_seconds), numbers.seconds(train.checkpoint_seconds)
    kept = None
    if train.best_step is not None:
        metric = numbers.metric_name(train.best_metric or "loss")
        kept = (
            f"step {numbers.count(train.best_step)} ({metric} {numbers.score(train.best_value)} on the validation "
            f"{story.unit}s)"
        )
    stopped = ", stopped early because the validation figure no longer improved" if train.stopped_early else ""
    steps = f"{numbers.count(train.steps)} in {train.epochs:g} epochs, micro-batches of {train.micro_batch_size}"
    return _present(
        ("Trained parameters", trainable),
        ("Steps", steps + stopped),
        ("Time", f"{numbers.seconds(train.seconds)} (beside it: {validation} validation, {checkpoints} checkpoints)"),
        ("Speed", f"{numbers.count(train.tokens_per_s)} tokens a second ({numbers.count(train.tokens)} tokens)"),
        ("Peak memory", numbers.mebibytes(train.peak_rss_mb)),
        ("Peak GPU memory", numbers.mebibytes(train.peak_gpu_mb) if train.peak_gpu_mb is not None else None),
        ("Mean training loss", numbers.score(train.train_loss)),
        ("Checkpoint kept", kept),
        ("Machine", _machine(story.planned("machine") or {})),
    )


def proof(story: Story) -> Facts:
    merge = story.merge
    if merge is None:
        return []
    tolerance = ", ".join(
        f"{name.replace('_', ' ')} {numbers.small(limit) if isinstance(limit, int | float) else limit}"
        for name, limit in merge.get("tolerance", {}).items()
    )
    return _present(
        ("Proved", "yes" if merge["passed"] else "no"),
        (
            f"{merge.get('unit', 'row').capitalize()}s compared",
            numbers.count(merge["rows"]) if merge.get("rows") else None,
        ),
        ("Largest logit difference", numbers.small(merge["max_abs_logit_diff"])),
        ("Its root mean square", numbers.small(merge["rms_logit_diff"]) if "rms_logit_diff" in merge else None),
        ("Predictions that agree", wording.agreement(merge["argmax_agreement"])),
        ("For comparison", wording.rounding_alone(merge)),
        ("Largest difference of a metric", numbers.small(wording.metric_diff(merge))),
        ("Allowed", tolerance),
        ("Merged into", wording.merged_into(merge)),
        ("Compared with the adapter on the base in 4 bits", wording.against_quantised(merge)),
        ("Method", f"{merge['method']}, written in {merge['dtype']}"),
        ("Computed in", merge.get("computed")),
        ("Time and peak memory", f"{numbers.seconds(merge['seconds'])}, {numbers.mebibytes(merge['peak_rss_mb'])}"),
        ("Read and written", f"{numbers.size(merge['bytes_read'])}, {numbers.size(merge['bytes_written'])}"),
        ("SHA-256 of the base", merge.get("base_sha256")),
        ("SHA-256 of the adapter", merge.get("adapter_sha256")),
    )


def origin(story: Story) -> Facts:
    """When, with what and from which seed the run was made."""
    versions = story.planned("versions") or {}
    return _present(
        ("Command", story.planned("command")),
        ("Planned at", story.planned("created")),
        ("Seed", story.planned("seed")),
        ("ftkit", story.planned("ftkit")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    )


def limits(story: Story) -> list[str]:
    """What a reader should not conclude from this run."""
    out = [
        str(finding["message"]) for finding in story.planned("data", "findings") or [] if finding["level"] == "warning"
    ]
    if story.train is not None and not story.train.loss_moved:
        out.append("The training loss did not move: nothing shows that the training taught the model anything.")
    report = story.eval
    if report is None:
        return [*out, "Nothing was measured, so nothing is known about how good it is."]
    if report.n < FEW_ROWS:
        measured = numbers.rows(report.n, report.unit)
        out.append(f"There are only {measured} to measure on; the intervals are wide for that reason.")
    undecided = wording.undecided_line(report.gate, report.unit)
    if undecided:
        out.append(f"{undecided}.")
    if not report.seeds:
        out.append(f"Trained once. The intervals cover the choice of test {report.unit}s, not the choice of seed.")
    if not report.gate.reasons:
        out.append(wording.NO_GATE)
    if story.merge is not None and not story.merge["passed"]:
        out.append("The merged model was not proved to be the trained one: use the adapter.")
    out += rungs.fallen(report)
    like = "texts like the test texts" if report.unit == "window" else "rows like the test rows"
    out.append(f"The results hold for {like}. Other sources, topics and languages were not measured.")
    if report.task == "sft" and tables.answer_metric(report.models[tables.main_model(report)].metrics) is not None:
        out.append(
            "The scores of written answers measure how much they share with the references, not whether they are true. "
            "A good answer in other words scores low, and a wrong one in the right words scores high."
        )
    if story.kind == "words":
        out.append("The label is chosen among the labels alone. Written freely, an answer may be something else.")
    if report.task == "pretrain" and story.objective == "causal":
        out.append("A low perplexity does not make what the model writes true.")
    return out


def _by_split(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name} {numbers.count(count)}" for name, count in (counts or {}).items())


def _length_facts(story: Story, lengths: Mapping[str, Any], splits: Mapping[str, int]) -> Facts:
    answers = story.task == "sft"
    cut = lengths.get("cut" if answers else "truncated") or {}
    left_out = lengths.get("too_long") or {}
    shares = [
        f"{numbers.count(rows)} of {name} ({numbers.percent(rows, splits.get(name, 0))})" for name, rows in cut.items()
    ]
    return _present(
        (
            f"Longest {story.data_unit}",
            f"{numbers.count(lengths['longest'])} tokens" if lengths.get("longest") else None,
        ),
        (
            limit_of_lengths(story),
            f"{numbers.count(lengths['max_length'])} tokens" if lengths.get("max_length") else None,
        ),
        (
            "Prompts that lost their beginning" if answers else "Rows that were cut",
            "none" if cut and not any(cut.values()) else ", ".join(shares),
        ),
        ("Rows left out as too long", "none" if left_out and not any(left_out.values()) else _by_split(left_out)),
    )


def _machine(machine: Mapping[str, Any]) -> str | None:
    if not machine:
        return None
    parts = [
        machine.get("gpu"),
        machine.get("cpu"),
        f"{machine['threads']} of {machine['cores']} cores"
        if machine.get("threads") and machine.get("cores")
        else None,
        f"{machine['memory_gb']:g} GB memory" if machine.get("memory_gb") else None,
        machine.get("precision"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _present(*pairs: tuple[str, Any]) -> Facts:
    return [(term, str(value)) for term, value in pairs if value not in (None, "")]
