"""Precision and recall are what the paper's definition says, point by point."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from disa_framework.metrics.precision_recall import precision_recall


def points(count: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def share_inside(among: Tensor, centers: Tensor) -> float:
    """Equation 2 with two loops."""
    radii = [sorted((center - other).norm().item() for other in centers)[3] for center in centers]
    inside = [any((p - c).norm() <= r for c, r in zip(centers, radii, strict=True)) for p in among]
    return sum(inside) / len(inside)


def test_it_is_the_definition() -> None:
    real, samples = points(60, 0), points(40, 1, scale=1.5)
    precision, recall = precision_recall(real, samples)
    assert (precision, recall) == (share_inside(samples, real), share_inside(real, samples))
    assert 0.2 < precision < 1 and recall > 0.2


def test_the_same_set_is_wholly_covered_and_one_far_off_is_not() -> None:
    real = points(50, 0)
    assert precision_recall(real, real.flip(0)) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)


def test_samples_that_collapse_are_precise_but_recall_little() -> None:
    real = points(200, 0)
    precision, recall = precision_recall(real, real[0] + points(50, 1, scale=0.01))
    assert precision == 1 and recall < 0.1


def test_sets_of_several_portions_are_compared_as_a_whole() -> None:
    real, samples = points(2500, 0).double(), points(1100, 1, scale=2).double()
    own, across = torch.cdist(real, real), torch.cdist(samples, real)
    expected = (across <= own.kthvalue(4).values).any(dim=1).double().mean().item()
    assert 0.2 < expected < 0.8
    assert precision_recall(real, samples)[0] == pytest.approx(expected, abs=1e-3)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 3 images, got 3 real ones and 9 samples"):
        precision_recall(points(3, 0), points(9, 0))
