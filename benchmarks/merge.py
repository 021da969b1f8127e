"""Merging a LoRA adapter into a Llama: ``ftkit merge`` against PEFT's merge in memory (plain_merge.py), in one run.

    python benchmarks/merge.py --folder /tmp/merge --repeats 1 [--layers 16 --hidden 2048 ...]

Makes a Llama with random weights (0.86 billion parameters as it stands, in shards of 500 MB) and an adapter of rank
16 on all linear layers, runs each command as a process of its own, and prints of each its wall time, processor time and
the most memory that it held, from its start to its end, imports included. ``ftkit merge`` reads its result back and
compares all tensors; the line without that is merge_streamed with check=False, in a process of its own too. The merged
weights of both are compared. The models are removed in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UNCHECKED = """
import sys
from pathlib import Path
from ftkit.export.stream import merge_streamed
from ftkit.export.tensors import read_index
from ftkit.export.updates import changes_of, read_adapter
base, adapter, out = map(Path, sys.argv[1:])
merge_streamed(base, changes_of(read_adapter(adapter), read_index(base)), out, extra=[adapter], check=False)
"""


def main() -> None:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    base, adapter = args.folder / "base", args.folder / "adapter"
    if args.make:
        make(args)
        return
    # In a process of its own: what this one holds would be counted to the commands that it starts.
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make"], check=True)
    ftkit, plain, unchecked = args.folder / "ftkit", args.folder / "plain", args.folder / "unchecked"
    commands = {
        "peft": [str(HERE / "plain_merge.py"), str(base), str(adapter), str(plain)],
        "ftkit": ["-m", "ftkit", "merge", str(adapter), "--base", str(base), "--out", str(ftkit)],
        "ftkit, not read back": ["-c", UNCHECKED, str(base), str(adapter), str(unchecked)],
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(args.repeats):
        for name, command in commands.items():
            os.sync()  # what the one before left to be written is not waited for by the next
            measured[name].append(timed([sys.executable, *command]))
            print(f"{name:22}", "  ".join(f"{key} {value:,.1f}" for key, value in measured[name][-1].items()))
    best = {name: {key: min(run[key] for run in runs) for key in runs[0]} for name, runs in measured.items()}
    document: dict[str, Any] = {"best": best, "load": os.getloadavg(), **compared(ftkit, plain)}
    document["of peft"] = {
        name: {key: round(best[name][key] / best["peft"][key], 3) for key in best[name]} for name in best
    }
    print("RESULT", json.dumps(document))
    for folder in (base, adapter, ftkit, plain, unchecked):
        shutil.rmtree(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the models, three times their size; emptied")
    parser.add_argument("--repeats", type=int, default=1)
    for name, value in {"layers": 16, "hidden": 2048, "intermediate": 5632, "heads": 32, "kv-heads": 8, "vocab": 32000,
                        "rank": 16}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shard-size", default="500MB")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make(args: argparse.Namespace) -> None:
    """Writes base and adapter; what the weights say matters to no figure."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    config = LlamaConfig(
        hidden_size=args.hidden, intermediate_size=args.intermediate, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, num_key_value_heads=args.kv_heads, vocab_size=args.vocab,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(args.folder / "base", max_shard_size=args.shard_size)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.01)
    adapted.save_pretrained(args.folder / "adapter")
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e9:.2f} billion parameters")


def timed(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds of a command, and the most memory that it held, in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    processor = usage.ru_utime + usage.ru_stime
    return {"wall_s": round(wall, 2), "processor_s": round(processor, 2), "peak_mib": usage.ru_maxrss / 1024}


def compared(ours: Path, theirs: Path) -> dict[str, float]:
    """How many values of the two merges differ, and by how much at most."""
    import torch

    from ftkit.export.tensors import read_index

    mine, other = read_index(ours), read_index(theirs)
    differing, largest, count = 0, 0.0, 0
    for name, stored in mine.items():
        one, two = stored.tensor(), other[name].tensor()
        differing += int(torch.ne(one, two).sum())
        largest = max(largest, float((one.float() - two.float()).abs().max()))
        count += stored.count
    return {"values": count, "differing": differing, "largest_difference": largest}


if __name__ == "__main__":
    main()
