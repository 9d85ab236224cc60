"""DC-AE, the autoencoder of 32 by 32 pixels a place (Chen et al., arXiv 2410.10733), as `diffusers` has it.

Letters: `B` images, `h`, `w` pixels, `C` latent channels.
"""

from __future__ import annotations

from torch import Tensor

from disa_framework.tokenizers.folder import FolderAutoencoder

EMIGM_SCALE = 0.3189  # makes the latents of ImageNet about as wide as a standard normal (eMIGM, arXiv 2503.07197)


class DeepAutoencoder(FolderAutoencoder):
    """Images `[B, 3, h, w]` to latents `[B, C, h / 32, w / 32]` and back.

    Args:
        weights: a folder that `diffusers` wrote, with `config.json`.
        scale: latents are the encoder's times this.

    Raises:
        ValueError: the folder holds no such autoencoder; `diffusers` is not installed.
    """

    kind = "AutoencoderDC"

    def __init__(self, weights: str | None = None, scale: float = EMIGM_SCALE) -> None:
        super().__init__(weights, scale)

    def encode(self, images: Tensor) -> Tensor:
        (latents,) = self.network.encode(images.to(self.network.dtype), return_dict=False)
        return latents * self.scale
