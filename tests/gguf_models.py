"""Pico models of the families that GGUF can hold, with the tokenizers that such models have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conversations import TEMPLATE, asked

FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "mistral", "llama3")
TEXTS = [f"{row['prompt']} {row['completion']}" for row in asked(400, 9)]
_SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 96}


def make(folder: Path, family: str) -> Path:
    """A decoder 64 wide.

    qwen3: heads of 32 and not 16, more embeddings than tokens, no start token, two stop tokens. mistral: SentencePiece,
    tied. llama3: the rope of Llama 3.1, and biases.
    """
    import torch
    import transformers as t

    torch.manual_seed(0)
    model: Any
    if family == "qwen3":
        _qwen_tokenizer(folder)
        special = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**_SHAPE, **special, head_dim=32, vocab_size=320))
        model.generation_config.eos_token_id = [2, 0]
    else:
        sentencepiece(folder)
        special = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 384}
        if family == "mistral":
            config = t.MistralConfig(**_SHAPE, **special, tie_word_embeddings=True, sliding_window=None)
            model = t.MistralForCausalLM(config)
        else:
            rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
            biases = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
            model = t.LlamaForCausalLM(t.LlamaConfig(**_SHAPE, **special, **biases, rope_parameters=rope))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.mul_(4)
    model.save_pretrained(folder)
    return folder


def sentencepiece(folder: Path) -> Path:
    """BPE over characters that falls back to bytes, with every pair that makes a token, as converted models have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=384 - 259, special_tokens=[], show_progress=False)
    learner.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer=trainer)
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    words = [word for word in learned if len(word) > 1] + [word for word in learned if len(word) == 1]
    vocab = {word: index for index, word in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words])}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in vocab and word[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def _qwen_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=312, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer=trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any] | None = None, **settings: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value |= settings
    if change:
        change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
