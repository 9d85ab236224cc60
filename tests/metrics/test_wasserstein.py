"""The sliced Wasserstein distance, against closed forms."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from disa_framework.metrics.wasserstein import sliced_wasserstein

A, B = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0))


def test_it_is_a_distance_that_scales_with_the_points() -> None:
    assert sliced_wasserstein(A, A) == 0
    assert sliced_wasserstein(A, A.flip(0)) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(A, B) == sliced_wasserstein(B, A) > 0
    assert sliced_wasserstein(3 * A, 3 * B) == pytest.approx(3 * sliced_wasserstein(A, B), rel=1e-5)


@pytest.mark.parametrize("features", [1, 2, 5])
def test_a_shifted_set_is_as_far_as_the_shift_seen_from_a_random_direction(features: int) -> None:
    points = torch.randn(50, features, generator=torch.Generator().manual_seed(1)).double()
    shift = torch.full((features,), 2.0 / math.sqrt(features))
    # Mean of |u_1| for u uniform on the sphere.
    mean = math.gamma(features / 2) / (math.sqrt(math.pi) * math.gamma((features + 1) / 2))
    assert sliced_wasserstein(points, points + shift, projections=20_000) == pytest.approx(2 * mean, rel=0.02)


def test_in_one_dimension_it_is_the_wasserstein_distance() -> None:
    a, b = A[:, :1], 2 * B[:, :1] + 1
    assert sliced_wasserstein(a, b) == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [(A, B[:-1]), (A, B[:, :-1]), (A, B[None]), (A[0], B[0])],
    ids=["count", "width", "axes", "points"],
)
def test_sets_that_do_not_compare_are_refused(one: torch.Tensor, other: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"two sets \[S, F\] of one shape"):
        sliced_wasserstein(one, other)
