"""ftkit against the plain script on the same rows, in turn, and what ftkit takes beside training and scoring.

    python benchmarks/classify.py                                       # the shipped sentiment data
    python benchmarks/classify.py --train a.tsv --test b.tsv --seeds 42 43 44

CSV, or TSV without quoting; columns text|sentence and label. Prints each run and the ratios, to be quoted with the
machine and what else it was doing; absolute times mean little.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "recipes" / "data" / "sentiment"
BASE = "sentence-transformers/all-MiniLM-L6-v2"
RECIPE = """\
name: benchmark
base: {base}
task: {{type: classify}}
data: {{train: train.csv, test: test.csv, valid: 1%, max_leakage: 99%}}
adapter: {{type: lora, r: 16, alpha: 32}}
train: {{epochs: {epochs}, batch_size: 32, learning_rate: 5e-4, seed: {seed}}}
"""
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--train", type=Path, nargs="+", default=[DATA / "written.csv"])
    options.add_argument("--test", type=Path, default=DATA / "test.csv")
    options.add_argument("--epochs", type=float, default=1)
    options.add_argument("--seeds", type=int, nargs="+", default=[42])
    given = options.parse_args()
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores{busy}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row for path in given.train for row in read(path)]
        write(folder / "train.csv", rows)
        write(folder / "test.csv", read(given.test))
        print(f"{len(rows):,} train rows, {len(read(given.test)):,} test rows, {given.epochs:g} epochs")
        pairs = [(plain(folder, given.epochs, seed), ours(folder, given.epochs, seed)) for seed in given.seeds]
    imports = timed([sys.executable, "-c", "import torch, transformers, peft"])
    for name in ("train", "score"):
        ratios = [theirs[name] / mine[name] for theirs, mine in pairs]
        print(f"{name}: plain / ftkit = {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"accuracy: plain {mean(theirs for theirs, _ in pairs)}, ftkit {mean(mine for _, mine in pairs)}")
    beside = statistics.median(mine["beside"] for _, mine in pairs)
    print(f"beside training and scoring: {beside:.1f} s = {beside / imports:.2f} x importing torch, transformers, peft")


def mean(results: Any) -> str:
    found = [result["accuracy"] for result in results]
    return f"{statistics.mean(found):.4f} ({', '.join(f'{value:.4f}' for value in found)})"


def read(path: Path) -> list[tuple[str, str]]:
    tsv = path.suffix == ".tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(
            file, delimiter="\t" if tsv else ",", quoting=csv.QUOTE_NONE if tsv else csv.QUOTE_MINIMAL
        )
        return [(row.get("text") or row["sentence"], row["label"]) for row in rows]


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return time.perf_counter() - started


def plain(folder: Path, epochs: float, seed: int) -> dict[str, float]:
    from ftkit.models.locate import locate

    model = locate(BASE, folder, weights=True).folder
    words = ["--model", str(model), "--train", "train.csv", "--test", "test.csv", "--epochs", str(epochs)]
    command = [sys.executable, str(HERE / "plain_classify.py"), *words, "--seed", str(seed)]
    done = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed} plain: {shown(result)}", flush=True)
    return result


def ours(folder: Path, epochs: float, seed: int) -> dict[str, float]:
    recipe, out = folder / f"recipe-{seed}.yaml", folder / f"run-{seed}"
    recipe.write_text(RECIPE.format(base=BASE, epochs=epochs, seed=seed), encoding="utf-8")
    total = timed([sys.executable, "-m", "ftkit", "run", str(recipe), "--out", str(out)])
    train = json.loads((out / "train.json").read_text(encoding="utf-8"))
    report = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    scoring = sum(report["seconds"].values()) + train["validation_seconds"]
    result = {
        "train": train["seconds"],
        "score": report["seconds"]["adapter"],
        "accuracy": report["models"]["adapter"]["metrics"]["accuracy"],
        "beside": total - train["seconds"] - scoring,
    }
    print(f"seed {seed} ftkit: {shown(result)}, {train['tokens_per_s']:,.0f} tokens/s", flush=True)
    return result


def shown(result: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if name == "accuracy" else f"{name} {value:.1f} s" for name, value in result.items()
    )


if __name__ == "__main__":
    main()
