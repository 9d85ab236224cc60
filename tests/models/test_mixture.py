"""The mixture is an oracle: its head is exact, so schedules and solvers can be judged by its samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance
from disa_framework.metrics.wasserstein import sliced_wasserstein
from disa_framework.sampling.order import HaltonOrder, RandomOrder, TokenOrder
from disa_framework.schedules import Constant
from disa_framework.solvers import DDIM, DDPM, Euler, Heun, Process, RectifiedFlow, Solver, Spaced, VPCosine
from disa_framework.toy.mixture import MixtureAR, exact_posterior
from examples.mixture import FLOOR, SCHEDULES, distances
from tests.models.tiny import begin, draw


def samples_of(model: MixtureAR, count: int, steps: int, solver: Solver, **options: Any) -> Tensor:
    """Samples `[count, N]`."""
    return draw(model, **{"batch_size": count, "schedule": Constant(steps), "solver": solver, **options}).flatten(1)


def moments(model: MixtureAR) -> tuple[Tensor, Tensor]:
    """True mean `[N]` and covariance `[N, N]`."""
    between = torch.cov(model.means.T, correction=0)
    return model.means.mean(dim=0), between + model.cholesky @ model.cholesky.T


def assert_moments(samples: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Within five standard errors, for which a covariance is taken as that of a normal."""
    samples, variance = samples.double(), covariance.diagonal()
    error = (variance / len(samples)).sqrt()
    assert ((samples.mean(dim=0) - mean).abs() < 5 * error).all()
    error = ((variance[:, None] * variance + covariance**2) / len(samples)).sqrt()
    assert ((torch.cov(samples.T) - covariance).abs() < 5 * error).all()


# --- exactness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.05), (0.8, 0.6), (0.3, 0.7), (0.05, 1.0)])
def test_the_head_is_the_posterior_mean_that_integration_gives(alpha: float, sigma: float) -> None:
    log_weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
    mean = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    variance = torch.tensor([0.06, 0.3], dtype=torch.float64)
    x = torch.tensor([[0.2, -1.0], [1.5, 0.4]], dtype=torch.float64)

    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    prior = log_weights[..., None, None] - 0.5 * (grid - mean[..., None]) ** 2 / variance[:, None]
    log_density = prior.logsumexp(dim=1) - 0.5 * (x[..., None] - alpha * grid) ** 2 / sigma**2
    density = log_density.softmax(dim=-1)  # [B, n, grid]
    clean = (density * grid).sum(dim=-1)

    got_clean, got_noise = exact_posterior(x, log_weights.T[..., None], mean.transpose(0, 1), variance, alpha, sigma)
    torch.testing.assert_close(got_clean, clean, rtol=0, atol=1e-6)
    torch.testing.assert_close(got_noise, (x - alpha * clean) / sigma, rtol=0, atol=1e-6 / sigma)


@pytest.mark.parametrize(
    ("process", "solver", "steps"),
    [
        (VPCosine(), DDPM(Spaced()), 200),
        (VPCosine(), DDIM(Spaced()), 200),
        (RectifiedFlow(), Euler(), 200),
        (RectifiedFlow(), Heun(), 100),
    ],
    ids=["DDPM", "DDIM", "Euler", "Heun"],
)
def test_tokens_drawn_one_by_one_in_many_steps_have_the_joint_distribution(
    process: Process, solver: Solver, steps: int
) -> None:
    model = MixtureAR(num_tokens=5, num_components=4, process=process)
    samples = samples_of(model, 4000, steps, solver)
    assert_moments(samples, *moments(model))
    truth = model.sample_exactly(4000, torch.Generator().manual_seed(0)).flatten(1)
    assert sliced_wasserstein(samples, truth) < 0.05


@pytest.mark.parametrize("order", [HaltonOrder(), RandomOrder()], ids=str)
def test_in_any_order_they_do_too(order: TokenOrder) -> None:
    model = MixtureAR(num_tokens=5, num_components=4)
    samples = samples_of(model, 4000, 100, DDPM(Spaced()), order=order)
    assert_moments(samples, *moments(model))
    truth = model.sample_exactly(4000, torch.Generator().manual_seed(0)).flatten(1)
    assert sliced_wasserstein(samples, truth) < 0.05


def test_true_samples_have_the_mixture_s_moments() -> None:
    model = MixtureAR(num_tokens=5, num_components=4)
    samples = model.sample_exactly(20_000, torch.Generator().manual_seed(0))
    assert samples.shape == (20_000, 1, 1, 5)
    assert_moments(samples.flatten(1), *moments(model))


def test_tokens_of_one_stage_are_independent_of_each_other() -> None:
    model = MixtureAR(num_tokens=5, num_components=4)
    mean, covariance = moments(model)
    samples = samples_of(model, 4000, 200, DDPM(Spaced()), num_stages=1)
    assert_moments(samples, mean, covariance.diagonal().diag())


@pytest.mark.parametrize("num_stages", range(1, 8))
def test_stages_divide_the_tokens_evenly(num_stages: int) -> None:
    model = MixtureAR(num_tokens=7)
    ends = begin(model, num_stages=num_stages).ends
    sizes = [end - start for start, end in pairwise((0, *ends))]
    assert sum(sizes) == 7
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)


# --- schedules --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distance() -> dict[str, float]:
    return distances(MixtureAR(), 20_000, seed=0)


def test_no_schedule_beats_true_samples(distance: dict[str, float]) -> None:
    assert set(distance) == {FLOOR, *SCHEDULES}
    assert all(distance[name] > 1.5 * distance[FLOOR] for name in SCHEDULES)


def test_annealing_costs_nearly_nothing(distance: dict[str, float]) -> None:
    assert sum(SCHEDULES["linear 50→5"].budget(16)) < 0.6 * sum(SCHEDULES["constant 50"].budget(16))
    assert distance["linear 50→5"] < 1.25 * distance["constant 50"]


@pytest.mark.parametrize(
    ("worse", "better", "factor"),
    [
        ("reversed 5→50", "linear 50→5", 3),
        ("3 early, 50 late", "50 early, 3 late", 4),
        ("constant 5", "linear 50→5", 3),
    ],
)
def test_early_stages_need_the_steps(distance: dict[str, float], worse: str, better: str, factor: float) -> None:
    assert distance[worse] > factor * distance[better]


# --- classes ----------------------------------------------------------------------------------------------


def class_posterior(model: MixtureAR, samples: Tensor, label: int) -> Tensor:
    """`p(label | x)`, `[B]`, under the true mixture."""
    offset = samples.double()[:, None] - model.means
    whitened = torch.linalg.solve_triangular(model.cholesky, offset.mT, upper=False)
    share = (-0.5 * whitened.square().sum(dim=1)).softmax(dim=1)
    return share[:, label :: model.num_classes].sum(dim=1)


def test_a_class_is_the_mixture_of_its_own_components() -> None:
    model = MixtureAR(num_tokens=3, num_components=4, num_classes=2)
    labels = torch.tensor([0, 1]).repeat(3000)
    drawn = samples_of(model, 6000, 50, DDPM(), condition=labels)
    truth = model.sample_exactly(6000, torch.Generator().manual_seed(0), labels).flatten(1)
    for label in (0, 1):
        own = sliced_wasserstein(drawn[labels == label], truth[labels == label])
        assert own < 0.25 * sliced_wasserstein(drawn[labels == label], truth[labels != label])


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_guidance_sharpens_towards_the_class(schedule: Any) -> None:
    model = MixtureAR(num_tokens=2, num_components=32, num_classes=2)
    labels = torch.zeros(1000, dtype=torch.int64)

    def certainty(scale: float) -> float:
        guided = samples_of(model, 1000, 50, DDPM(), condition=labels, guidance=Guidance(scale, schedule))
        return class_posterior(model, guided, 0).mean().item()

    assert certainty(0.0) < 0.6
    assert certainty(1.0) + 0.03 < certainty(2.0) < certainty(4.0)


# --- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [0, 9])
def test_a_class_without_components_is_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=rf"num_classes must lie in 1 … 8.* got {num_classes}"):
        MixtureAR(num_components=8, num_classes=num_classes)


def test_a_process_with_learned_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="no variance"):
        MixtureAR(process=VPCosine(learns_variance=True))


def test_the_means_are_a_function_of_the_seed() -> None:
    assert torch.equal(MixtureAR(seed=3).means, MixtureAR(seed=3).means)
    assert not torch.equal(MixtureAR(seed=3).means, MixtureAR(seed=4).means)
