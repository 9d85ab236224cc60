"""A VibeVoice small enough for tests, with random weights, that speaks until it is stopped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, VibeVoiceConfig, VibeVoiceForConditionalGeneration

END, PLACEHOLDER, WIDTH, CHANNELS = 1, 4, 32, 8
TEXT = {
    "model_type": "qwen2", "vocab_size": 64, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64,
}  # fmt: skip
AUDIO = {"num_filters": 4, "downsampling_ratios": [2, 4], "depths": [1, 1, 1], "kernel_size": 7}


def tiny_vibevoice() -> Any:
    """In eval mode."""
    config = VibeVoiceConfig(
        text_config=TEXT,
        audio_config={"model_type": "vibevoice_acoustic_tokenizer", "hidden_size": CHANNELS, **AUDIO},
        semantic_model_config={"model_type": "vibevoice_acoustic_tokenizer_encoder", "hidden_size": 6, **AUDIO},
        diffusion_head_config={"num_hidden_layers": 2, "intermediate_size": 48},
        pad_token_id=0, eos_token_id=END, audio_bos_token_id=2, audio_eos_token_id=3, audio_token_id=PLACEHOLDER,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VibeVoiceForConditionalGeneration(config).eval()
        for parameter in model.model.diffusion_head.parameters():
            torch.nn.init.normal_(parameter, std=0.15)  # its own are so small that every head is nearly 0
    return model


class Speaks(LogitsProcessor):
    """Has phrase `i` go on for `lengths[i]` tokens, and then end."""

    def __init__(self, lengths: list[int], prompt: int) -> None:
        self.lengths, self.prompt = torch.tensor(lengths), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.where(input_ids.shape[1] - self.prompt < self.lengths, PLACEHOLDER, END)
        return scores.scatter_add(1, chosen[:, None], torch.full((len(scores), 1), 1e4))


def inputs(*lengths: int) -> dict[str, Any]:
    """What `generate` is given for phrases of so many tokens."""
    words = torch.tensor([[5, 9, 7, 2], [8, 6, 11, 2], [10, 12, 9, 2]])[: len(lengths)]
    return {
        "input_ids": words, "attention_mask": torch.ones_like(words), "max_new_tokens": max(lengths),
        "logits_processor": LogitsProcessorList([Speaks([*lengths], words.shape[1])]),
    }  # fmt: skip
