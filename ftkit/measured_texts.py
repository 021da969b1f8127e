"""Language models of runs after they were made: measured on other texts, and compared with each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.data.corpus import read_corpus, read_held_out
from ftkit.data.section import Data
from ftkit.errors import DataError, MachineError, Problem, RecipeError
from ftkit.evals.language import ScoredWindows, compare_language, score_language
from ftkit.evals.section import Eval
from ftkit.files import read_json
from ftkit.generate import load_base, load_generator
from ftkit.models.hardware import Machine
from ftkit.provenance import recipe_of
from ftkit.records import EvalReport, Verdict
from ftkit.rundir import RunDir, read_predictions
from ftkit.tasks import masked
from ftkit.tasks.heldout import HeldOut, held_out, score_held_out
from ftkit.tasks.tokens import tokenise
from ftkit.trained import Trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate_texts(run: RunDir, source: str | None, machine: Machine) -> EvalReport:
    """The run's model, as ``generate`` uses it, and its base on the texts of ``source``.

    Raises RecipeError without a source: what the run measured stands in its eval.json. DataError for texts that cannot
    be read.
    """
    if source is None:
        fix = "Name texts to measure on: --data FILE. The run's own figures: ftkit show."
        raise RecipeError("nothing to measure on", [Problem("", "--data", fix)])
    plan = read_json(run.plan)
    generator = load_generator(run, machine)
    data = Data.model_validate_json(json.dumps(plan["recipe"]["data"]))
    documents = read_held_out(source, data, Path.cwd())
    tokenizer = generator.tokenizer
    task, seed = plan["recipe"]["task"], int(plan["seed"])
    masking = None
    if generator.objective == "masked":
        masking = masked.masking(tokenizer, share=task["mask_share"], whole_word=task["whole_word"])
    tokens = tokenise(documents, tokenizer)
    side = held_out(documents, tokens, tokenizer, generator.objective, generator.max_length, masking=masking, seed=seed)

    def scored(model: Any) -> ScoredWindows:
        nll = score_held_out(model, side, pad_token_id=int(str(tokenizer.pad_token_id))).nll
        return score_language(nll, side.tokens, side.bytes, settings=Eval(), seed=seed)

    name = "merged" if run.merged.is_dir() else "adapter" if run.adapter.is_dir() else "model"
    found = {name: scored(generator.model)}
    base = load_base(run, machine, generator)
    comparison = {}
    if base is not None:
        found = {"baseline": scored(base), **found}
        comparison = {f"{name}_vs_baseline": compare_language(found[name], found["baseline"])}
    return _report(found, comparison, side, source, seed, documents.sha256())


def own_windows(trained: Trained, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """The run's own test windows, cut anew from the sources of its recipe.

    Raises RecipeError where these cannot be read again, or give other texts.
    """
    plan = trained.plan
    task, seed, length = plan["recipe"]["task"], int(plan["seed"]), int(plan["data"]["lengths"]["max_length"])

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    folder = Path(recipe_of(plan["command"])).resolve().parent
    try:
        documents = read_corpus(trained.section("data", Data), folder, seed=seed, count_tokens=count).test
    except (DataError, MachineError) as error:
        raise _nothing(f"The run's own texts cannot be read again: {error.headline}.") from error
    if documents.sha256() != plan["data"]["sha256"]:
        raise _nothing("The run's own texts have changed since.")
    masking = None
    if task["objective"] == "masked":
        masking = masked.masking(tokenizer, share=task["mask_share"], whole_word=task["whole_word"])
    tokens = tokenise(documents, tokenizer)
    return held_out(documents, tokens, tokenizer, task["objective"], length, masking=masking, seed=seed)


def _nothing(why: str) -> RecipeError:
    fix = f"{why} Name texts to measure on: --data FILE. The run's own figures: ftkit show."
    return RecipeError("nothing to measure on", [Problem("", "--data", fix)])


def compare_texts(runs: Sequence[RunDir], names: Sequence[str]) -> EvalReport:
    """Language models of several runs on the same texts, each compared with the first.

    Where their tokenizers cut the texts alike, by windows; else by documents and in bits per byte alone, which does not
    depend on the tokenizer. Raises DataError where they were not measured on the same texts.
    """
    rows = {name: read_predictions(run) for name, run in zip(names, runs, strict=True)}
    reports = {name: read_json(run.eval) for name, run in zip(names, runs, strict=True)}
    first = names[0]
    for name in names:
        if reports[name]["data_sha256"] != reports[first]["data_sha256"]:
            message = f"{name} was measured on other texts than {first}. Measure both on one file: ftkit eval RUN."
            raise DataError("the runs cannot be compared", [Problem("", name, message)])
    alike = all([(row["id"], row["tokens"]) for row in own] == [(row["id"], row["tokens"]) for row in rows[first]]
                for own in rows.values())  # fmt: skip
    seed = int(reports[first]["seed"])
    found = {name: _scored(own, alike=alike, seed=seed) for name, own in rows.items()}
    comparison = {f"{name}_vs_{first}": compare_language(found[name], found[first]) for name in names[1:]}
    return EvalReport(
        task="pretrain",
        split="test",
        n=len(found[first].nll),
        labels=(),
        multi_label=False,
        data_sha256=str(reports[first]["data_sha256"]),
        metrics_average="",
        seed=seed,
        models={name: own.scores for name, own in found.items()},
        comparison=comparison,
        gate=Verdict(passed=True),
        unit="window" if alike else "document",
    )


def _scored(rows: Sequence[dict[str, Any]], *, alike: bool, seed: int) -> ScoredWindows:
    import numpy as np

    masked_rows = any(row["bytes"] is None for row in rows)
    if alike or masked_rows:
        sizes = None if masked_rows else np.array([row["bytes"] for row in rows])
        nll, tokens = (np.array([row[name] for row in rows]) for name in ("nll", "tokens"))
        return score_language(nll, tokens, sizes, settings=Eval(), seed=seed)
    documents: dict[str, list[float]] = {}
    for row in rows:
        own = documents.setdefault(row["id"].rpartition("#")[0], [0.0, 0.0])
        own[0] += row["nll"]
        own[1] += row["bytes"]
    sums = np.array(list(documents.values()))
    sizes = sums[:, 1].astype(np.int64)
    # Bytes stand in for tokens, of which each model has its own number.
    return score_language(sums[:, 0], sizes, sizes, settings=Eval(metrics=("bits_per_byte",)), seed=seed)


def _report(
    found: dict[str, ScoredWindows], comparison: dict[str, Any], side: HeldOut, source: str, seed: int, digest: str
) -> EvalReport:
    return EvalReport(
        task="pretrain",
        split=source,
        n=len(side),
        labels=(),
        multi_label=False,
        data_sha256=digest,
        metrics_average="",
        seed=seed,
        models={name: each.scores for name, each in found.items()},
        comparison=comparison,
        gate=Verdict(passed=True),
        unit="window",
    )
