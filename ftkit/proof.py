"""Scores a merged model in a process of its own, with transformers alone: what is on disk, and nothing else.

``python -m ftkit.proof`` imports at once, then waits for one line of JSON on its standard input, so that it can be
started while the run still measures. The line names the ``folder`` of the model, ``trust_remote_code``, the
``device`` and the ``dtype`` in which the adapter was scored, the file ``out`` for what was found, and one of ``texts``
(JSONL with inputs to classify), ``words`` (prompts and the answers that stand for labels) and ``rows`` (token ids for a
language model). It prints one line of JSON, or its last line on standard error says why there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import MachineError, NotProved, Problem
from ftkit.models.placement import Placement, device_map, out_of_memory
from ftkit.tasks.generation import Generated, generate
from ftkit.tasks.language import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftkit.evals.statistics import Floats


_NO_MEMORY = 4  # the exit status where memory ran out


@dataclass(frozen=True, slots=True)
class Dialogues:
    """Conversations to be answered. ``messages``: None where a prompt was cut, so that no template gives it.

    ``prompts``: the token ids that the template must give for them. No answers with ``max_new_tokens`` 0.
    """

    messages: Sequence[Sequence[dict[str, Any]] | None]
    tools: Sequence[Sequence[Any]]
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    limit: int | None
    stop_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class HeldOutRows:
    """What a language model is scored on: token ids or, masked, pairs of shown ids and labels.

    ``labels``: which of the ids are scored, as ``language.score`` takes it; ``positions``: where logits are kept.
    """

    rows: Sequence[Any]
    positions: Sequence[tuple[int, int]]
    pad_token_id: int
    objective: Literal["causal", "masked"]
    labels: Sequence[Sequence[int]] | None = None
    dialogues: Dialogues | None = None


@dataclass(frozen=True, slots=True)
class Afresh:
    """What the process found; ``generated`` where dialogues were given, one a row."""

    scores: Scores
    generated: list[Generated]
    peak_rss_mb: int


class FreshProcess:
    """A Python process that has imported what it needs and waits for its task."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ftkit.proof"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def logits(self, folder: Path, rows: Path, *, placement: Placement, trust_remote_code: bool) -> tuple[Floats, int]:
        """The logits [n, K] of the classifier in ``folder`` for the inputs of ``rows`` (JSONL), and MiB of memory.

        Computed where and as ``placement`` says. Raises NotProved where the model cannot be loaded or scored,
        MachineError where memory runs out.
        """
        return self._scores(folder, {"texts": str(rows)}, placement, trust_remote_code)

    def label_scores(
        self,
        folder: Path,
        prompts: Sequence[Sequence[int]],
        words: Sequence[Sequence[int]],
        *,
        pad_token_id: int,
        placement: Placement,
        trust_remote_code: bool,
    ) -> tuple[Floats, int]:
        """The same of a decoder that answers with words: ``words.label_scores`` of these prompts."""
        task = {"prompts": prompts, "words": words, "pad_token_id": pad_token_id}
        return self._scores(folder, {"words": task}, placement, trust_remote_code)

    def language(self, folder: Path, rows: HeldOutRows, *, placement: Placement, trust_remote_code: bool) -> Afresh:
        """Has the language model in ``folder`` score the rows and answer the dialogues.

        Raises as ``logits`` does, and NotProved where its tokenizer gives other token ids than were trained.
        """
        with tempfile.TemporaryDirectory() as name:
            file, out = Path(name, "rows.json"), Path(name, "scores.npz")
            file.write_text(json.dumps(asdict(rows)), encoding="utf-8")
            result = self._ask(folder, {"rows": str(file), "out": str(out)}, placement, trust_remote_code)
            scores = _read_scores(out)
        generated = [Generated(**answer) for answer in result["generated"]]
        return Afresh(scores, generated, int(result["peak_rss_mb"]))

    def _scores(
        self, folder: Path, task: dict[str, Any], placement: Placement, trust_remote_code: bool
    ) -> tuple[Floats, int]:
        import numpy as np

        with tempfile.TemporaryDirectory() as name:
            out = Path(name, "scores.npy")
            result = self._ask(folder, {**task, "out": str(out)}, placement, trust_remote_code)
            return np.load(out), int(result["peak_rss_mb"])

    def _ask(self, folder: Path, task: dict[str, Any], placement: Placement, trust_remote_code: bool) -> dict[str, Any]:
        where = {"folder": str(folder), "device": placement.device, "dtype": placement.dtype}
        task = {**task, **where, "trust_remote_code": trust_remote_code}
        printed, errors = self._process.communicate(json.dumps(task) + "\n")
        if self._process.returncode != 0:
            reason = (errors.strip().splitlines() or ["no message"])[-1]
            if self._process.returncode == _NO_MEMORY:
                fix = f"{reason}. The adapter is kept. Write merge: false, or merge where there is more memory."
                raise MachineError("memory ran out while the merged model was scored", [Problem("", "merge", fix)])
            raise NotProved("the merged model cannot be used from disk", [Problem("", "merge", reason)])
        result: dict[str, Any] = json.loads(printed)
        return result

    def stop(self) -> None:
        """Ends the process where it still waits."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _read_scores(path: Path) -> Scores:
    import numpy as np

    with np.load(path) as found:
        ends = np.cumsum(found["lengths"])[:-1]
        best, margins = np.split(found["best"], ends), np.split(found["margins"], ends)
        return Scores(found["nll"], best, margins, found["logits"])


def _main() -> None:
    from ftkit.models.hardware import flush_subnormals, peak_rss_mb, settle_environment

    settle_environment()
    # Named here so that transformers, which imports lazily, does so before the task is there.
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    from ftkit.models.base import quiet_libraries

    kinds = {
        "labels": AutoModelForSequenceClassification,
        "causal": AutoModelForCausalLM,
        "masked": AutoModelForMaskedLM,
    }
    flush_subnormals()
    quiet_libraries()
    task = json.loads(sys.stdin.readline())
    trusted = bool(task["trust_remote_code"])

    def load(kind: str) -> PreTrainedModel:
        placing = device_map(task["device"], Path(task["folder"]).glob("*.safetensors"))
        settings = {"dtype": task["dtype"], "trust_remote_code": trusted, **placing}
        model: PreTrainedModel = kinds[kind].from_pretrained(task["folder"], **settings).eval()
        return model if placing else model.to(task["device"])

    def tokenizer() -> Any:
        return AutoTokenizer.from_pretrained(task["folder"], trust_remote_code=trusted)

    try:
        generated = _carried_out(task, load, tokenizer)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        sys.stderr.write(f"{next(iter(str(error).strip().splitlines()), 'MemoryError')}\n")
        sys.exit(_NO_MEMORY)
    result = {"peak_rss_mb": peak_rss_mb(), "generated": [asdict(answer) for answer in generated]}
    sys.stdout.write(json.dumps(result) + "\n")


def _carried_out(
    task: dict[str, Any], load: Callable[[str], PreTrainedModel], tokenizer: Callable[[], Any]
) -> list[Generated]:
    """Does what the task says; what was generated."""
    if "texts" in task:
        _classify(task, load("labels"), tokenizer())
        return []
    if "words" in task:
        _score_words(task, load("causal"))
        return []
    rows = json.loads(Path(task["rows"]).read_text(encoding="utf-8"))
    model = load(rows["objective"])
    _score_rows(task, rows, model)
    if not rows["dialogues"]:
        return []
    dialogues = Dialogues(**rows["dialogues"])
    _check_prompts(dialogues, tokenizer())
    _check_stops(dialogues, model)
    return _answers(dialogues, model, rows["pad_token_id"])


def _classify(task: dict[str, Any], model: PreTrainedModel, tokenizer: Any) -> None:
    import numpy as np

    from ftkit.tasks.classify import encode, score

    with open(task["texts"], encoding="utf-8") as file:
        texts = [json.loads(line)["input"] for line in file]
    rows = encode(tokenizer, texts, tokenizer.model_max_length)
    np.save(task["out"], score(model, rows, pad_token_id=tokenizer.pad_token_id))


def _score_words(task: dict[str, Any], model: PreTrainedModel) -> None:
    import numpy as np

    from ftkit.tasks.words import label_scores

    given = task["words"]
    np.save(task["out"], label_scores(model, given["prompts"], given["words"], pad_token_id=given["pad_token_id"]))


def _score_rows(task: dict[str, Any], rows: dict[str, Any], model: PreTrainedModel) -> None:
    import numpy as np

    from ftkit.tasks import language, masked

    positions = [tuple(position) for position in rows["positions"]]
    settings = {"pad_token_id": rows["pad_token_id"], "positions": positions}
    if rows["objective"] == "causal":
        found = language.score(model, rows["rows"], labels=rows["labels"], **settings)
    else:
        found = masked.score(model, rows["rows"], **settings)
    np.savez(
        task["out"],
        nll=found.nll,
        best=np.concatenate(found.best),
        margins=np.concatenate(found.margins),
        lengths=[len(best) for best in found.best],
        logits=found.logits,
    )


def _check_prompts(dialogues: Dialogues, tokenizer: Any) -> None:
    """The template on disk, used as anyone would, must give the token ids that were trained."""
    for number, (messages, tools, prompt) in enumerate(
        zip(dialogues.messages, dialogues.tools, dialogues.prompts, strict=True), 1
    ):
        if messages is None:
            continue
        given = tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        if list(given["input_ids"]) != list(prompt):
            sys.exit(f"Its chat template gives other token ids for test row {number} than were trained. Report this.")


def _check_stops(dialogues: Dialogues, model: PreTrainedModel) -> None:
    """Whoever generates by the settings on disk must stop where an answer ends."""
    named = model.generation_config.eos_token_id
    stops = {*(named if isinstance(named, list) else [named])}
    if missing := {*dialogues.stop_ids} - stops:
        sys.exit(f"Its generation_config.json lacks the end token {min(missing)} of its chat template. Report this.")


def _answers(dialogues: Dialogues, model: PreTrainedModel, pad_token_id: int) -> list[Generated]:
    if not dialogues.max_new_tokens:
        return []
    return generate(
        model,
        dialogues.prompts,
        max_new_tokens=dialogues.max_new_tokens,
        limit=dialogues.limit,
        stop_ids=dialogues.stop_ids,
        pad_token_id=pad_token_id,
    )


if __name__ == "__main__":
    _main()
