"""What a network must offer to measure images with it."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to feature vectors, for FID, or to logits, for the Inception Score.

    Subclasses set `num_features` and own every convention of their network: resizing, channel order, scale.
    """

    num_features: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, C, H, W]` to floating-point features `[B, num_features]`."""
