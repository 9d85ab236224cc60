"""Autoencoders in folders that `diffusers` wrote.

Letters: `B` images, `h`, `w` pixels, `C` latent channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from disa_framework.tokenizers.base import Frozen

SDXL_SCALE = 0.13025  # makes its latents about as wide as a standard normal (Podell et al., arXiv 2307.01952)


class FolderAutoencoder(Frozen):
    """Base of those that `diffusers` has a class for.

    Args:
        weights: a folder, with `config.json`.
        scale: latents are the network's times this.

    Attributes:
        kind: the class.

    Raises:
        ValueError: the folder holds no such autoencoder; `diffusers` is not installed.
    """

    kind: ClassVar[str]

    def __init__(self, weights: str | None, scale: float) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        super().__init__(_read(self.kind, weights))
        self.scale = scale

    def check(self, latent_shape: Sequence[int]) -> None:
        channels = self.network.config.latent_channels
        if len(latent_shape) != 3 or latent_shape[0] != channels:
            raise ValueError(
                f"the autoencoder is for latents [{channels}, H, W], the model draws {list(latent_shape)}: "
                "give the model the channels of its autoencoder"
            )

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor:
        (images,) = self.network.decode(latents / self.scale, return_dict=False)
        return images


class KLAutoencoder(FolderAutoencoder):
    """Images `[B, 3, h, w]` to latents `[B, C, h / 8, w / 8]` and back, as of Stable Diffusion XL, whose scale is the
    default.

    Args:
        weights: a folder that `diffusers` wrote, with `config.json`.
        scale: latents are the posterior's times this.

    Raises:
        ValueError: the folder holds no such autoencoder; `diffusers` is not installed.
    """

    kind = "AutoencoderKL"

    def __init__(self, weights: str | None = None, scale: float = SDXL_SCALE) -> None:
        super().__init__(weights, scale)

    def encode(self, images: Tensor) -> Tensor:
        """In training, a sample of the posterior, drawn from the global generator; in evaluation, its mean."""
        (posterior,) = self.network.encode(images.to(self.network.dtype), return_dict=False)
        noise = torch.randn_like(posterior.mean) * posterior.std if self.training else 0.0
        return (posterior.mean + noise) * self.scale


def _read(kind: str, folder: str | None) -> Any:
    if folder is None:
        raise ValueError("the autoencoder has weights: give their folder with --vae")
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("the autoencoder needs diffusers: pip install 'disa-framework[vae]'") from error
    try:
        return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no folder of diffusers with {kind}: {' '.join(str(error).split())}") from error
