"""The stages of a supervised fine-tuning, as the pipeline calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.console import Console
from ftkit.models.hardware import Machine
from ftkit.plan.chat import ChatPlan
from ftkit.proof import FreshProcess
from ftkit.records import EvalReport
from ftkit.rundir import RunDir
from ftkit.sft.evaluate import evaluate
from ftkit.sft.merge import merge
from ftkit.sft.train import check_packing, train_run


@dataclass(frozen=True, slots=True)
class SftWork:
    """Training on answers, evaluation of answers against the base's, and the merge."""

    plan: ChatPlan

    def prepare(self, machine: Machine, precision: str, console: Console) -> dict[str, Any]:
        """Tries whether the model keeps packed rows apart; all else is in the plan."""
        if self.plan.task.packing:
            check_packing(self.plan, machine)
        return self.plan.document(machine, precision)

    def train(self, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
        """Leaves adapter/ and train.json."""
        console.stage(f"training on {len(self.plan.sides['train']):,} rows, seed {seed}")
        train_run(self.plan, folder, seed=seed, machine=machine, console=console)

    def measure(self, folder: RunDir, others: Sequence[int], *, machine: Machine, console: Console) -> EvalReport:
        """Evaluates the adapter and those of the other seeds, and merges where the gate holds."""
        plan = self.plan
        console.stage(f"evaluating on {len(plan.sides['test']):,} test rows")
        process = FreshProcess() if plan.recipe.merge else None
        try:
            adapters = {seed: folder.of_seed(seed).adapter for seed in others}
            evaluation = evaluate(plan, folder, adapters, machine=machine, console=console)
            if process is None or not evaluation.report.gate.passed:
                return evaluation.report
            console.stage("merging, and proving the merged model")
            return merge(plan, folder, evaluation, machine=machine, console=console, process=process)
        finally:
            if process is not None:
                process.stop()
