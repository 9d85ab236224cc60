"""A NOVA small enough for tests, and a folder as diffusers writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from disa_framework.models import NOVA
from disa_framework.nn.text import Words
from tests.models.tiny import filled

TINY_NOVA: dict[str, Any] = {
    "latent_size": 8, "latent_channels": 2, "width": 16, "heads": 2, "text_depth": 2, "image_depth": 3,
    "head_depth": 2, "head_width": 24, "text_width": 9, "text_length": 4,
}  # fmt: skip
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
DIFFUSION: dict[str, Any] = {
    "_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon",
    "variance_type": "fixed_small", "timestep_spacing": "leading", "clip_sample": False, "num_train_timesteps": 1000,
}  # fmt: skip


def tiny_nova(std: float = 0.2, **options: Any) -> NOVA:
    """In eval mode, with normal weights of this deviation; images have 4x4 tokens."""
    words = Words(("a", "red", "blue", "cat", "dog", "on", "the", "moon"))  # of which Harmon's prompts are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return filled(NOVA(**{"text_encoder": words, **TINY_NOVA, **options}), std)


def save_folder(model: NOVA, folder: Path, scheduler: dict[str, Any], **config: Any) -> Path:
    """Writes a model as it is published."""
    for name, content in (("transformer/config.json", config), ("scheduler/scheduler_config.json", scheduler)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "transformer/diffusion_pytorch_model.safetensors")
    return folder
