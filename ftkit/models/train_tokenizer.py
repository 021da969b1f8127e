"""Trains a tokenizer on a corpus: byte-level BPE, which can write every text and gives it back unchanged.

Token ids: the four special tokens first, then the 256 bytes, then what was learned, most frequent first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ftkit.errors import DataError
from ftkit.models.chatml import END, START, chatml

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, BOS, MASK = "<|pad|>", "<|bos|>", "<|mask|>"
_BLOCK = 64
SMALLEST_VOCAB = 320  # special tokens, bytes, and a few dozen merges
# As GPT-2 splits (Radford et al. 2019), but each digit stands alone, and marks stay with their letters.
_WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(
    texts: Iterable[str], *, vocab: int, max_length: int, masked: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly ``vocab`` tokens (Sennrich et al. 2016; Radford et al. 2019), learned from ``texts``.

    Texts are read once, as they come. Equal texts give equal tokenizers. With special tokens asked for, a text begins
    with bos and has no end; ``masked``: it stands between cls and sep, as BERT's does. Raises DataError where the
    corpus holds too few distinct pieces for ``vocab`` tokens.
    """
    special = [PAD, BOS, END, MASK] if masked else [PAD, BOS, START, END]
    tokenizer = _learn(texts, vocab, special)
    _check_size(tokenizer.get_vocab_size(), vocab)
    return _with_special_tokens(tokenizer, max_length, masked=masked)


def _learn(texts: Iterable[str], vocab: int, special: list[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(iter(texts), trainer=trainer)
    return tokenizer


def _check_size(found: int, vocab: int) -> None:
    if found < vocab:
        smaller = found // _BLOCK * _BLOCK
        fix = f"Write a smaller base.vocab, such as {smaller} (a multiple of {_BLOCK})."
        if smaller < SMALLEST_VOCAB:
            fix = f"The smallest base.vocab is {SMALLEST_VOCAB}: give more text."
        raise DataError(f"the corpus gives {found} tokens only, and base.vocab asks for {vocab}. {fix}")


def _with_special_tokens(tokenizer: Tokenizer, max_length: int, *, masked: bool) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers uses it. Begin and end have the names cls and sep as well, where they are these."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {END}" if masked else f"{BOS} $A",
        pair=f"{BOS} $A {END} $B:1 {END}:1" if masked else f"{BOS} $A $B",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, END)],
    )
    names = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    if masked:
        names |= {"cls_token": BOS, "sep_token": END, "mask_token": MASK}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        truncation_side="right",
        extra_special_tokens=[] if masked else [START],
        model_input_names=["input_ids", *(["token_type_ids"] if masked else []), "attention_mask"],
        **names,
    )
    if not masked:
        made.chat_template = chatml(bos=True)
    return made
