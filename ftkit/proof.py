"""Scores a merged model in a process of its own, with transformers alone: what is on disk, and nothing else.

``python -m ftkit.proof`` imports at once, then waits for one line of JSON on its standard input ({"folder", "rows",
"logits", "trust_remote_code"}), so that it can be started while the run still measures. It prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ftkit.errors import NotProved, Problem


class FreshProcess:
    """A Python process that has imported what it needs and waits for its task."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ftkit.proof"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def logits(self, folder: Path, rows: Path, out: Path, *, trust_remote_code: bool) -> dict[str, Any]:
        """Has the model in ``folder`` score the inputs of ``rows`` (JSONL); the logits [n, K] are saved as ``out``.

        Raises NotProved where the model cannot be loaded or scored.
        """
        task = {"folder": str(folder), "rows": str(rows), "logits": str(out), "trust_remote_code": trust_remote_code}
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


def _main() -> None:
    from ftkit.models.hardware import peak_rss_mb, settle_environment

    settle_environment()
    import numpy as np
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

    from ftkit.models.base import quiet_libraries
    from ftkit.tasks.classify import encode, score

    quiet_libraries()
    task = json.loads(sys.stdin.readline())
    with open(task["rows"], encoding="utf-8") as file:
        texts = [json.loads(line)["input"] for line in file]
    trusted = bool(task["trust_remote_code"])
    tokenizer = AutoTokenizer.from_pretrained(task["folder"], trust_remote_code=trusted)
    # PreTrainedModel is named above so that transformers, which imports lazily, does so before the task is there.
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        task["folder"], dtype="float32", trust_remote_code=trusted
    ).eval()
    rows = encode(tokenizer, texts, tokenizer.model_max_length)
    np.save(task["logits"], score(model, rows, pad_token_id=tokenizer.pad_token_id))
    sys.stdout.write(json.dumps({"peak_rss_mb": peak_rss_mb()}) + "\n")


if __name__ == "__main__":
    _main()
