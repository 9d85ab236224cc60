"""Mixture heads: their density, what is drawn of it with how many components, guidance, and that they learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.models import ARDiffusionModel, CausalAR
from disa_framework.nn.mixture_head import GaussianMixture, MixtureHead
from disa_framework.schedules import Constant, PerStage
from disa_framework.solvers import DDPM, Components
from tests.models.tiny import begin, calls, share_left, tiny_mar

TABLE = json.loads((Path(__file__).parents[1] / "golden/data/givt_table.json").read_text())["cases"]
MANY = 40_000
LABELS = torch.tensor([0, 2])


def numbers(row: Any) -> Tensor:
    return torch.tensor(row, dtype=torch.float64)


def random_mixture(*axes: int, components: int = 5, channels: int = 2, seed: int = 0) -> GaussianMixture:
    raw = torch.randn(*axes, components * (1 + 2 * channels), generator=torch.Generator().manual_seed(seed))
    return GaussianMixture.read(raw.double(), channels)


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def fixed_head(components: int = 5, channels: int = 2, least_scale: float = 1e-6) -> MixtureHead:
    """A head whose densities do not look at `z`."""
    head = MixtureHead(channels, 3, 1, 4, components, least_scale).double()
    with torch.no_grad():
        head.net[-1].weight.zero_()  # type: ignore[operator]
        head.net[-1].bias.copy_(normals(components * (1 + 2 * channels)))  # type: ignore[operator]
    return head


def drawn(head: MixtureHead, used: int, temperature: float = 1.0) -> Tensor:
    """Tokens `[1, MANY, D]`."""
    denoise = head.denoiser(torch.zeros(1, MANY, 3, dtype=torch.float64), 1.0, Guidance())

    def normal(draws: int, dtype: torch.dtype) -> Tensor:
        return normals(draws, 1, MANY, head.channels).to(dtype)

    with torch.no_grad():
        return Components(temperature).sample(denoise, head.process, used, normal, torch.float64)


def moments(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Mean and variance `[..., D]`."""
    weights = mixture.log_weights.exp()[..., None]
    mean = (weights * mixture.means).sum(-2)
    return mean, (weights * (mixture.means.square() + (2 * mixture.log_scales).exp())).sum(-2) - mean.square()


# --- the density ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case['mixtures']} components")
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_published_formulas(case: dict[str, Any], precision: torch.dtype) -> None:
    raw, x, M = numbers(case["raw_conditional"]).to(precision), numbers(case["x"]), case["mixtures"]
    tolerance = 1e-4 if precision == torch.float32 else 1e-9
    mixture = GaussianMixture.read(raw, case["channels"])

    def same(found: Tensor, name: str) -> None:
        torch.testing.assert_close(found.double(), numbers(case[name]), rtol=tolerance, atol=tolerance)

    same(mixture.log_weights, "log_weights")
    same(mixture.log_density(x.to(precision)), "log_likelihood")
    for found, name in zip(moments(mixture), ("mean", "variance"), strict=True):
        same(found, name)
    raw = torch.cat((case["temperature_probs"] * raw[:, :M], raw[:, M:]), dim=-1)
    cool = GaussianMixture.read(raw, case["channels"])
    cool = GaussianMixture(cool.log_weights, cool.means, cool.log_scales + math.log(case["temperature_scales"]))
    same(cool.log_density(x.to(precision)), "log_likelihood_with_temperatures")
    mean, log_scale = cool.component(numbers(case["component_uniform"]).to(precision))
    same(mean + log_scale.exp() * numbers(case["normal"]), "sample")


@pytest.mark.parametrize("channels", [1, 2])
def test_the_density_integrates_to_one(channels: int) -> None:
    line = torch.linspace(-30, 30, 3001, dtype=torch.float64)
    mixture = random_mixture(components=3, channels=channels)
    places = torch.cartesian_prod(*[line] * channels).view(-1, channels)
    share = sum(mixture.log_density(part).exp().sum() for part in places.split(500_000))
    assert float(share) * 0.02**channels == pytest.approx(1, abs=1e-6)


def test_scales_are_square_plus_and_have_a_floor() -> None:
    raw = torch.tensor([-1e9, -3000.0, -1.0, 0.0, 2.0, 500.0], dtype=torch.float64)
    rows = torch.stack((torch.zeros_like(raw), torch.zeros_like(raw), raw), dim=-1)
    expected = ((raw + (raw.square() + 4).sqrt()) / 2).clamp(min=1e-6)
    torch.testing.assert_close(
        GaussianMixture.read(rows, 1).log_scales.exp().flatten(), expected, rtol=1e-6, atol=0
    )  # which the formula itself loses, far below 0
    assert GaussianMixture.read(rows, 1, 0.1).log_scales.exp().min().item() == pytest.approx(0.1)


def test_the_loss_of_one_component_is_that_of_a_gaussian() -> None:
    head, x = fixed_head(components=1), normals(7, 2)
    mean, raw = head.net[-1].bias[1:].chunk(2)  # type: ignore[index]
    gaussian = torch.distributions.Normal(mean, (raw + (raw.square() + 4).sqrt()) / 2)
    expected = -gaussian.log_prob(x).sum(-1)
    torch.testing.assert_close(head.loss(x, torch.zeros(7, 3).double()), expected)


# --- drawing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [1, 2, 5, 50])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_have_the_moments_of_the_components_that_are_used(used: int, temperature: float) -> None:
    head = fixed_head()
    mixture = head(torch.zeros(3, dtype=torch.float64)).largest(used)
    cool = GaussianMixture(mixture.log_weights, mixture.means, mixture.log_scales + math.log(temperature))
    mean, variance = moments(cool)
    tokens = drawn(head, used, temperature)[0]
    assert ((tokens.mean(0) - mean).abs() < 5 * (variance / MANY).sqrt()).all()
    torch.testing.assert_close(tokens.var(0), variance, rtol=0.05, atol=0)


def test_the_surprise_of_what_is_drawn_is_the_entropy() -> None:
    head = fixed_head()
    mixture = head(torch.zeros(3, dtype=torch.float64))
    estimate = -mixture.log_density(drawn(head, 5)[0]).mean().item()
    within = 0.5 * math.log(2 * math.pi * math.e) * 2 + mixture.log_scales.sum(-1)
    lower = (mixture.log_weights.exp() * within).sum().item()
    assert lower < estimate < lower - (mixture.log_weights.exp() * mixture.log_weights).sum().item()
    one = fixed_head(components=1)
    of_one = one(torch.zeros(3, dtype=torch.float64))
    exact = math.log(2 * math.pi * math.e) + of_one.log_scales.sum().item()
    assert -of_one.log_density(drawn(one, 1)[0]).mean().item() == pytest.approx(exact, abs=0.03)


def test_all_components_are_the_mixture_and_fewer_are_those_of_largest_weight() -> None:
    mixture = random_mixture(4)
    assert mixture.largest(5) is mixture and mixture.largest(9) is mixture
    two = mixture.largest(2)
    kept = mixture.log_weights.exp().sort(descending=True).values[:, :2]
    found = two.log_weights.exp()
    torch.testing.assert_close(found.sum(-1), torch.ones(4).double())
    torch.testing.assert_close(found.sort(descending=True).values, kept / kept.sum(-1, keepdim=True))
    at_means = mixture.log_weights.argmax(-1)
    torch.testing.assert_close(mixture.largest(1).means[:, 0], mixture.means[torch.arange(4), at_means])


@pytest.mark.parametrize("model", [tiny_mar(components=4), tiny_mar(latent_size=8, components=1)], ids=["4", "1"])
def test_a_token_costs_one_evaluation_whatever_the_number_of_components(model: ARDiffusionModel) -> None:
    for schedule in (Constant(1), Constant(50), PerStage((4, 3, 2, 1))):
        sampling = model.settle(SamplingConfig(schedule, Components(), 4))
        assert sampling.evaluations(model.process) == 4
        with calls(model.head.net) as seen:  # type: ignore[union-attr, arg-type]
            generate(model, LABELS, sampling)
        assert len(seen) == 4 and sum(z.shape[1] for z in seen) == model.max_stages


def test_another_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="use Components"):
        tiny_mar(components=4).settle(SamplingConfig(solver=DDPM()))
    with pytest.raises(ValueError, match="use DDPM, DDIM"):
        tiny_mar().settle(SamplingConfig(solver=Components()))


# --- guidance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.4, 0.3])
def test_guided_components_are_powers_of_both_densities(scale: float) -> None:
    mixture, null = random_mixture(3, seed=1), random_mixture(3, seed=2)
    guided = mixture.guided(null, scale)

    def log_density(of: GaussianMixture, x: float) -> Tensor:
        """Of each component's channels, up to a constant."""
        return -0.5 * ((x - of.means) / of.log_scales.exp()).square()

    precision = scale * torch.exp(-2 * mixture.log_scales) + (1 - scale) * torch.exp(-2 * null.log_scales)
    wide = 4 * precision < torch.exp(-2 * torch.maximum(mixture.log_scales, null.log_scales))
    target = [scale * log_density(mixture, x) + (1 - scale) * log_density(null, x) for x in (-1.0, 0.0, 2.0)]
    found = [log_density(guided, x) for x in (-1.0, 0.0, 2.0)]
    for i in (1, 2):
        torch.testing.assert_close((found[i] - found[0])[~wide], (target[i] - target[0])[~wide])
    assert torch.equal(guided.means[wide], mixture.means[wide])
    assert torch.equal(guided.log_scales[wide], mixture.log_scales[wide])
    assert bool(wide.any()) == (scale > 1)


def test_where_scales_agree_guidance_moves_means_as_it_moves_predictions() -> None:
    mixture, other = random_mixture(3, seed=1), random_mixture(3, seed=2)
    null = GaussianMixture(mixture.log_weights, other.means, mixture.log_scales)
    guided = mixture.guided(null, 2.5)
    torch.testing.assert_close(guided.means, null.means + 2.5 * (mixture.means - null.means))
    torch.testing.assert_close(guided.log_scales, mixture.log_scales)
    torch.testing.assert_close(guided.log_weights, mixture.log_weights)


# --- models -----------------------------------------------------------------------------------------------


def test_it_learns_a_batch_by_heart() -> None:
    latents = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
    model = tiny_mar(std=None, components=3, least_scale=0.1)
    assert share_left(model, latents, torch.tensor([0, 1, 2, 0])) < 0.7


def test_a_models_loss_is_minus_the_log_density_of_its_tokens_given_those_before() -> None:
    model = CausalAR(
        latent_size=2, latent_channels=2, num_classes=3, width=16, depth=1, heads=2, head_depth=1, head_width=16,
        dropout=0.0, components=3,
    ).eval()  # fmt: skip
    latents = torch.randn(2, 2, 2, 2)
    state, log_density = begin(model, LABELS, solver=Components()), torch.zeros(2)
    with torch.inference_mode():
        for stage, token in enumerate(latents.flatten(2).mT.unbind(1)):
            proposal = model.propose(state, stage)
            assert isinstance(model.head, MixtureHead) and proposal.z is not None
            log_density += model.head(proposal.z).log_density(token[:, None])[:, 0]
            state = model.accept(state, proposal, token[:, None])
        torch.testing.assert_close(model.loss(latents, LABELS), -log_density.mean() / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"components": 0}, "components must be"), ({"components": 2, "least_scale": 0.0}, "least_scale must be above 0")],
)
def test_arguments_that_make_no_head_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_mar(**options)
