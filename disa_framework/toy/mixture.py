"""A model without weights whose every conditional is known exactly: tokens from a mixture of Gaussians.

Letters: `B` batch, `N` tokens, `M` components, `K` stages, `n` tokens of a stage, `G` guidance branches;
`[B, …]` is `[…]` where all samples have the same order.

A token given the tokens before it is again a mixture, and so is its noisy version at any time, so the best
possible head has a closed form. What is wrong with a sample is then due to the solver and the schedule alone.
As in the published models, tokens drawn in one stage are independent of each other given what came before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Proposal, TokenLayout
from disa_framework.nn.precise import unrounded
from disa_framework.runtime.devices import bring
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.guidance import Guidance, guided
from disa_framework.sampling.noise import NoiseSource
from disa_framework.sampling.order import RasterOrder
from disa_framework.sampling.stage_sizes import LinearSizes
from disa_framework.solvers.process import Nodes, Process, RectifiedFlow, VPCosine
from disa_framework.solvers.table import Denoiser


@dataclass(frozen=True)
class MixtureState:
    """A run between two stages.

    Attributes:
        tokens: `[B, N]`, from the left.
        whitened: `[B, M, N]`, `L^-1 (x - mean_c)` as far as tokens are drawn, in the order in which they are.
        log_weights: `[G, B, M]` log posterior of the components, up to a constant; conditional branch first.
        order: `[B, N]` places of the tokens, those that are drawn first in front.
        means, factor: `[B, M, N]` and `L`, `[B, N, N]`, of the tokens in this order.
        ends: number of tokens drawn after each stage.
        sampling: of the run.
    """

    tokens: Tensor
    whitened: Tensor
    log_weights: Tensor
    order: Tensor
    means: Tensor
    factor: Tensor
    ends: tuple[int, ...]
    sampling: SamplingConfig


class MixtureAR(ARDiffusionModel[MixtureState]):
    """Autoregressive sampling of a known mixture of Gaussians over `num_tokens` scalar tokens: left to right, as many
    tokens at every stage, unless the sampling config says otherwise.

    All components share the covariance `0.05 exp(-(i-j)^2 / 8) + 0.01 I`; their means are standard normal.

    Args:
        num_tokens: `N`.
        num_components: `M`.
        num_classes: class `c` owns the components `c, c + num_classes, …`; unconditional is all of them.
        seed: of the means.
        process: what the exact head pretends to have been trained on; `VPCosine()` by default.
    """

    means: Tensor
    cholesky: Tensor

    def __init__(
        self,
        num_tokens: int = 16,
        num_components: int = 8,
        num_classes: int = 1,
        seed: int = 24,
        process: Process | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= num_classes <= num_components:
            raise ValueError(
                f"num_classes must lie in 1 … {num_components}, the number of components, got {num_classes}"
            )
        self.process = VPCosine() if process is None else process
        if not isinstance(self.process, VPCosine | RectifiedFlow) or self.process.learns_variance:
            raise ValueError("MixtureAR predicts noise or velocity, but no variance")
        self.latent_shape = (1, 1, num_tokens)
        self.num_classes, self.max_stages = num_classes, num_tokens
        means = torch.randn(num_components, num_tokens, generator=torch.Generator().manual_seed(seed)).double()
        place = torch.arange(num_tokens, dtype=torch.float64)
        smooth = 0.05 * torch.exp(-((place[:, None] - place) ** 2) / 8)
        self._covariance = smooth + 0.01 * torch.eye(num_tokens, dtype=torch.float64)
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("cholesky", torch.linalg.cholesky(self._covariance), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with unrounded(self):  # what is known exactly stays so
            return super()._apply(fn, recurse)

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(1, self.means.shape[1], RasterOrder(), LinearSizes())

    def component_weights(self, condition: Tensor | None, batch_size: int) -> Tensor:
        """Prior weight of each component, `[B, M]`."""
        components = torch.arange(len(self.means), device=self.device)
        if condition is None:
            size = (batch_size, len(components))
            return torch.full(size, 1 / len(components), dtype=self.dtype, device=self.device)
        owned = (components % self.num_classes == condition[:, None]).to(torch.float32)
        return owned / owned.sum(dim=1, keepdim=True)

    def begin(self, condition: Tensor | None, sampling: SamplingConfig, noise: NoiseSource) -> MixtureState:
        M, N = self.means.shape
        branches = [condition, None][: sampling.branches_from(0)]
        batch_size, order = noise.batch_size, self.layout.places(sampling, noise, self.device)
        order = order[0] if len(order) == 1 else order
        covariance = bring(self._covariance, order.device)[order[..., :, None], order[..., None, :]]
        factor = torch.linalg.cholesky_ex(covariance).L  # the other one waits for the device
        return MixtureState(
            tokens=self.means.new_zeros(batch_size, N, dtype=self.dtype),
            whitened=self.means.new_zeros(batch_size, M, N, dtype=self.dtype),
            log_weights=torch.stack([self.component_weights(c, batch_size).log() for c in branches]),
            order=order,
            means=self.means.float()[:, order].movedim(0, -2).contiguous(),
            factor=factor.float(),
            ends=self.layout.ends(sampling),
            sampling=sampling,
        )

    def propose(self, state: MixtureState, stage: int) -> Proposal:
        start, end = state.ends[stage - 1] if stage else 0, state.ends[stage]
        rows, guidance = state.factor[..., start:end, :], state.sampling.guidance_at(stage)
        past = state.whitened[..., :start] @ rows[..., :start].mT
        mean = state.means[..., start:end] + past  # [B, M, n]
        variance = rows[..., start:end].square().sum(dim=-1)  # [B, n]
        scale = guidance.at(end / self.means.shape[1])
        denoise = self._denoiser(state.log_weights[: guidance.branches], mean, variance, scale, guidance)
        weights = state.log_weights.softmax(dim=-1)[0, :, None].expand(-1, end - start, -1)
        return Proposal((end - start, 1), denoise, (start, end), torch.cat((weights, mean.mT), dim=-1))

    def accept(self, state: MixtureState, proposal: Proposal, tokens: Tensor) -> MixtureState:
        start, end = proposal.places
        x, rows = tokens.squeeze(-1), state.factor[..., start:end, :]
        residual = x[:, None] - state.means[..., start:end]
        residual = residual - state.whitened[..., :start] @ rows[..., :start].mT
        new = torch.linalg.solve_triangular(rows[..., start:end], residual.mT, upper=False).mT
        return replace(
            state,
            tokens=state.tokens.scatter(1, state.order[..., start:end].expand_as(x), x),
            whitened=torch.cat((state.whitened[..., :start], new, state.whitened[..., end:]), dim=2),
            log_weights=state.log_weights - 0.5 * new.square().sum(dim=-1),
        )

    def finish(self, state: MixtureState) -> Tensor:
        return state.tokens[:, None, None]

    def sample_exactly(self, count: int, generator: torch.Generator, condition: Tensor | None = None) -> Tensor:
        """True samples `[count, 1, 1, N]` of the mixture."""
        weights = self.component_weights(condition, count)
        component = torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(self.device)
        normal = torch.randn(count, len(self.cholesky), generator=generator, dtype=torch.float64).to(self.device)
        return (self.means[component] + normal @ self.cholesky.T).float()[:, None, None]

    def _denoiser(
        self, log_weights: Tensor, mean: Tensor, variance: Tensor, scale: float, guidance: Guidance
    ) -> Denoiser:
        """The exact head for tokens with component means `[B, M, n]` and variances `[B, n]`."""
        mean = mean.transpose(0, 1).contiguous()  # [M, B, n]
        weights = log_weights.mT[..., None].contiguous()  # [G, M, B, 1]

        def head(x: Tensor, factors: tuple[float, float]) -> Tensor:
            parts = x.squeeze(-1).chunk(len(x) // mean.shape[1])
            outs = [self.process.target(*exact_posterior(part, w, mean, variance, *factors), *factors)
                    for part, w in zip(parts, weights, strict=False)]  # fmt: skip
            return torch.cat(outs)[..., None]

        def embed(nodes: Nodes) -> list[tuple[float, float]]:
            return list(zip(nodes.alphas, nodes.sigmas, strict=True))

        return guided(head, embed, self.process, guidance, scale)


def exact_posterior(
    x: Tensor, log_weights: Tensor, mean: Tensor, variance: Tensor, alpha: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """`(E[x_0 | x_t], E[noise | x_t])`, `[B, n]` each, for tokens from a mixture.

    Args:
        x: `[B, n]` noisy tokens.
        log_weights: `[M, B, 1]` of the components, up to a constant.
        mean: `[M, B, n]` of the clean tokens.
        variance: `[B, n]` of the clean tokens within a component.
        alpha, sigma: factors of the process.
    """
    total = alpha**2 * variance + sigma**2
    logits = log_weights - (x - alpha * mean).square() * (0.5 / total)
    share = (logits - logits.amax(dim=0)).exp()  # softmax is slow over few components
    center = (share * mean).sum(dim=0) / share.sum(dim=0)
    beyond = (x - alpha * center) / total
    return center + alpha * variance * beyond, sigma * beyond
