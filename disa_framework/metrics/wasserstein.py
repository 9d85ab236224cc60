"""Distance between two sets of points, for models whose samples are vectors rather than images."""

from __future__ import annotations

import torch
from torch import Tensor


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256) -> float:
    """Mean 1-Wasserstein distance over random directions, always the same ones (Rabin et al., 2011).

    Args:
        a, b: `[S, F]` samples, as many of one as of the other.
        projections: number of directions.

    Raises:
        ValueError: if the sets differ in shape.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"need two sets [S, F] of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(a.shape[1], projections, generator=generator).to(a)
    directions = directions / directions.norm(dim=0)
    sorted_a, sorted_b = ((points @ directions).sort(dim=0).values for points in (a, b))
    return (sorted_a - sorted_b).abs().mean().item()
