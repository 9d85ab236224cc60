"""A network so small that everything it tells can be told by hand."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from disa_framework.metrics import FeatureExtractor


class Pixels(FeatureExtractor):
    """Two pixels of an image, and what else the first two say of two classes."""

    num_features = 2

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2].float()

    def logits(self, features: Tensor) -> Tensor:
        return torch.cat([features, features.flip(1)], dim=1) / 64


class Waiting(Pixels):
    """Says that it has begun by the file `begun`, and goes on once there is a file `go`."""

    def forward(self, images: Tensor) -> Tensor:
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.02)
        return super().forward(images)
