"""FlowAR, xAR and SphereAR of a few thousand weights, none of them zero."""

from __future__ import annotations

from typing import Any

import torch

from disa_framework.models import XAR, FlowAR, SphereAR
from tests.models.tiny import filled

FLOWAR: dict[str, Any] = {
    "latent_size": 4, "latent_channels": 2, "num_classes": 3, "scales": (1, 2, 4), "width": 16, "encoder_depth": 1,
    "encoder_heads": 2, "decoder_depth": 2, "decoder_heads": 4, "head_depth": 2, "head_width": 64,
}  # fmt: skip
XAR_OPTIONS: dict[str, Any] = {
    "latent_size": 4, "latent_channels": 2, "num_classes": 3, "cells_per_side": 2, "width": 16, "encoder_depth": 1,
    "encoder_heads": 2, "decoder_depth": 2, "decoder_heads": 4,
}  # fmt: skip
SPHEREAR: dict[str, Any] = {
    "latent_size": 3, "latent_channels": 4, "num_classes": 3, "class_tokens": 2, "width": 16, "depth": 2, "heads": 2,
    "head_depth": 4, "head_width": 16, "modulations": 2,
}  # fmt: skip


def tiny_flowar(std: float = 0.1, **options: Any) -> FlowAR:
    """In eval mode, with normal weights of this deviation."""
    return filled(FlowAR(**{**FLOWAR, **options}), std, torch.Generator().manual_seed(0))


def tiny_xar(std: float = 0.1, **options: Any) -> XAR:
    """In eval mode, with normal weights of this deviation."""
    return filled(XAR(**{**XAR_OPTIONS, **options}), std, torch.Generator().manual_seed(0))


def tiny_sphere(std: float = 0.2, **options: Any) -> SphereAR:
    """In eval mode, with normal weights of this deviation."""
    return filled(SphereAR(**{**SPHEREAR, **options}), std, torch.Generator().manual_seed(0))
