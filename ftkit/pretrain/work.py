"""The stages of a pretraining, as the pipeline calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.console import Console
from ftkit.models.hardware import Machine
from ftkit.plan.text import TextPlan
from ftkit.pretrain.evaluate import evaluate
from ftkit.pretrain.merge import merge
from ftkit.pretrain.prepare import Prepared, facts, prepare
from ftkit.pretrain.train import train_run
from ftkit.proof import FreshProcess
from ftkit.records import EvalReport, as_json
from ftkit.rundir import RunDir


class PretrainWork:
    """Tokens and windows, training, evaluation against the base, and the merge."""

    def __init__(self, plan: TextPlan) -> None:
        self.plan = plan
        self._prepared: Prepared | None = None

    def prepare(self, machine: Machine, precision: str, console: Console) -> dict[str, Any]:
        """Tokenises the corpus and cuts its windows, which training and evaluation share."""
        self._prepared = prepared = prepare(self.plan, machine, console)
        for decision in prepared.decisions:
            console.note(f"{decision.key} = {decision.value}  ({decision.why})")
        document = self.plan.document(machine, precision)
        document["decisions"] += [as_json(decision) for decision in prepared.decisions]
        document["data"] |= facts(prepared)
        return document

    @property
    def prepared(self) -> Prepared:
        assert self._prepared is not None, "prepare comes first"
        return self._prepared

    def train(self, folder: RunDir, *, seed: int, machine: Machine, console: Console) -> None:
        """Leaves adapter/ or model/, and train.json."""
        console.stage(f"training on {len(self.prepared.windows):,} windows, seed {seed}")
        train_run(self.plan, self.prepared, folder, seed=seed, machine=machine, console=console)

    def measure(self, folder: RunDir, others: Sequence[int], *, machine: Machine, console: Console) -> EvalReport:
        """Evaluates what was trained, and merges an adapter where the gate holds."""
        plan, prepared = self.plan, self.prepared
        console.stage(f"evaluating on {len(prepared.test):,} test windows")
        merging = plan.recipe.merge and plan.adapter is not None
        process = FreshProcess() if merging else None
        try:
            runs = {seed: folder.of_seed(seed) for seed in others}
            trained = {seed: run.adapter if plan.adapter else run.model for seed, run in runs.items()}
            evaluation = evaluate(plan, prepared, folder, trained, machine=machine, console=console)
            if process is None or not evaluation.report.gate.passed:
                return evaluation.report
            assert plan.adapter is not None
            assert plan.files is not None
            console.stage("merging, and proving the merged model")
            return merge(
                plan,
                prepared,
                folder,
                evaluation,
                adapter=plan.adapter,
                files=plan.files,
                machine=machine,
                console=console,
                process=process,
            )
        finally:
            if process is not None:
                process.stop()
