"""A small classifier that measures 8x8 digits: features for FID, logits for the Inception Score.

`python -m examples.digits_classifier` made the weights.
"""

from importlib.resources import files

import safetensors.torch
import torch
from torch import Tensor, nn

from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.images import check_uint8

WEIGHTS = "digits_classifier.safetensors"


class DigitsClassifier(nn.Module):
    """Reads 8x8 digits of either polarity; 23 thousand parameters.

    The features tell the digit and its polarity, so FID sees a share of inverted images that is wrong.

    The feature space has a fixed scale: a constant in the weights makes the total variance (the trace of the
    covariance) of the features over the plain training digits exactly 16. Fréchet distances in it therefore
    stay comparable when the classifier is trained anew.
    """

    num_classes = 10
    num_features = 64

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
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
        self.head = nn.Linear(self.num_features, self.num_classes)
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def pretrained(cls) -> "DigitsClassifier":
        """The classifier shipped with the package, frozen, on the CPU."""
        with torch.device("meta"):  # no initial weights: they would be drawn from the global generator
            model = cls()
        weights = files("disa_framework.toy").joinpath(WEIGHTS).read_bytes()
        model.load_state_dict(safetensors.torch.load(weights), assign=True)
        return model.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 1, 8, 8]` to the layer before the logits, `[B, 64]`.

        Raises:
            ValueError: images of another type or shape.
        """
        check_uint8(images, channels=1, size=8)
        pixels = images.to(self.scale.dtype) / 127.5 - 1
        features: Tensor = self.scale * self.body(pixels)
        return features

    def logits(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 1, 8, 8]` to unnormalised log-probabilities of the classes, `[B, 10]`."""
        logits: Tensor = self.head(self.features(images))
        return logits


class DigitsFeatures(FeatureExtractor):
    """Features of the shipped classifier, `[B, 64]`, for the Fréchet distance, and on to its logits, `[B, 10]`."""

    num_features = DigitsClassifier.num_features

    def __init__(self) -> None:
        super().__init__()
        self.classifier = DigitsClassifier.pretrained()

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 1, 8, 8]` to features `[B, 64]`."""
        return self.classifier.features(images)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier.head(features)
