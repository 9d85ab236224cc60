"""The distance from a known distribution is exact, and vanishes for its own samples."""

from __future__ import annotations

import math

import pytest
import torch

from disa_framework.module import ARDiffusionModule
from disa_framework.tokenizers import Identity
from disa_framework.toy.exact import ProjectedMixture, SlicedWasserstein
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar


def test_the_distance_of_a_normal_is_that_to_its_quantiles() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    truth = ProjectedMixture(one[0], 3 * one, 2 * one, one)
    shares = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    points = 3 + 2 * torch.special.ndtri(shares)[:, None]
    assert truth.distance(points) < 1e-4
    assert truth.distance(points + 0.5) == pytest.approx(0.5, abs=1e-4)
    assert truth.distance(3 + (points - 3) * 2) == pytest.approx(2 * math.sqrt(2 / math.pi), abs=3e-3)  # E|N(0, 2)|


def test_the_distance_of_true_samples_vanishes_with_their_number() -> None:
    model = MixtureAR(num_classes=2)
    module = ARDiffusionModule(model, tokenizer=Identity(4.0))
    labels = torch.arange(16_000) % 2
    quality = SlicedWasserstein(64)
    found = []
    for count in (1000, 16_000):
        metric = quality.metric(module, labels)
        points = model.sample_exactly(count, torch.Generator().manual_seed(1), labels[:count])
        for part in points.split(700):
            quality.update(metric, module.tokenizer.decode(part))
        found.append(metric.compute().item())
    assert 2.5 < found[0] / found[1] < 6 and found[1] < 0.015  # one over the root of the number
    skewed = model.sample_exactly(16_000, torch.Generator().manual_seed(1), torch.zeros_like(labels))
    metric = quality.metric(module, labels)
    quality.update(metric, module.tokenizer.decode(skewed))
    assert metric.compute() > 0.1


def test_a_model_that_does_not_know_its_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="MAR does not know its exact dist"):
        SlicedWasserstein().metric(ARDiffusionModule(tiny_mar()), None)
