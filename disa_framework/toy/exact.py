"""The distance of drawn latents from a distribution that is known exactly.

Letters: `B` images, `S` samples, `F` numbers of a sample, `M` components, `P` directions.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from disa_framework.metrics.quality import Quality
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition
from disa_framework.tokenizers import Tokenizer
from disa_framework.toy.mixture import MixtureAR

_REACH = 8.0  # standard deviations
_PLACES = 4096


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
        truth = ProjectedMixture.of(model, condition, self.projections, self.seed)
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

    @classmethod
    def of(
        cls, model: MixtureAR, condition: Condition | None = None, projections: int = 256, seed: int = 0
    ) -> ProjectedMixture:
        """What a model draws if it is asked for a condition, seen along random directions."""
        asked = condition.to(model.device) if isinstance(condition, Tensor) else None
        weights = model.component_weights(asked, 1 if asked is None else len(asked)).mean(dim=0)
        generator = Generator().manual_seed(seed)
        directions = torch.randn(projections, model.means.shape[1], generator=generator, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        return cls(weights.double().cpu(), model.means.cpu(), model.cholesky.cpu(), directions)

    def quantiles(self, count: int) -> Tensor:
        """At the shares `(i + 1/2) / count`, `[P, count]`."""
        if count not in self._quantiles:
            asked = (torch.arange(count, dtype=torch.float64) + 0.5) / count
            asked = asked.expand(len(self._shares), -1).contiguous()
            right = torch.searchsorted(self._shares, asked).clamp(1, _PLACES - 1)
            s0, s1, x0, x1 = (rows.gather(1, at) for rows in (self._shares, self._places) for at in (right - 1, right))
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
