"""The Inception network that published FID, Inception Score, precision and recall are measured with.

Letters: `B` images, `c` channels, `h w` pixels.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from disa_framework.hub.checkpoint import load_weights
from disa_framework.metrics.features import FeatureExtractor

_FEATURES = "2048"  # torch-fidelity's name of the last pooling layer


class InceptionFeatures(FeatureExtractor):
    """torch-fidelity's port of TensorFlow's Inception of 2015-12-05: the last pooling layer, `[B, 2048]`.

    Logits are without the last layer's bias, as the Inception Score was published.

    Args:
        weights: file `weights-inception-2015-12-05-6726825d.pth`, as torch-fidelity publishes it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: torch-fidelity is missing, or the file holds something else.
    """

    num_features = 2048
    resizing = "bilinear to 299x299 as in TensorFlow 1, antialias=False"

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.network = _network(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, c, h, w]` of any size, gray or in color, to features `[B, 2048]`.

        Raises:
            ValueError: images of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 [B, 1 or 3, h, w], got {images.dtype} {list(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            (features,) = self.network(images.expand(-1, 3, -1, -1))
        return features

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.network.fc.weight.T


def _network(path: str) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter beside another build of PyTorch
        raise ValueError(
            f"Inception needs torch-fidelity with a torchvision that fits PyTorch ({error}): "
            "pip install 'disa-framework[inception]'"
        ) from error
    # torch-fidelity unpickles whatever it is given: it is given a copy of what was read safely.
    copy = io.BytesIO()
    torch.save(load_weights(path), copy)
    copy.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", [_FEATURES], copy)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold torch-fidelity's Inception: give its weights-inception-2015-12-05-6726825d.pth"
        ) from error
