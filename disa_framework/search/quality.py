"""What a study makes small: a distance between the images that are drawn and those that should be.

Letters: `B` images, `S` samples, `F` numbers of a sample, `M` components, `P` directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from lightning import LightningDataModule
from torch import Generator, Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from disa_framework.metrics import FeatureExtractor, to_uint8
from disa_framework.metrics.fid import fid, load_statistics, reference_statistics, set_reference
from disa_framework.models import MixtureAR, Tokenizer
from disa_framework.models.base import Condition
from disa_framework.module import ARDiffusionModule

_CHUNK = 1024
_REACH = 8.0  # standard deviations
_PLACES = 4096


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
        reference: a data module that gives its `reference_images`, or an `.npz` file with `mu` and `sigma`.
    """

    def __init__(self, features: FeatureExtractor, reference: LightningDataModule | str) -> None:
        if not isinstance(reference, str) and not hasattr(reference, "reference_images"):
            raise ValueError(f"{type(reference).__name__} has no reference_images: give an .npz with mu and sigma")
        self.features, self.reference = features, reference

    def metric(self, module: ARDiffusionModule, condition: Condition | None) -> Metric:
        metric = fid(self.features)
        if isinstance(self.reference, str):
            mu, sigma = load_statistics(self.reference)
        else:
            for images in self.reference.reference_images().split(_CHUNK):
                metric.update(images, real=True)
            mu, sigma = reference_statistics(metric)
        set_reference(metric, mu, sigma)
        return metric

    def update(self, metric: Metric, images: Tensor) -> None:
        metric.update(to_uint8(images), real=False)


class SlicedWasserstein(Quality):
    """The sliced Wasserstein distance between latents and the exact distribution, which `MixtureAR` knows.

    Args:
        projections: number of directions.
        seed: of the directions.
    """

    def __init__(self, projections: int = 256, seed: int = 0) -> None:
        self.projections, self.seed = projections, seed

    def metric(self, module: ARDiffusionModule, condition: Condition | None) -> Metric:
        model = module.model
        if not isinstance(model, MixtureAR):
            raise ValueError(f"{type(model).__name__} does not know its exact distribution, as MixtureAR does: use FID")
        asked = condition if isinstance(condition, Tensor) else None
        weights = model.component_weights(asked, 1 if asked is None else len(asked)).mean(dim=0)
        generator = Generator().manual_seed(self.seed)
        directions = torch.randn(self.projections, model.means.shape[1], generator=generator, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        truth = ProjectedMixture(weights.double(), model.means, model.cholesky, directions)
        return _Distance(truth, module.tokenizer)

    def update(self, metric: Metric, images: Tensor) -> None:
        metric.update(images)


class ProjectedMixture:
    """A mixture of Gaussians with one covariance, seen along directions, where it is a mixture of numbers.

    Args:
        weights: `[M]`, adding up to 1.
        means: `[M, F]`.
        cholesky: `[F, F]`, factor of the covariance.
        directions: `[P, F]` of length 1.
    """

    def __init__(self, weights: Tensor, means: Tensor, cholesky: Tensor, directions: Tensor) -> None:
        self.directions = directions
        centers = directions @ means.T  # [P, M]
        deviation = (directions @ cholesky).norm(dim=1, keepdim=True)  # [P, 1]
        low = centers.amin(dim=1, keepdim=True) - _REACH * deviation
        high = centers.amax(dim=1, keepdim=True) + _REACH * deviation
        self._places = torch.lerp(low, high, torch.linspace(0, 1, _PLACES, dtype=low.dtype))  # [P, places]
        self._shares = torch.zeros_like(self._places)  # distribution function
        for weight, center in zip(weights, centers.T, strict=True):
            self._shares += weight * torch.special.ndtr((self._places - center[:, None]) / deviation)
        self._quantiles: dict[int, Tensor] = {}

    def quantiles(self, count: int) -> Tensor:
        """At the shares `(i + 1/2) / count`, `[P, count]`."""
        if count not in self._quantiles:
            asked = (torch.arange(count, dtype=torch.float64) + 0.5) / count
            asked = asked.expand(len(self._shares), -1).contiguous()
            right = torch.searchsorted(self._shares, asked).clamp(1, _PLACES - 1)
            s0, s1, x0, x1 = (
                rows.gather(1, at) for rows in (self._shares, self._places) for at in (right - 1, right)
            )
            self._quantiles[count] = torch.lerp(x0, x1, (asked - s0) / (s1 - s0))
        return self._quantiles[count]

    def distance(self, points: Tensor) -> float:
        """Mean 1-Wasserstein distance over the directions to points `[S, F]`."""
        along = (self.directions @ points.to(self.directions).T).sort(dim=1).values
        return (along - self.quantiles(len(points))).abs().mean().item()


class _Distance(Metric):
    """Keeps the latents, which are a few numbers each."""

    points: list[Tensor]

    def __init__(self, truth: ProjectedMixture, tokenizer: Tokenizer) -> None:
        super().__init__(compute_with_cache=False)
        self.truth, self.encode = truth, tokenizer.encode
        self.add_state("points", [], dist_reduce_fx="cat")

    def update(self, images: Tensor) -> None:
        self.points.append(self.encode(images).flatten(1))

    def compute(self) -> Tensor:
        return torch.tensor(self.truth.distance(dim_zero_cat(self.points)))
