"""``ftkit eval`` and ``ftkit compare``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ftkit.console import Console
from ftkit.records import as_json
from ftkit.rundir import find_run


def evaluate_run_again(run: str, source: str | None, *, json: bool) -> None:
    """Measures a run's model on its own test rows or on those of ``source``, and prints the figures."""
    from ftkit.models.hardware import settle_environment, settle_machine

    warnings.simplefilter("ignore")
    found = find_run(run)
    settle_environment()
    from ftkit.measured import evaluate_again
    from ftkit.models.base import quiet_libraries
    from ftkit.report import numbers, summary

    quiet_libraries()
    console = Console()
    report, difference = evaluate_again(found, source, settle_machine(), console)
    if json:
        # The verdict belongs to the run: measuring again judges nothing.
        document = {name: value for name, value in as_json(report).items() if name != "gate"}
        more = {} if difference is None or difference.answers is None else {"answers_changed": difference.answers}
        largest = None if difference is None else difference.largest
        console.json({"run": str(found.folder), **document, "largest_difference": largest, **more})
        return
    console.result(summary.scores(report))
    if difference is None:
        return
    what = "of an answer's loss (nats)" if report.task == "sft" else "of a probability"
    console.result(f"The largest difference {what} to predictions.jsonl is {numbers.small(difference.largest)}.")
    if difference.answers is not None:
        console.result(f"Answers that differ: {difference.answers:,} of {report.n:,}.")


def compare_runs(runs: Sequence[str], *, json: bool) -> None:
    """Prints the figures of several runs side by side, each tested against the first."""
    from ftkit.measured import compare_runs as compared
    from ftkit.report import summary

    found = [find_run(run) for run in runs]
    report = compared(found)
    console = Console()
    if json:
        console.json({name: value for name, value in as_json(report).items() if name != "gate"})
        return
    console.result(summary.scores(report))
