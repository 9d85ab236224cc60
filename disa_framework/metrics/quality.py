"""What a study makes small: a distance between the images that are drawn and those that should be.

Letters: `B` images, `c h w` pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from lightning import LightningDataModule
from torch import Tensor, nn
from torchmetrics import Metric

from disa_framework import values
from disa_framework.metrics.feature_set import features_of
from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.fid import FrechetDistance, load_statistics
from disa_framework.metrics.images import to_uint8
from disa_framework.module import ARDiffusionModule
from disa_framework.resuming import digest_of
from disa_framework.sampling.condition import Condition


class Quality(ABC):
    """What a study makes small. Subclass and implement both."""

    @abstractmethod
    def metric(self, module: ARDiffusionModule, condition: Condition | None) -> Metric:
        """A metric with its reference, whose `compute` gives one number.

        Args:
            module: what will draw.
            condition: what it will be asked for.
        """

    @abstractmethod
    def update(self, metric: Metric, images: Tensor) -> None:
        """Adds images `[B, c, h, w]` in [-1, 1] to the metric."""


class FID(Quality):
    """The Fréchet distance between features of images (Heusel et al., arXiv 1706.08500).

    Args:
        features: the network that is looked through.
        reference: a data module that gives its `reference_images`, or an `.npz` file with `mu` and `sigma`; by default
            the statistics that come with the features.

    Raises:
        ValueError: no reference, or a data module without reference images.
    """

    def __init__(self, features: FeatureExtractor, reference: LightningDataModule | str | None = None) -> None:
        if reference is None and features.reference is None:
            raise ValueError(f"no statistics come with {type(features).__name__}: give a reference")
        known: Any = reference or str(features.reference)
        if not isinstance(known, str) and not hasattr(known, "reference_images"):
            raise ValueError(f"{type(known).__name__} has no reference_images: give an .npz with mu and sigma")
        self.features, self.reference = features, known

    def metric(self, module: ARDiffusionModule, condition: Condition | None) -> Metric:
        if isinstance(self.reference, str):
            return FrechetDistance(self.features, load_statistics(self.reference))
        return FrechetDistance(self.features, features_of(self.features, self.reference.reference_images()))

    def update(self, metric: Metric, images: Tensor) -> None:
        metric.update(to_uint8(images))


def described(part: Any) -> Any:
    """What an object is, as plain data: its class and its plain attributes, networks by their weights."""
    content = {"class_path": values.path_of(type(part))}
    for name, value in vars(part).items():
        if isinstance(value, nn.Module):
            content[name] = digest_of(value)
        elif isinstance(value, LightningDataModule):
            content[name] = described(value)
        elif value is not None and name[0] != "_":
            with suppress(TypeError):
                content[name] = values.dump(value)
    return content
