"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

Letters: `R` real images, `S` samples, `F` features.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEIGHBORS = 3  # as published
_ROWS = 1024  # of distances that are held together


def precision_recall(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """The share of samples on the manifold of real images, and of real images on the manifold of samples.

    A manifold is a union of balls, one around every image, that reach its third nearest neighbor (equation 1).

    Args:
        real: features `[R, F]`.
        samples: features `[S, F]`.

    Raises:
        ValueError: a set of three or fewer.
    """
    if min(len(real), len(samples)) <= _NEIGHBORS:
        raise ValueError(
            f"precision and recall look at {_NEIGHBORS} neighbors of every image: there must be more than "
            f"{_NEIGHBORS} images, got {len(real)} real ones and {len(samples)} samples"
        )
    return _share_inside(samples, real), _share_inside(real, samples)


def _share_inside(points: Tensor, centers: Tensor) -> float:
    """The share of points that lie in a ball around one of the centers."""
    # The nearest of all is the center itself.
    radii = torch.cat([torch.cdist(rows, centers).kthvalue(_NEIGHBORS + 1).values for rows in centers.split(_ROWS)])
    inside = [(torch.cdist(rows, centers) <= radii).any(dim=1) for rows in points.split(_ROWS)]
    return torch.cat(inside).double().mean().item()
