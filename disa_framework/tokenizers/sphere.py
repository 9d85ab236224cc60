"""Squares of pixels as latents of constant norm, for SphereAR on small images.

Letters: `D` pixels of a square and channels, `u` such a square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from disa_framework.tokenizers.base import SpaceToDepth

_POLE = 1e-3  # share of the radius that is kept away from the point that no square is mapped to


class SphericalPatches(SpaceToDepth):
    """Squares of `D` pixels become points of norm `sqrt(D + 1)` in `D + 1` dimensions, by stereographic projection.

    Norming a square would lose how bright it is. This loses nothing, keeps angles, and is smooth both ways: pixels in
    [-1, 1] lie on one half of the sphere, gray at its pole and the brightest and darkest squares on the equator, and
    what a model draws beyond the equator is brighter or darker still.

    Args:
        patch: side of a square; a gray image `[1, h, w]` has latents `[patch * patch + 1, h / patch, w / patch]`.
        margin: as of `SpaceToDepth`.
    """

    def check(self, latent_shape: Sequence[int]) -> None:
        if len(latent_shape) != 3 or (latent_shape[0] - 1) % self.patch**2:
            raise ValueError(
                f"SphericalPatches decodes latents [C, H, W] with C one above a multiple of {self.patch**2}, the model "
                f"draws {list(latent_shape)}: choose --model.latent_channels or --tokenizer.patch by the other"
            )

    def encode(self, images: Tensor) -> Tensor:
        pixels = super().encode(images)
        u = pixels / math.sqrt(pixels.shape[1])
        square = u.square().sum(dim=1, keepdim=True)
        return torch.cat((2 * u, square - 1), dim=1) * (math.sqrt(pixels.shape[1] + 1) / (square + 1))

    def decode(self, latents: Tensor) -> Tensor:
        D, radius = latents.shape[1] - 1, math.sqrt(latents.shape[1])
        from_pole = (radius - latents[:, D:]).clamp(min=_POLE * radius)
        return super().decode(latents[:, :D] / from_pole * math.sqrt(D))
