from __future__ import annotations

import math

import pytest
import torch

from disa_framework import SamplingConfig
from disa_framework.diagnostics import Diagnosis, Probe, diagnose
from disa_framework.diagnostics.entropy import conditional_entropy, gaussian_entropy, mixture_entropy
from disa_framework.module import ARDiffusionModule
from disa_framework.nn.mixture_head import MixtureHead
from disa_framework.schedules import Constant
from disa_framework.solvers import Components
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import begin, tiny_mar


def normal_entropy(variance: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * variance)


@pytest.mark.parametrize(
    ("shares", "means", "variance"),
    [
        ([1.0], [5.0], 0.03),
        ([0.2, 0.3, 0.5], [-6.0, 0.0, 9.0], 0.04),  # components that do not meet add the entropy of their shares
        ([0.25] * 4, [2.0] * 4, 0.5),  # components that coincide are one
    ],
)
def test_the_entropy_of_components_that_are_apart_or_one(
    shares: list[float], means: list[float], variance: float
) -> None:
    found = mixture_entropy(torch.tensor([shares]).log() - 70, torch.tensor([means]).double(), torch.tensor(variance))
    choice = -sum(share * math.log(share) for share in shares) if len(set(means)) > 1 else 0
    assert found.item() == pytest.approx(normal_entropy(variance) + choice, abs=1e-5)


def test_conditional_entropies_of_a_gaussian_add_up_to_that_of_all_tokens() -> None:
    model = MixtureAR(6, 1)
    by_stage = conditional_entropy(model, 6, None, 3)
    logdet = 2 * model.cholesky.diagonal().log().sum().item()
    assert sum(by_stage) == pytest.approx(0.5 * (6 * math.log(2 * math.pi * math.e) + logdet), abs=1e-6)
    assert by_stage == sorted(by_stage, reverse=True)


def test_tokens_of_one_stage_do_not_know_each_other() -> None:
    model = MixtureAR(6, 1)
    assert conditional_entropy(model, 1, None, 3) == pytest.approx([normal_entropy(0.06)], abs=1e-6)


def test_entropy_falls_with_the_stage() -> None:
    found = conditional_entropy(MixtureAR(), 16, None, 200)
    assert Diagnosis({"entropy": {"entropy": found}}).trend("entropy") < -0.9 and found[0] > found[-1] + 1


def test_a_class_leaves_less_to_know() -> None:
    model = MixtureAR(4, 8, num_classes=8)
    known = conditional_entropy(model, 4, torch.zeros(50, dtype=torch.long), 50)
    assert known[0] == pytest.approx(normal_entropy(0.06), abs=1e-6)
    assert conditional_entropy(model, 4, None, 50)[0] > known[0] + 0.5


@pytest.mark.parametrize("repeats", [2, 5, 12])
def test_the_estimate_is_right_for_gaussians_however_few_the_repeats(repeats: int) -> None:
    draws = 0.3 * torch.randn(repeats, 40_000, generator=torch.Generator().manual_seed(0))
    assert gaussian_entropy(draws.var(dim=0), repeats) == pytest.approx(normal_entropy(0.09), abs=0.03)


def test_what_a_mixture_head_draws_is_as_surprising_as_its_entropy_and_less_if_it_is_cool() -> None:
    model, labels = tiny_mar(components=1), torch.arange(600) % 3
    found: list[float] = []
    for temperature in (1.0, 0.5):
        module = ARDiffusionModule(model, SamplingConfig(Constant(1), Components(temperature), 1))
        diagnosis = diagnose(module, labels, ["entropy", "straightness"], Probe(repeats=2))
        assert diagnosis.columns["straightness"] == pytest.approx([1.0], abs=1e-5)
        found += diagnosis.columns["entropy"]
    z = model.propose(begin(model, labels[:3], solver=Components(), num_stages=1), 0).z
    assert isinstance(model.head, MixtureHead) and z is not None
    exact = normal_entropy(1.0) + model.head(z).log_scales.mean().item()
    assert found == pytest.approx([exact, exact - 0.5 * (1 - 0.5**2)], abs=0.02)


def test_one_draw_has_no_variance() -> None:
    with pytest.raises(ValueError, match="at least 2 repeats, got 1"):
        gaussian_entropy(torch.ones(3), 1)
