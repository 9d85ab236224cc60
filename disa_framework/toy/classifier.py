"""Small classifiers that measure gray images: features for FID, logits for the Inception Score.

`python -m examples.classifiers` made the weights, `python -m examples.fashion_reference` the statistics.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from torch import Tensor, nn

from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.images import check_uint8


class ToyClassifier(nn.Module, ABC):
    """A convolutional network for gray images of ten classes; its features tell more of an image than the class.

    The feature space has a fixed scale: a constant in the weights makes the total variance (the trace of the
    covariance) of the features over the plain training images exactly 16. Fréchet distances in it therefore
    stay comparable when the classifier is trained anew.

    Subclasses set `image_size`, and `weights`, the file of the package that holds theirs, and give the layers.
    """

    num_classes = 10
    num_features = 64
    image_size: int
    weights: Path

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = self.layers()
        self.head = nn.Linear(self.num_features, self.num_classes)
        self.register_buffer("scale", torch.ones(()))

    @abstractmethod
    def layers(self) -> nn.Sequential:
        """From pixels `[B, 1, image_size, image_size]` in [-1, 1] to features `[B, 64]` before they are scaled."""

    @classmethod
    def pretrained(cls) -> Self:
        """The classifier shipped with the package, frozen, on the CPU."""
        with torch.device("meta"):  # no initial weights: they would be drawn from the global generator
            model = cls()
        model.load_state_dict(safetensors.torch.load(cls.weights.read_bytes()), assign=True)
        return model.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 1, image_size, image_size]` to the layer before the logits, `[B, 64]`.

        Raises:
            ValueError: images of another type or shape.
        """
        check_uint8(images, channels=1, size=self.image_size)
        pixels = images.to(self.scale.dtype) / 127.5 - 1
        features: Tensor = self.scale * self.body(pixels)
        return features

    def logits(self, images: Tensor) -> Tensor:
        """Images uint8 to unnormalised log-probabilities of the classes, `[B, 10]`."""
        logits: Tensor = self.head(self.features(images))
        return logits


class DigitsClassifier(ToyClassifier):
    """Reads 8x8 digits of either polarity; 23 thousand parameters.

    The features tell the digit and its polarity, so FID sees a share of inverted images that is wrong.
    """

    image_size = 8
    weights = Path(__file__).with_name("digits_classifier.safetensors")

    def layers(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, self.num_features),
            nn.SiLU(),
        )


class FashionClassifier(ToyClassifier):
    """Reads 28x28 clothes, bright on black; 68 thousand parameters.

    The features tell the class, and how noisy, blurred and faded an image is, how much the brightness of its patches of
    4x4 pixels differs, and how many of them are of another image.
    """

    image_size = 28
    weights = Path(__file__).with_name("fashion_classifier.safetensors")

    def layers(self) -> nn.Sequential:
        blocks = (*_halving(1, 16), *_halving(16, 32), *_halving(32, 48))
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(48 * 4 * 4, self.num_features), nn.SiLU())


def _halving(inner: int, outer: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inner, outer, 3, padding=1)
    return convolution, nn.BatchNorm2d(outer), nn.SiLU(), nn.AvgPool2d(2, ceil_mode=True)


class ToyFeatures(FeatureExtractor):
    """Features of a classifier, `[B, 64]`, for the Fréchet distance, and on to its logits, `[B, 10]`."""

    num_features = ToyClassifier.num_features

    def __init__(self, classifier: ToyClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 1, image_size, image_size]` to features `[B, 64]`."""
        return self.classifier.features(images)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier.head(features)


class DigitsFeatures(ToyFeatures):
    """Those of the shipped classifier of 8x8 digits."""

    def __init__(self) -> None:
        super().__init__(DigitsClassifier.pretrained())


class FashionFeatures(ToyFeatures):
    """Those of the shipped classifier of 28x28 clothes.

    `reference` is a file of the package: mean and covariance of the features of the training images, `[64]` and
    `[64, 64]`, which `load_statistics` reads.
    """

    reference = Path(__file__).with_name("fashion_reference.npz")

    def __init__(self) -> None:
        super().__init__(FashionClassifier.pretrained())
