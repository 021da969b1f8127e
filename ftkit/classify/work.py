"""The stages of a classification, as the pipeline calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.classify.evaluate import evaluate
from ftkit.classify.merge import merge
from ftkit.classify.prepare import labels_document, reader_of
from ftkit.classify.reader import WordsReader
from ftkit.classify.train import decisions, train_run, words_facts
from ftkit.console import Console
from ftkit.files import write_json
from ftkit.models.hardware import Machine
from ftkit.plan.labelled import LabelledPlan
from ftkit.proof import FreshProcess
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir


class ClassifyWork:
    """Training, evaluation against the linear probe or the base's own words, and the merge."""

    def __init__(self, plan: LabelledPlan) -> None:
        self.plan = plan
        self.reader = reader_of(plan)

    def prepare(self, machine: Machine | None, precision: str | None, console: Console) -> dict[str, Any]:
        """The plan; where a decoder answers with words also its template, and what is learned of the rows.

        Without a machine what a check can tell.
        """
        document = self.plan.document(machine, precision)
        if isinstance(self.reader, WordsReader):
            document["data"] |= words_facts(self.plan, self.reader)
            document["data"]["lengths"]["max_length"] = self.reader.max_length
            for decision in decisions(self.plan, self.reader):
                console.note(f"{decision.key} = {decision.value}  ({decision.why})")
                document["decisions"].append(as_json(decision))
        return document

    def train(self, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
        """Leaves adapter/ and train.json."""
        console.stage(f"training on {len(self.plan.splits.train):,} rows, seed {seed}")
        train_run(self.plan, self.reader, folder, seed=seed, machine=machine, console=console)

    def measure(self, folder: RunDir, others: Sequence[int], *, machine: Machine, console: Console) -> EvalReport:
        """Evaluates the adapter and those of the other seeds, and merges where the gate holds."""
        plan = self.plan
        console.stage(f"evaluating on {len(plan.splits.test):,} test rows")
        process = FreshProcess() if plan.recipe.merge else None
        try:
            adapters = {seed: folder.of_seed(seed).adapter for seed in others}
            evaluation = evaluate(plan, self.reader, folder, adapters, machine=machine, console=console)
            labels = labels_document(plan, self.reader, evaluation.report.thresholds)
            write_json(folder.adapter / "labels.json", labels)
            if process is None or not evaluation.report.gate.passed:
                return evaluation.report
            console.stage("merging, and proving the merged model")
            return merge(plan, self.reader, folder, evaluation, machine=machine, console=console, process=process)
        finally:
            if process is not None:
                process.stop()
