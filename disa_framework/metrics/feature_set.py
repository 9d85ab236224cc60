"""What the features of a set of images come to, over all processes that read or draw them.

Letters: `B` images, `N` images of the whole set, `F` features, `C` classes, `c h w` pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from disa_framework.metrics.features import FeatureExtractor


class Features(NamedTuple):
    """What is known of the features of a set of images.

    Attributes:
        mu: their mean, float64 `[F]`.
        sigma: their unbiased covariance, float64 `[F, F]`.
        vectors: the features themselves, `[N, F]`, if they were kept.
        logits: `[N, C]`, if the network has them.
    """

    mu: Tensor
    sigma: Tensor
    vectors: Tensor | None = None
    logits: Tensor | None = None


class FeatureSet(Metric):
    """Adds up the features of a set of images, and counts that every image came once, on all processes together.

    Mean and covariance are kept as sums; logits, which are few, and on request the features are kept in the order
    of the images, so that the result does not depend on which process had which image. A process that has no images
    must be updated with an empty batch. It holds the network: keep it out of module trees.

    Args:
        extractor: the network.
        count: images of the set, `N`.
        keep: whether to keep the features, which takes `4 N F` bytes on every process.

    Raises:
        ValueError: a count below 2.
    """

    total: Tensor
    products: Tensor
    indices: list[Tensor]
    vectors: list[Tensor]
    logits: list[Tensor]

    def __init__(self, extractor: FeatureExtractor, count: int, keep: bool = False) -> None:
        super().__init__(compute_with_cache=False)
        F = extractor.num_features
        if count < 2:
            raise ValueError(f"{count} image{'s' * (count != 1)} cannot be measured: a covariance needs at least 2")
        if count <= F:
            rank_zero_warn(
                f"{count} images for {F} features: their covariance is singular, which makes the Fréchet distance too "
                "large, the more so the fewer they are; compare it only with that of as many images"
            )
        self.extractor, self.count, self.keep = extractor, count, keep
        self.add_state("total", torch.zeros(F, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(F, F, dtype=torch.float64), dist_reduce_fx="sum")
        for rows in ("indices", "vectors", "logits"):
            self.add_state(rows, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, indices: Tensor) -> None:
        """Adds images uint8 `[B, c, h, w]` whose places in the set are `indices [B]`."""
        features = self.extractor(images)
        exact = features.double()
        self.total += exact.sum(dim=0)
        self.products += exact.T @ exact
        self.indices.append(indices)
        if self.keep:
            self.vectors.append(features)
        if (logits := self.extractor.logits(features)) is not None:
            self.logits.append(logits)

    def compute(self) -> Features:
        """What all processes have seen.

        Raises:
            ValueError: if an image was lost or came twice.
        """
        indices = dim_zero_cat(self.indices)
        times = torch.bincount(indices, minlength=self.count)
        if len(times) > self.count or not (times == 1).all():
            lost, again = int((times == 0).sum()), int((times > 1).sum())
            raise ValueError(f"of {self.count} images {lost} were lost and {again} came more than once: start again")
        order = indices.argsort()
        mu = self.total / self.count
        sigma = (self.products - self.count * torch.outer(mu, mu)) / (self.count - 1)
        return Features(mu, sigma, _ordered(self.vectors, order), _ordered(self.logits, order))


def _ordered(rows: list[Tensor], order: Tensor) -> Tensor | None:
    """Rows of all images in their order; `None` if none were kept."""
    return dim_zero_cat(rows)[order] if len(rows) else None
