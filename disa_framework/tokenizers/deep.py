"""DC-AE, the autoencoder of 32 by 32 pixels a place (Chen et al., arXiv 2410.10733), as `diffusers` has it.

Letters: `B` images, `h`, `w` pixels, `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from disa_framework.tokenizers.base import Frozen

EMIGM_SCALE = 0.3189  # makes the latents of ImageNet about as wide as a standard normal (eMIGM, arXiv 2503.07197)


class DeepAutoencoder(Frozen):
    """Images `[B, 3, h, w]` to latents `[B, C, h / 32, w / 32]` and back.

    Args:
        weights: a folder that `diffusers` wrote, with `config.json`.
        scale: latents are the encoder's times this.

    Raises:
        ValueError: the folder holds no such autoencoder; `diffusers` is not installed.
    """

    def __init__(self, weights: str | None = None, scale: float = EMIGM_SCALE) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        super().__init__(_read(weights))
        self.scale = scale

    def check(self, latent_shape: Sequence[int]) -> None:
        channels = self.network.config.latent_channels
        if len(latent_shape) != 3 or latent_shape[0] != channels:
            raise ValueError(
                f"the autoencoder is for latents [{channels}, H, W], the model draws {list(latent_shape)}: "
                "give the model the channels of its autoencoder"
            )

    def encode(self, images: Tensor) -> Tensor:
        (latents,) = self.network.encode(images.to(self.network.dtype), return_dict=False)
        return latents * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        (images,) = self.network.decode(latents / self.scale, return_dict=False)
        return images


def _read(folder: str | None) -> Any:
    if folder is None:
        raise ValueError("the autoencoder has weights: give their folder with --vae")
    try:
        from diffusers import AutoencoderDC
    except ImportError as error:
        raise ValueError("the autoencoder needs diffusers: pip install 'disa-framework[vae]'") from error
    try:
        return AutoencoderDC.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no folder of diffusers with a DC-AE: {' '.join(str(error).split())}") from error
