"""The plan of a pretraining: a corpus on disk, the base or the model to be made, and every open value decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftkit.data.corpus import Corpus, CountTokens, read_corpus
from ftkit.data.documents import Documents
from ftkit.data.findings import Finding, counted
from ftkit.data.lengths import Lengths, max_positions, summary, token_lengths, too_long
from ftkit.errors import Problem, RecipeError
from ftkit.files import sha256_file
from ftkit.models.adapters import Adapter
from ftkit.models.hardware import Machine
from ftkit.models.locate import BaseFiles, locate
from ftkit.models.scratch import Scratch, scratch_parameters
from ftkit.plan import common
from ftkit.recipe.load import LoadedRecipe
from ftkit.recipe.schema import Base, Recipe
from ftkit.records import Decision
from ftkit.tasks.section import Pretrain

_MAX_LENGTH = 1024
_LOOKED_AT = 2_000  # documents whose tokens are counted before training, spread evenly over train
_FEW_DOCUMENTS = 20


@dataclass(frozen=True, slots=True)
class TextPlan:
    """A checked recipe with its corpus on disk. ``files``: the base's; None where the model is made from scratch.

    ``lengths``: tokens of some train documents; None without a tokenizer to count with.
    """

    loaded: LoadedRecipe
    task: Pretrain
    base: Base | Scratch
    adapter: Adapter | None
    files: BaseFiles | None
    corpus: Corpus
    lengths: Lengths | None
    max_length: int
    decisions: tuple[Decision, ...]
    findings: tuple[Finding, ...]

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def width(self) -> int | None:
        """Of the model's hidden states, where it is known."""
        return self.base.hidden if isinstance(self.base, Scratch) else self.files.width if self.files else None

    @property
    def best_by(self) -> str:
        """The figure of the validation windows that the exported checkpoint is chosen by; lower is better."""
        return "loss"

    @property
    def summary(self) -> str:
        sides = ", ".join(f"{len(own):,} {name} ({_size(own.bytes)})" for name, own in self.corpus.named().items())
        return f"documents: {sides}"

    def document(self, machine: Machine | None, precision: str | None) -> dict[str, Any]:
        """plan.json; ``data`` lacks what only tokens can tell, which ``pretrain.prepare`` adds."""
        corpus = self.corpus
        data = {
            "files": common.sources_document(corpus.sources),
            "licence": self.recipe.data.licence,
            "sha256": corpus.test.sha256(),
            "splits": {name: len(own) for name, own in corpus.named().items()},
            "bytes": {name: own.bytes for name, own in corpus.named().items()},
            "lengths": {
                "max_length": self.max_length,
                "longest": self.lengths.longest if self.lengths else None,
                "histogram": _histogram(self.lengths),
                "sampled": min(len(corpus.train), _LOOKED_AT),
            },
            "cleaning": [asdict(step) for step in corpus.steps],
            "findings": [asdict(finding) for finding in self.findings],
        }
        return common.document(
            self.loaded,
            self.decisions,
            base=self._base_document(weights=machine is not None),
            data=data,
            machine=machine,
            precision=precision,
        )

    def _base_document(self, *, weights: bool) -> dict[str, Any]:
        if isinstance(self.base, Scratch):
            parameters = scratch_parameters(self.base)
            return {"ref": None, "source": "from scratch", "init": self.base.model_dump(), "parameters": parameters}
        assert self.files is not None
        return common.base_document(self.base, self.files, weights=weights)


def plan_text(loaded: LoadedRecipe, *, weights: bool) -> TextPlan:
    """Reads the corpus, finds the base and checks both; ``weights=False`` needs the base's small files only.

    Raises DataError for what is wrong with the data, RecipeError for what does not fit it, MachineError for a base that
    is not to be had.
    """
    recipe, folder = loaded.recipe, loaded.path.resolve().parent
    task, base = recipe.task, recipe.base
    assert isinstance(task, Pretrain)
    files = None
    if isinstance(base, Base):
        files = locate(base.model, folder, weights=weights)
        files.config()
        if weights:
            files.weights()
    positions = max_positions(files.folder) if files else base.positions if isinstance(base, Scratch) else None
    _check_length(loaded, positions)
    corpus = read_corpus(
        recipe.data,
        folder,
        seed=recipe.train.seed,
        count_tokens=_counter(files, loaded),
        counted_by=_tokenizer_sha256(files),
    )
    lengths = _lengths(corpus.train, files.folder if files else None)
    length, decision = _max_length(recipe.train.max_length, positions)
    chosen = (*corpus.decisions, *decision)
    unread = _unread(task, scratch=files is None)
    decided = (*chosen, *(each for each in common.defaults(recipe, chosen) if each.key not in unread))
    findings = tuple(_findings(corpus))
    return TextPlan(loaded, task, base, recipe.adapter, files, corpus, lengths, length, decided, findings)


def _unread(task: Pretrain, *, scratch: bool) -> frozenset[str]:
    """Keys without a meaning for the objective and the base."""
    own = {"task.samples"} if task.objective == "masked" else {"task.mask_share", "task.whole_word"}
    return frozenset(own | ({"merge"} if scratch else set()))


def _check_length(loaded: LoadedRecipe, positions: int | None) -> None:
    length = loaded.recipe.train.max_length
    wrong = too_long(length, positions) if length is not None else None
    if wrong:
        problem = Problem(*common.place(loaded, "train", "max_length"), wrong)
        raise RecipeError.in_file(str(loaded.path), [problem])


def _max_length(given: int | None, positions: int | None) -> tuple[int, tuple[Decision, ...]]:
    if given is not None:
        return given, ()
    length = min(positions or _MAX_LENGTH, _MAX_LENGTH)
    why = f"left out; the smaller of {_MAX_LENGTH:,} and the model's positions ({positions or 'no limit'})"
    return length, (Decision("train.max_length", length, why),)


def _counter(files: BaseFiles | None, loaded: LoadedRecipe) -> CountTokens | None:
    """Counts tokens with the base's tokenizer.json, for ``data.max_tokens``."""
    if files is None or loaded.recipe.data.max_tokens is None:
        return None
    folder = files.folder

    def count(texts: Sequence[str]) -> list[int]:
        found = token_lengths(folder, texts)
        if found is None:
            message = f"needs a base with a tokenizer.json to count with, and {files.name} has none. Write max_rows."
            raise RecipeError.in_file(str(loaded.path), [Problem(*common.place(loaded, "data", "max_tokens"), message)])
        return found

    return count


def _tokenizer_sha256(files: BaseFiles | None) -> str | None:
    path = files.folder / "tokenizer.json" if files else None
    return sha256_file(path) if path and path.is_file() else None


def _lengths(train: Documents, base: Path | None) -> Lengths | None:
    if base is None:
        return None
    step = max(1, len(train) // _LOOKED_AT)
    found = token_lengths(base, (train[number] for number in range(0, len(train), step)))
    return summary(found) if found else None


def _findings(corpus: Corpus) -> Iterator[Finding]:
    for step in corpus.steps:
        if step.dropped:
            message = f"{counted(step.dropped, 'document')} left out by data.clean: {step.step}."
            yield Finding("note", step.step.replace(" ", "_"), message, step.rows)
    few = len(corpus.test)
    if few < _FEW_DOCUMENTS:
        message = (
            f"only {counted(few, 'test document')}: windows of one are alike, so the intervals are too narrow. "
            "Name more test documents."
        )
        yield Finding("warning", "few_test_documents", message)


def _histogram(lengths: Lengths | None) -> list[dict[str, int]]:
    return [] if lengths is None else [{"upto": upto, "count": count} for upto, count in lengths.histogram]


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
