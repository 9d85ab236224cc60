"""Pixels in [-1, 1] and as bytes, which is what feature extractors read."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] as bytes: `(x + 1) * 127.5`, rounded (half to even), clamped to 0..255.

    Rounding, not truncation, is what the published FID numbers were made with.
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Bytes as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def check_uint8(images: Tensor, channels: int, size: int) -> None:
    """Raise `ValueError` unless the images are uint8 `[B, channels, size, size]`."""
    if images.dtype != torch.uint8 or images.shape[1:] != (channels, size, size):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}: must be uint8 [B, {channels}, {size}, {size}]; "
            "convert pixels in [-1, 1] with disa_framework.metrics.to_uint8"
        )
