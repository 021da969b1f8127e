"""The yardstick: LoRA text classification as one would write it today with plain transformers and peft.

Library defaults everywhere; run by classify.py, which compares it with ftkit. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--train", required=True, help="CSV with the columns text and label")
    options.add_argument("--test", required=True)
    options.add_argument("--epochs", type=float, required=True)
    options.add_argument("--seed", type=int, required=True)
    given = options.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    data = load_dataset("csv", data_files={"train": given.train, "test": given.test}, keep_default_na=False)
    names = sorted(set(data["train"]["label"]))

    def prepare(rows: dict[str, list[str]]) -> dict[str, list[object]]:
        encoded = tokenizer(rows["text"], truncation=True, max_length=128)
        return {**encoded, "labels": [names.index(label) for label in rows["label"]]}

    data = data.map(prepare, batched=True, remove_columns=data["train"].column_names)
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(names))
    targets = ["query", "key", "value", "dense"]
    lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            get_peft_model(model, lora),
            TrainingArguments(
                folder,
                num_train_epochs=given.epochs,
                per_device_train_batch_size=32,
                learning_rate=5e-4,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=given.seed,
            ),
            train_dataset=data["train"],
            eval_dataset=data["test"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {"accuracy": float((np.argmax(found[0], -1) == found[1]).mean())},
        )
        started = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        accuracy = trainer.evaluate()["eval_accuracy"]
        scored = time.perf_counter()
    print(json.dumps({"train": trained - started, "score": scored - trained, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
