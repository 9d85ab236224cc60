"""What the features of a set of images come to, over all processes that read or draw them.

The metrics hold a network, so keep them out of module trees: state dicts, weight averages and DDP would copy it.
Letters: `B` images, `N` images of the whole set, `F` features, `C` classes, `c h w` pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from disa_framework.metrics.features import FeatureExtractor

_CHUNK = 1024


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


class FeatureSums(Metric):
    """Sums of features and of their products, in float64. Subclass, and call `add` from `update`.

    Args:
        extractor: the network.
    """

    number: Tensor
    total: Tensor
    products: Tensor
    broken: Tensor

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__(compute_with_cache=False)
        F = extractor.num_features
        self.extractor = extractor
        self.add_state("number", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(F, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(F, F, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("broken", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, images: Tensor) -> Tensor:
        """Adds images uint8 `[B, c, h, w]`, and returns their features `[B, F]`."""
        features = self.extractor(images)
        exact = features.double()
        self.number += len(exact)
        self.total += exact.sum(dim=0)
        self.products += exact.T @ exact
        self.broken += (~exact.isfinite()).any(dim=1).sum()
        return features

    def statistics(self) -> Features:
        """Mean and covariance of what has been added.

        Raises:
            ValueError: fewer than 2 images, or features that are no numbers.
        """
        count = int(self.number)
        _check(count, int(self.broken))
        mu = self.total / count
        return Features(mu, (self.products - count * torch.outer(mu, mu)) / (count - 1))


class FeatureSet(FeatureSums):
    """The features of a set of images, every one of which has to come once, on all processes together.

    Mean and covariance are kept as sums; logits, which are few, and on request the features are kept in the order
    of the images, so that the result does not depend on which process had which image. A process that has no images
    must be updated with an empty batch.

    Args:
        extractor: the network.
        count: images of the set, `N`.
        keep: whether to keep the features, which takes `4 N F` bytes on every process.

    Raises:
        ValueError: a count below 2.
    """

    indices: list[Tensor]
    vectors: list[Tensor]
    logits: list[Tensor]

    def __init__(self, extractor: FeatureExtractor, count: int, keep: bool = False) -> None:
        super().__init__(extractor)
        _check(count)
        self.count, self.keep = count, keep
        for rows in ("indices", "vectors", "logits"):
            self.add_state(rows, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, indices: Tensor) -> None:
        """Adds images uint8 `[B, c, h, w]` whose places in the set are `indices [B]`."""
        features = self.add(images)
        self.indices.append(indices)
        if self.keep:
            self.vectors.append(features)
        if (logits := self.extractor.logits(features)) is not None:
            self.logits.append(logits)

    def compute(self) -> Features:
        """What all processes have seen.

        Raises:
            ValueError: if an image was lost or came twice, or has features that are no numbers.
        """
        indices = dim_zero_cat(self.indices)
        times = torch.bincount(indices, minlength=self.count)
        if len(times) > self.count or not (times == 1).all():
            lost, again = int((times == 0).sum()), int((times > 1).sum())
            raise ValueError(f"of {self.count} images {lost} were lost and {again} came more than once: start again")
        order = indices.argsort()
        return self.statistics()._replace(vectors=_ordered(self.vectors, order), logits=_ordered(self.logits, order))


@torch.no_grad()
def features_of(extractor: FeatureExtractor, images: Tensor) -> Features:
    """All that is known of images uint8 `[N, c, h, w]` at hand, on this process alone.

    Raises:
        ValueError: fewer than 2 images, or features that are no numbers.
    """
    vectors = torch.cat([extractor(part) for part in images.split(_CHUNK)])
    _check(len(vectors), int((~vectors.isfinite()).any(dim=1).sum()))
    exact = vectors.double()
    return Features(exact.mean(dim=0), torch.cov(exact.T), vectors, extractor.logits(vectors))


def _check(count: int, broken: int = 0) -> None:
    if count < 2:
        raise ValueError(f"{count} image{'s' * (count != 1)} cannot be measured: a covariance needs at least 2")
    if broken:
        raise ValueError(f"{broken} of {count} images have NaN or infinite features: check the network's weights")


def _ordered(rows: list[Tensor], order: Tensor) -> Tensor | None:
    """Rows of all images in their order; `None` if none were kept."""
    return dim_zero_cat(rows)[order] if len(rows) else None
