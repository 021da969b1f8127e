"""How soon the command line answers: the median of whole processes, after one to warm up.

    python benchmarks/startup.py

``check`` is timed on no rows to speak of and on 5,000, which gives the time a row.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """\
name: benchmark
base: sentence-transformers/all-MiniLM-L6-v2
task: {type: classify}
data: {train: train.csv, test: test.csv}
adapter: {type: lora, r: 16, alpha: 32}
"""
RUNS = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        for words in (["--help"], ["ls"], ["adapters"], ["schema"]):
            print(f"ftkit {' '.join(words)}: {median(words, folder):.2f} s")
        found = {rows: checked(folder, rows) for rows in (100, 5_000)}
        print(f"ftkit check: {found[100]:.2f} s for 100 rows, {found[5_000]:.2f} s for 5,000")
        print(f"ftkit check, each row: {1000 * (found[5_000] - found[100]) / 4_900:.2f} ms")


def checked(folder: Path, rows: int) -> float:
    """The time of a check on so many rows of about 25 words, a fifth of them to test on."""
    chance = random.Random(0)
    words = [f"word{number}" for number in range(3_000)]
    for name, count in (("train", rows * 4 // 5), ("test", rows // 5)):
        lines = [f"{' '.join(chance.choices(words, k=25))},{chance.choice(('good', 'bad'))}\n" for _ in range(count)]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
    return median(["check", "recipe.yaml"], folder)


def median(words: list[str], folder: Path) -> float:
    times = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ftkit", *words], cwd=folder, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
