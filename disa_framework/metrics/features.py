"""What a network must offer to measure images with it.

Letters: `B` images, `F` features, `C` classes, `c h w` pixels.
"""

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to feature vectors, for FID, and on to logits, for the Inception Score.

    Subclasses set `num_features` and own every convention of their network: resizing, channel order, scale.
    `resizing` says in words what they do about it, `reference` is a file of statistics that come with it, if any do.
    """

    num_features: int
    resizing: str = "none"
    reference: Path | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, c, h, w]` to floating-point features `[B, num_features]`; `B` may be 0."""

    def logits(self, features: Tensor) -> Tensor | None:
        """Features `[B, F]` to unnormalized log-probabilities of classes `[B, C]`; `None` if the network has none."""
        return None
