"""Tokenizers: from images to the latents an AR model works on, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn


class Tokenizer(nn.Module, ABC):
    """Images `[B, c, h, w]` in [-1, 1] to latents `[B, C, H, W]` and back."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents of the images; those of a tokenizer with a posterior are random in training mode."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images of the latents; values outside [-1, 1] are clipped by whoever writes them."""

    def check(self, latent_shape: Sequence[int]) -> None:
        """Raises a ValueError if latents `[B, *latent_shape]` cannot be decoded."""


class Frozen(Tokenizer):
    """A tokenizer whose network is trained already.

    It needs no copy in checkpoints, in averaged weights or in gradient buckets: the network moves with this module, but
    is not part of the module tree, and `train()` does not reach it.

    Args:
        network: in evaluation mode from here on.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._frozen = [network.eval().requires_grad_(False)]  # a list hides it from the module tree

    @property
    def network(self) -> Any:
        """That of the library."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)


class Identity(Tokenizer):
    """Pixels are the latents, for images small enough to be drawn pixel by pixel.

    Args:
        scale: latents are pixels times this.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not scale:
            raise ValueError(f"scale must be a number other than 0, got {scale}")
        self.scale = scale

    def encode(self, images: Tensor) -> Tensor:
        return images * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        return latents / self.scale


class SpaceToDepth(Tokenizer):
    """Squares of pixels become the channels of one latent pixel, for small images on a smaller grid.

    Args:
        patch: side of a square; a gray image `[1, h, w]` has latents `[patch * patch, h / patch, w / patch]`.
        margin: rows and columns of black pixels around an image that are folded with it, and cut off again.
    """

    def __init__(self, patch: int = 2, margin: int = 0) -> None:
        super().__init__()
        if patch < 1 or margin < 0:
            raise ValueError(f"patch must be at least 1 and margin at least 0, got {patch} and {margin}")
        self.patch, self.margin = patch, margin

    def check(self, latent_shape: Sequence[int]) -> None:
        if len(latent_shape) != 3 or latent_shape[0] % self.patch**2:
            raise ValueError(
                f"SpaceToDepth decodes latents [C, H, W] with C a multiple of {self.patch**2}, the model draws "
                f"{list(latent_shape)}: choose --model.latent_channels or --tokenizer.patch by the other"
            )

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.pad(images, [self.margin] * 4, value=-1.0), self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pad(F.pixel_shuffle(latents, self.patch), [-self.margin] * 4)
