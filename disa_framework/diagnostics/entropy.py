"""Entropy of a token given what its head is told, in nats a channel: exact for `MixtureAR`, estimated elsewhere.

Letters: `B` prefixes, `N` tokens, `M` components, `P` places of the integral, `R` repeats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from disa_framework.toy.mixture import MixtureAR

_REACH, _PLACES = 9.0, 512  # standard deviations on either side, and points of the integral


def gaussian_entropy(variance: Tensor, repeats: int) -> float:
    """Of Gaussians with sample variances of `repeats` draws, averaged.

    No density of that variance has more entropy. The logarithm of a sample variance is too small on average, by
    `log(v) - digamma(v)` with `v = (R - 1) / 2`, which is put right.

    Raises:
        ValueError: below 2 repeats.
    """
    if repeats < 2:
        raise ValueError(f"a variance needs at least 2 repeats, got {repeats}")
    half = torch.tensor((repeats - 1) / 2, dtype=torch.float64)
    bias = half.log() - torch.special.digamma(half)
    logs = variance.double().clamp(min=torch.finfo(torch.float32).tiny).log().mean()
    return 0.5 * (math.log(2 * math.pi * math.e) + logs + bias).item()


def conditional_entropy(
    model: MixtureAR, num_stages: int, condition: Tensor | None, count: int, seed: int = 0
) -> list[float]:
    """Exact entropy of the tokens of each stage given those of the stages before, averaged over `count` true prefixes.

    Args:
        model: unguided.
        num_stages: `K`.
        condition: `[B]` labels.
        count: `B`.
        seed: of the prefixes.
    """
    condition = None if condition is None else condition.to(model.device)
    samples = model.sample_exactly(count, torch.Generator().manual_seed(seed), condition).flatten(1).double()
    prior = model.component_weights(condition, count).double().log()
    L, N = model.cholesky, model.cholesky.shape[0]
    offset = (samples[:, None] - model.means).mT  # [B, N, M]
    whitened = torch.linalg.solve_triangular(L, offset, upper=False)
    entropies = []
    for k in range(num_stages):
        start, end = (round(N * stage / num_stages) for stage in (k, k + 1))
        log_weights = prior - 0.5 * whitened[:, :start].square().sum(dim=1)
        means = model.means[:, start:end].T + L[start:end, :start] @ whitened[:, :start]  # [B, n, M]
        variance = L[start:end, start:end].square().sum(dim=1)
        of_tokens = [mixture_entropy(log_weights, means[:, j], variance[j]).mean() for j in range(end - start)]
        entropies.append(torch.stack(of_tokens).mean().item())
    return entropies


def mixture_entropy(log_weights: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """Entropy `[B]` of mixtures of Gaussians on a line, by the trapezoidal rule in float64.

    Args:
        log_weights: `[B, M]`, up to a constant.
        means: `[B, M]`.
        variance: a scalar, that of all components.
    """
    deviation = variance.double().sqrt()
    low, high = means.amin(dim=1) - _REACH * deviation, means.amax(dim=1) + _REACH * deviation
    places = torch.lerp(low[:, None], high[:, None], torch.linspace(0, 1, _PLACES, dtype=torch.float64).to(low))
    offset = (places[:, None] - means[..., None]) / deviation  # [B, M, P]
    logs = torch.log_softmax(log_weights, dim=1)[..., None] - 0.5 * offset.square()
    density = torch.logsumexp(logs, dim=1) - (deviation * math.sqrt(2 * math.pi)).log()
    return torch.trapezoid(-density * density.exp(), places)
