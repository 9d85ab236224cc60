"""A Harmon small enough for tests, around a random language model, and a tokenizer of few words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from disa_framework.models import Harmon
from disa_framework.models.harmon import Qwen2, Vocabulary
from tests.models.tiny import filled, tiny_mar

SPECIAL = ["<|im_start|>", "<|im_end|>"]
WORDS = "? user assistant Generate an image : . a red blue cat dog and on the moon"
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS.split()])}
TINY_VOCABULARY = Vocabulary(tuple(word for word in WORDS.split() if word.isalpha()))
PROMPTS = ["a red cat", "the moon", "a blue dog on the moon", "cat"]  # of several lengths

TINY_QWEN = Qwen2(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=len(VOCABULARY),
)  # fmt: skip


def save_tokenizer(folder: Path) -> str:
    """Writes a tokenizer that knows a few words, and returns where."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=SPECIAL).save_pretrained(folder)
    return str(folder)


def tiny_harmon(
    tokenizer: str | Vocabulary | None, std: float = 0.2, label_dropout: float = 0.1, depth: int = 1, **options: Any
) -> Harmon:
    """In eval mode, with normal weights of this deviation; images of 64 pixels have 4x4 tokens."""
    mar = tiny_mar(
        patch_size=1, latent_channels=2, encoder_depth=depth, decoder_depth=depth, decoder_width=24,
        label_dropout=label_dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return filled(Harmon(mar, **{"llm": TINY_QWEN, "tokenizer": tokenizer, **options}), std)
