"""Scores a merged model in a process of its own, with transformers alone: what is on disk, and nothing else.

``python -m ftkit.proof`` imports at once, then waits for one line of JSON on its standard input, so that it can be
started while the run still measures. The line names the ``folder`` of the model, ``trust_remote_code``, the file
``out`` for what was scored, and either ``texts`` (a JSONL file with inputs to classify) or ``windows`` (a JSON file
with token ids for a language model). It prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import NotProved, Problem
from ftkit.tasks.language import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FreshProcess:
    """A Python process that has imported what it needs and waits for its task."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ftkit.proof"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def logits(self, folder: Path, rows: Path, out: Path, *, trust_remote_code: bool) -> dict[str, Any]:
        """Has the classifier in ``folder`` score the inputs of ``rows`` (JSONL); ``out`` gets the logits [n, K].

        Raises NotProved where the model cannot be loaded or scored.
        """
        return self._ask({"folder": folder, "texts": rows, "out": out}, trust_remote_code)

    def windows(self, folder: Path, windows: Path, out: Path, *, trust_remote_code: bool) -> dict[str, Any]:
        """Has the language model in ``folder`` score the ``windows`` that ``write_windows`` wrote; see ``read_scores``.

        Raises NotProved where the model cannot be loaded or scored.
        """
        return self._ask({"folder": folder, "windows": windows, "out": out}, trust_remote_code)

    def _ask(self, paths: dict[str, Path], trust_remote_code: bool) -> dict[str, Any]:
        task = {name: str(path) for name, path in paths.items()} | {"trust_remote_code": trust_remote_code}
        printed, errors = self._process.communicate(json.dumps(task) + "\n")
        if self._process.returncode != 0:
            reason = (errors.strip().splitlines() or ["no message"])[-1]
            raise NotProved("the merged model cannot be used from disk", [Problem("", "merge", reason)])
        result: dict[str, Any] = json.loads(printed)
        return result

    def stop(self) -> None:
        """Ends the process where it still waits."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def write_windows(
    path: Path, rows: Sequence[Any], positions: Sequence[tuple[int, int]], *, pad_token_id: int, objective: str
) -> None:
    """Windows for a fresh process: token ids or, masked, pairs of shown ids and labels; and where logits are kept."""
    task = {"rows": rows, "positions": positions, "pad_token_id": pad_token_id, "objective": objective}
    path.write_text(json.dumps(task), encoding="utf-8")


def read_scores(path: Path) -> Scores:
    """What a fresh process found of windows."""
    import numpy as np

    with np.load(path) as found:
        ends = np.cumsum(found["lengths"])[:-1]
        best, margins = np.split(found["best"], ends), np.split(found["margins"], ends)
        return Scores(found["nll"], best, margins, found["logits"])


def _main() -> None:
    from ftkit.models.hardware import peak_rss_mb, settle_environment

    settle_environment()
    # Named here so that transformers, which imports lazily, does so before the task is there.
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    from ftkit.models.base import quiet_libraries

    quiet_libraries()
    task = json.loads(sys.stdin.readline())

    def load(kind: Any) -> PreTrainedModel:
        model: PreTrainedModel = kind.from_pretrained(
            task["folder"], dtype="float32", trust_remote_code=bool(task["trust_remote_code"])
        ).eval()
        return model

    if "texts" in task:
        _classify(task, load(AutoModelForSequenceClassification), AutoTokenizer)
    else:
        windows = json.loads(Path(task["windows"]).read_text(encoding="utf-8"))
        causal = windows["objective"] == "causal"
        _score_windows(task, windows, load(AutoModelForCausalLM if causal else AutoModelForMaskedLM))
    sys.stdout.write(json.dumps({"peak_rss_mb": peak_rss_mb()}) + "\n")


def _classify(task: dict[str, Any], model: PreTrainedModel, tokenizers: Any) -> None:
    import numpy as np

    from ftkit.tasks.classify import encode, score

    with open(task["texts"], encoding="utf-8") as file:
        texts = [json.loads(line)["input"] for line in file]
    tokenizer = tokenizers.from_pretrained(task["folder"], trust_remote_code=bool(task["trust_remote_code"]))
    rows = encode(tokenizer, texts, tokenizer.model_max_length)
    np.save(task["out"], score(model, rows, pad_token_id=tokenizer.pad_token_id))


def _score_windows(task: dict[str, Any], windows: dict[str, Any], model: PreTrainedModel) -> None:
    import numpy as np

    from ftkit.tasks import language, masked

    score = language.score if windows["objective"] == "causal" else masked.score
    found = score(
        model,
        windows["rows"],
        pad_token_id=windows["pad_token_id"],
        positions=[tuple(position) for position in windows["positions"]],
    )
    np.savez(
        task["out"],
        nll=found.nll,
        best=np.concatenate(found.best),
        margins=np.concatenate(found.margins),
        lengths=[len(best) for best in found.best],
        logits=found.logits,
    )


if __name__ == "__main__":
    _main()
