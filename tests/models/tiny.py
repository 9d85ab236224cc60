"""A MAR small enough to be trained in a test."""

from typing import Any

import torch

from disa_framework.models import MAR

TINY: dict[str, Any] = {
    "latent_size": 4, "latent_channels": 1, "patch_size": 2, "num_classes": 3, "buffer_size": 2,
    "encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 1,
    "decoder_heads": 2, "head_depth": 1, "head_width": 16, "attn_dropout": 0.0, "proj_dropout": 0.0,
}  # fmt: skip


def tiny_mar(std: float | None = 0.2, **options: Any) -> MAR:
    """In eval mode, with normal weights of this deviation; `None` leaves them as they are initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MAR(**{**TINY, **options})
        if std is not None:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=std)
    return model.eval()
