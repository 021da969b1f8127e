"""Instruction tuning as one would write it today: TRL's SFTTrainer and a LoRA adapter, library defaults.

python plain_sft.py BASE TRAIN.jsonl OUT [--epochs 1] [--batch-size 8] [--rate 2e-4] [--rank 16] [--qlora yes]

TRAIN.jsonl holds {"prompt", "completion"}, both as text with the chat template's marks in it; the loss is on the
completion. --stop names the token that a completion ends with: without it TRL would add the tokenizer's own to each.
"""

import argparse
import json
import resource
import time

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

options = argparse.ArgumentParser()
for name in ("base", "train", "out"):
    options.add_argument(name)
options.add_argument("--epochs", type=float, default=1)
options.add_argument("--batch-size", type=int, default=8)
options.add_argument("--rate", type=float, default=2e-4)
options.add_argument("--rank", type=int, default=16)
options.add_argument("--max-length", type=int, default=1024)
options.add_argument("--seed", type=int, default=42)
options.add_argument("--stop")
options.add_argument("--qlora", choices=("yes", "no"), default="no")
options.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
given = options.parse_args()

gpu = torch.cuda.is_available()
# TRL's default, bfloat16 everywhere, stops without a GPU.
half = gpu if given.precision == "auto" else given.precision == "bfloat16"
four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16 if half else torch.float32,
)
trainer = SFTTrainer(
    model=given.base,
    args=SFTConfig(
        output_dir=given.out,
        num_train_epochs=given.epochs,
        per_device_train_batch_size=given.batch_size,
        learning_rate=given.rate,
        max_length=given.max_length,
        eos_token=given.stop,
        model_init_kwargs={"quantization_config": four_bits} if given.qlora == "yes" else None,
        bf16=half,
        use_cpu=not gpu,
        save_strategy="no",
        report_to=[],
        seed=given.seed,
    ),
    train_dataset=load_dataset("json", data_files=given.train, split="train"),
    processing_class=AutoTokenizer.from_pretrained(given.base),
    peft_config=LoraConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
)
started = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - started
trainer.save_model(given.out)
tokens = next(row["num_tokens"] for row in reversed(trainer.state.log_history) if "num_tokens" in row)
peaks = {
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "peak_gpu_mb": torch.cuda.max_memory_reserved() // 2**20 if gpu else None,
}
print("RESULT", json.dumps({"seconds": seconds, "tokens": tokens, **peaks}))
