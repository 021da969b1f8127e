"""The stages of a classification, as the pipeline calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.classify.evaluate import evaluate
from ftkit.classify.merge import merge
from ftkit.classify.train import train_run
from ftkit.console import Console
from ftkit.files import write_json
from ftkit.models.hardware import Machine
from ftkit.plan.labelled import LabelledPlan
from ftkit.proof import FreshProcess
from ftkit.records import EvalReport
from ftkit.rundir import RunDir


@dataclass(frozen=True, slots=True)
class ClassifyWork:
    """Training, evaluation against the linear probe, and the merge."""

    plan: LabelledPlan

    def prepare(self, machine: Machine, precision: str, console: Console) -> dict[str, Any]:
        """Nothing is shared but the plan itself."""
        return self.plan.document(machine, precision)

    def train(self, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
        """Leaves adapter/ and train.json."""
        console.stage(f"training on {len(self.plan.splits.train):,} rows, seed {seed}")
        train_run(self.plan, folder, seed=seed, machine=machine, console=console)

    def measure(self, folder: RunDir, others: Sequence[int], *, machine: Machine, console: Console) -> EvalReport:
        """Evaluates the adapter and those of the other seeds, and merges where the gate holds."""
        plan = self.plan
        console.stage(f"evaluating on {len(plan.splits.test):,} test rows")
        process = FreshProcess()
        try:
            adapters = {seed: folder.of_seed(seed).adapter for seed in others}
            evaluation = evaluate(plan, folder, adapters, machine=machine, console=console)
            write_json(folder.adapter / "labels.json", plan.labels_document(evaluation.report.thresholds))
            if not (plan.recipe.merge and evaluation.report.gate.passed):
                return evaluation.report
            console.stage("merging, and proving the merged model")
            return merge(plan, folder, evaluation, machine=machine, console=console, process=process)
        finally:
            process.stop()
