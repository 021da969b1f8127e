"""The merge as one writes it with PEFT: the whole model in memory, merge_and_unload, save. Without ftkit.

python benchmarks/plain_merge.py BASE ADAPTER OUT
"""

from __future__ import annotations

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(out, max_shard_size="500MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
