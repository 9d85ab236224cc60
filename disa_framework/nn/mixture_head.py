"""Mixtures of Gaussians over the channels of a token, and the head that gives them (GIVT, arXiv 2312.02116).

Letters: `...` any leading axes, `B` batch, `n` tokens of a stage, `D` token channels, `M` components, `Z` width of the
conditioning, `w` width of the head, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from disa_framework.nn.diffusion_head import TokenHead
from disa_framework.sampling.guidance import Guidance, combine
from disa_framework.solvers.components import Density
from disa_framework.solvers.process import Nodes
from disa_framework.solvers.table import Denoiser, Step, state_precision

PUBLISHED_SCALE = 1e-6
_WIDEST = 2.0  # times the wider of two Gaussians: how wide GIVT's proposals are


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians with diagonal covariances.

    Attributes:
        log_weights: `[..., M]`; their exponentials add up to 1.
        means: `[..., M, D]`.
        log_scales: `[..., M, D]`, logarithms of the standard deviations.
    """

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    @classmethod
    def read(cls, raw: Tensor, channels: int, least_scale: float = PUBLISHED_SCALE) -> GaussianMixture:
        """Of what a network returns.

        Args:
            raw: `[..., M (1 + 2 D)]`: the logits of the weights, then `D` means and `D` raw scales of each component.
            channels: `D`.
            least_scale: standard deviations are at least that.
        """
        M = raw.shape[-1] // (1 + 2 * channels)
        raw = raw.to(state_precision(raw.dtype))
        means, scales = raw[..., M:].unflatten(-1, (M, 2 * channels)).chunk(2, dim=-1)
        # Square-plus, (r + sqrt(r^2 + 4)) / 2, is exp(arsinh(r / 2)), which loses nothing where r is far below 0.
        return cls(raw[..., :M].log_softmax(-1), means, torch.asinh(scales / 2).clamp(min=math.log(least_scale)))

    def log_density(self, x: Tensor) -> Tensor:
        """Of `x [..., D]`, in nats: `[...]`."""
        z = (x[..., None, :].to(self.means) - self.means) * (-self.log_scales).exp()
        within = -(0.5 * z.square() + self.log_scales).sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]
        return (self.log_weights + within).logsumexp(-1)

    def largest(self, count: int) -> GaussianMixture:
        """Of the components of largest weight alone, in the order that they have; the weights add up to 1 again."""
        if count >= self.log_weights.shape[-1]:
            return self
        kept = self.log_weights.topk(count, dim=-1).indices.sort(-1).values
        weights = self.log_weights.gather(-1, kept).log_softmax(-1)
        return GaussianMixture(weights, *(_taken(part, kept) for part in (self.means, self.log_scales)))

    def component(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale, `[..., D]` each, of the component that lies at a share `[...]` of the weights."""
        below = self.log_weights.exp().cumsum(-1)[..., :-1] < share[..., None]
        chosen = below.sum(-1, keepdim=True)
        mean, log_scale = (_taken(part, chosen).squeeze(-2) for part in (self.means, self.log_scales))
        return mean, log_scale

    def guided(self, null: GaussianMixture, scale: float) -> GaussianMixture:
        """Classifier-free guidance of the density: each component's is `p^scale null^(1 - scale)`, a Gaussian again.

        GIVT (section 3.4) draws from the same with the weight `scale - 1`, by rejection. Guided weights are the
        logarithms' combination, where GIVT's are not guided. A channel's Gaussian stays as it is where the guided one
        is wider than GIVT's proposals, twice the wider of both, or is none.
        """
        precise, null_precise = (torch.exp(-2 * mixture.log_scales) for mixture in (self, null))
        precision = combine(precise, null_precise, scale)
        fits = precision * _WIDEST**2 >= torch.minimum(precise, null_precise)
        means = combine(precise * self.means, null_precise * null.means, scale) / precision
        return GaussianMixture(
            combine(self.log_weights, null.log_weights, scale).log_softmax(-1),
            torch.where(fits, means, self.means),
            torch.where(fits, -0.5 * precision.log(), self.log_scales),
        )


def _taken(part: Tensor, kept: Tensor) -> Tensor:
    """`part [..., M, D]` at the components `kept [..., m]`."""
    return part.gather(-2, kept[..., None].expand(*kept.shape, part.shape[-1]))


class MixtureHead(TokenHead):
    """The density of a token, from an MLP; it is drawn from in one evaluation, by the solver `Components`.

    Args:
        channels: `D`.
        cond_width: `Z`.
        depth, width: hidden layers.
        components: `M`.
        least_scale: standard deviations are at least that.

    Raises:
        ValueError: no component, or a least scale that is not above 0.
    """

    def __init__(
        self, channels: int, cond_width: int, depth: int, width: int, components: int, least_scale: float
    ) -> None:
        super().__init__(Density(components))
        if not least_scale > 0:
            raise ValueError(f"least_scale must be above 0, got {least_scale}")
        self.channels, self.least_scale = channels, least_scale
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else cond_width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, components * (1 + 2 * channels)))

    def initialize(self) -> None:
        """Components start apart from each other."""
        last = cast(nn.Linear, self.net[-1])
        M = last.out_features // (1 + 2 * self.channels)
        with torch.no_grad():
            nn.init.normal_(last.bias[M:].unflatten(0, (M, -1))[:, : self.channels])

    def forward(self, z: Tensor) -> GaussianMixture:
        """The densities of tokens, under `z [..., Z]`."""
        return self._read(self.net(z))

    def _read(self, raw: Tensor) -> GaussianMixture:
        return GaussianMixture.read(raw, self.channels, self.least_scale)

    def denoiser(self, z: Tensor, scale: float, guidance: Guidance) -> Denoiser:
        process = self.process

        def denoise(nodes: Nodes) -> Step:
            acts = guidance.acts_among(map(process.unit_time, nodes.times), scale)

            def step(x: Tensor, i: int) -> Tensor:
                B = len(x)
                mixture, *null = map(self._read, self.net(z[: 2 * B if acts[i] else B]).split(B))
                if null:
                    mixture = mixture.guided(null[0], scale)
                share = torch.special.ndtr(x[..., 0].to(mixture.means))
                return torch.cat(mixture.largest(int(nodes.times[i])).component(share), dim=-1)

            return step

        return denoise

    def corruption(self, shape: tuple[int, ...], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        return ()

    def loss(self, clean: Tensor, z: Tensor, *corruption: Tensor) -> Tensor:
        return -self(z).log_density(clean)
