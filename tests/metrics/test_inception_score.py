"""The Inception Score is the published definition over the same splits every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from disa_framework.metrics import inception_score


def drawn(count: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(count, 7, generator=torch.Generator().manual_seed(1))


def as_published(logits: Tensor) -> tuple[float, float]:
    """Salimans et al.'s own code, over ten splits in a random order."""
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    probabilities = logits.double()[order].softmax(dim=1).numpy()
    scores, splits = [], 10
    for i in range(splits):
        part = probabilities[i * len(logits) // splits : (i + 1) * len(logits) // splits]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize("count", [10, 25, 200])
def test_it_is_the_definition_and_leaves_the_global_random_state(count: int) -> None:
    before = torch.get_rng_state()
    assert inception_score(drawn(count)) == pytest.approx(as_published(drawn(count)), rel=1e-9)
    assert torch.equal(torch.get_rng_state(), before)


def test_its_bounds_are_one_and_the_number_of_classes() -> None:
    assert inception_score(torch.zeros(50, 7)) == pytest.approx((1, 0))
    certain = 1e4 * torch.eye(7).repeat(700, 1)  # so sure that probabilities are 0 and 1
    assert inception_score(certain)[0] == pytest.approx(7, rel=0.02)
    assert inception_score(drawn(3)) == pytest.approx((1, 0))  # fewer images than splits
