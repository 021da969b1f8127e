"""The folder of a run: its names, its lock, and which stages are done."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftkit.errors import MachineError, NotProved, Problem, RecipeError
from ftkit.files import put_back_below, read_json, sha256_file, write_json, write_text

RUNS = Path("runs")
_LOCK = ".lock"
_OWNER = ".owner"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. A stage is done when its last file stands: train.json, eval.json, merge.json, manifest.json."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def train_log(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def train(self) -> Path:
        return self.folder / "train.json"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def model(self) -> Path:
        """A model that was trained from scratch, whole."""
        return self.folder / "model"

    @property
    def failed_batch(self) -> Path:
        return self.folder / "failed_batch.jsonl"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.jsonl"

    @property
    def eval(self) -> Path:
        return self.folder / "eval.json"

    @property
    def merge(self) -> Path:
        return self.folder / "merge.json"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def of_seed(self, seed: int) -> RunDir:
        """Where the same training with another seed is kept: its log, summary and adapter."""
        return RunDir(self.folder / "seeds" / str(seed))

    @property
    def error(self) -> Path:
        return self.folder / "error.txt"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def is_empty(self) -> bool:
        """Whether nothing stands in the folder, the lock of a run that is beginning aside."""
        if not self.folder.is_dir():
            return not self.folder.exists()
        return {path.name for path in self.folder.iterdir()} <= {_LOCK, _OWNER}

    def start(self, recipe_text: str) -> None:
        """Makes the folder with the recipe in it, and points ``latest`` beside it to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, recipe_text)
        link = self.folder.parent / "latest"
        if self.folder.parent.parent.name == RUNS.name and (link.is_symlink() or not link.exists()):
            fresh = link.with_name(f".latest.{os.getpid()}")
            try:
                fresh.symlink_to(self.folder.name)
                os.replace(fresh, link)
            except OSError:
                # Windows without the right to make links: ``latest`` is a convenience, runs are found by their names.
                fresh.unlink(missing_ok=True)

    def write_manifest(self) -> None:
        """The hash and size of every file of the run; written last."""
        write_json(self.manifest, self._hashed(self.folder.rglob("*")))

    def note_in_manifest(self, *parts: Path) -> None:
        """Notes what has become of some files and folders of a finished run; all others stay as they were noted."""
        parts = tuple(part for part in parts if part.resolve().is_relative_to(self.folder.resolve()))
        names = [part.relative_to(self.folder).as_posix() for part in parts]
        kept = {
            name: entry
            for name, entry in self._noted().items()
            if not any(name == part or name.startswith(f"{part}/") for part in names)
        }
        found = self._hashed(path for part in parts for path in (part, *part.rglob("*")))
        write_json(self.manifest, dict(sorted({**kept, **found}.items())))

    def unchanged(self, part: Path) -> list[Path]:
        """The files of a folder, each as it was when the run ended.

        Raises RecipeError for a run that has not ended, NotProved for a file that has changed since or is gone.
        """
        if not self.manifest.exists():
            fix = f"Go on with it first: ftkit run {self.recipe} --out {self.folder} --resume"
            raise RecipeError(f"{self.folder} was not finished", [Problem("", "RUN", fix)])
        start = f"{part.relative_to(self.folder).as_posix()}/"
        noted = {name: entry for name, entry in self._noted().items() if name.startswith(start)}
        for name, entry in noted.items():
            path = self.folder / name
            if not path.is_file() or sha256_file(path) != entry["sha256"]:
                fix = "It is not the file that was measured. Run the recipe again, or merge again: "
                problem = Problem("", name, f"{fix}ftkit merge {self.folder}")
                raise NotProved(f"{path} has changed since the run ended", [problem])
        return [self.folder / name for name in noted]

    def _noted(self) -> dict[str, dict[str, object]]:
        noted: dict[str, dict[str, object]] = read_json(self.manifest)
        return noted

    def _hashed(self, paths: Iterable[Path]) -> dict[str, dict[str, object]]:
        files = (
            path
            for path in sorted(paths)
            if path.is_file() and path not in (self.manifest, self.folder / _LOCK) and not path.name.startswith(".")
        )
        return {
            path.relative_to(self.folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in files
        }

    def forget_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "Choose another folder with --out."
            raise MachineError(
                f"{self.folder} cannot be made", [Problem("", "--out", f"{error.strerror}. {fix}")]
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time. The lock of an owner that is gone is taken over, as the system releases it.

        Raises RecipeError that names the owner where another process writes here, MachineError for a folder that cannot
        be made.
        """
        from filelock import FileLock, Timeout

        self._make()
        owner = self.folder / _OWNER
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
            raise RecipeError(
                f"{self.folder} is in use",
                [Problem("", "--out", f"{who} writes to it. Wait for it, or choose another folder.")],
            ) from None
        try:
            write_text(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
            put_back_below(self.folder)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def new_run(name: str) -> RunDir:
    """A fresh folder under runs/NAME, named by the time (UTC) and four random letters; nothing is made yet."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return RunDir(RUNS / name / f"{stamp}-{secrets.token_hex(2)}")


def find_run(text: str) -> RunDir:
    """A run by its folder, by a recipe's name (its latest run), or by name/run-id. Raises RecipeError for none.

    A folder of the run whose replacement was interrupted is put back.
    """
    found = _find_run(text)
    put_back_below(found.folder)
    return found


def _find_run(text: str) -> RunDir:
    for folder in (Path(text), RUNS / text, RUNS / text / "latest"):
        if (folder / "recipe.yaml").exists():
            return RunDir(Path(os.path.relpath(folder.resolve())) if not folder.is_absolute() else folder.resolve())
    runs = latest_runs(RUNS / text)
    if runs:
        return runs[-1]
    known = sorted(path.name for path in RUNS.iterdir() if path.is_dir()) if RUNS.is_dir() else []
    have = f"Runs here: {', '.join(known)}." if known else "There is no run here yet: ftkit run RECIPE makes one."
    raise RecipeError(
        f"no run {text}", [Problem("", "RUN", f"Give a run's folder, a recipe's name, or name/run-id. {have}")]
    )


def task_of(run: RunDir) -> str:
    """The task of a run's recipe. Raises RecipeError where the run was not planned to its end."""
    if not run.plan.exists():
        fix = f"Go on with it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} has no plan.json", [Problem("", "RUN", fix)])
    return str(read_json(run.plan)["recipe"]["task"]["type"])


def latest_runs(folder: Path) -> list[RunDir]:
    """The runs in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return [RunDir(path.parent) for path in sorted(folder.glob("*/recipe.yaml")) if not path.parent.is_symlink()]


def read_log(path: Path) -> list[dict[str, object]]:
    """The lines of a JSONL log; a last line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_predictions(run: RunDir) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl. Raises RecipeError where the run was not evaluated."""
    if not run.eval.exists() or not run.predictions.exists():
        fix = f"Go on with it first: ftkit run {run.recipe} --out {run.folder} --resume"
        raise RecipeError(f"{run.folder} was not evaluated", [Problem("", "RUN", fix)])
    with run.predictions.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
