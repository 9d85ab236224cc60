"""Heads on single tokens, and MAR's diffusion head: an MLP, and its training loss (arXiv 2406.11838, section 3).

Letters: `...` any leading axes, `D` token channels, `Z` width of the conditioning, `w` width of the head,
`B` batch, `n` tokens of a stage, `G` guidance branches (1 or 2), `T` rows of a table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from disa_framework.nn.adaln import modulate
from disa_framework.nn.region import Region
from disa_framework.nn.time import TimestepEmbedding
from disa_framework.sampling.guidance import Guidance, guided
from disa_framework.solvers.ddpm import posterior
from disa_framework.solvers.process import Nodes, Process, VPCosine
from disa_framework.solvers.table import Denoiser


class ResBlock(Region):
    """`x + gate * mlp(modulate(norm(x)))`."""

    def __init__(self, width: int, norm: type[nn.LayerNorm] = nn.LayerNorm) -> None:
        super().__init__()
        self.in_ln = norm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(modulate(self.in_ln(x), shift, scale)))


class FinalLayer(nn.Module):
    """Modulated norm without affine, and the output projection."""

    def __init__(self, width: int, out: int, norm: type[nn.LayerNorm] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm_final = norm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class MLPHead(nn.Module):
    """`(x_t [..., D], t, z [..., Z]) -> [..., out]`.

    Args:
        channels: `D`.
        cond_width: `Z`.
        depth, width: of the blocks.
        out: outputs of a token: noise and variance value of a diffusion head, `2 D`.
        norm: of the blocks.
    """

    def __init__(
        self,
        channels: int,
        cond_width: int,
        depth: int,
        width: int,
        out: int,
        norm: type[nn.LayerNorm] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(cond_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width, norm) for _ in range(depth))
        self.final_layer = FinalLayer(width, out, norm)

    def initialize(self) -> None:
        """Starts modulations and output at zero, and the embedding of times small (DiT, arXiv 2212.09748)."""
        self.time_embed.initialize()
        for block in (*self.res_blocks, self.final_layer):
            nn.init.zeros_(block.adaLN_modulation[-1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`x [..., D]` under the conditioning `y = time_embed(t) + cond_embed(z)`, `[..., w]`."""
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)


class TokenHead(nn.Module, ABC):
    """What draws single tokens, each given its `z`.

    Args:
        process: on which it is trained.
    """

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    @abstractmethod
    def initialize(self) -> None:
        """Starts those weights otherwise that should not start as all others do."""

    @abstractmethod
    def denoiser(self, z: Tensor, scale: float, guidance: Guidance) -> Denoiser:
        """The head of one stage, guided by `scale` within the interval of `guidance`.

        Args:
            z: `[G B, n, Z]` conditioning, conditional rows first; unconditional ones are read where guidance acts.
        """

    @abstractmethod
    def corruption(self, shape: tuple[int, ...], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """What the loss of tokens `[*shape, D]` needs of random numbers, on the CPU, so that a seed gives the same
        numbers on every device.

        Args:
            shape: its first axis repeats tokens.
        """

    @abstractmethod
    def loss(self, clean: Tensor, z: Tensor, *corruption: Tensor) -> Tensor:
        """The loss of each of the tokens `clean [..., D]` under `z [..., Z]`, as often as `corruption` repeats them."""


class TimedHead(TokenHead):
    """A head that is told times and conditioning as the sum of two embeddings."""

    @abstractmethod
    def embed_times(self, t: Tensor) -> Tensor:
        """Embeds times `[...]` of the process as `[..., w]`."""

    @abstractmethod
    def embed_cond(self, z: Tensor) -> Tensor:
        """Embeds conditioning `[..., Z]` as `[..., w]`."""

    @abstractmethod
    def predict(self, x: Tensor, y: Tensor) -> Tensor:
        """What the process says that the head predicts of `x [..., D]`, under the sum of the embeddings `[..., w]`."""

    def embed_nodes(self, nodes: Nodes, device: torch.device) -> Tensor:
        """What the head is told of the times of a table, `[T, w]`."""
        return self.embed_times(nodes.on(device))

    def denoiser(self, z: Tensor, scale: float, guidance: Guidance) -> Denoiser:
        cond = self.embed_cond(z)

        def embed(nodes: Nodes) -> Tensor:
            return self.embed_nodes(nodes, z.device)

        return guided(lambda x, time: self.predict(x, time + cond[: len(x)]), embed, self.process, guidance, scale)


class DiffusionHead(TimedHead):
    """The head, its sampling, and its loss: squared error of the noise, plus a variational bound for the variance."""

    tables: Tensor

    def __init__(self, channels: int, cond_width: int, depth: int, width: int, process: VPCosine) -> None:
        super().__init__(process)
        self.net = MLPHead(channels, cond_width, depth, width, 2 * channels)
        self.channels = channels
        self.register_buffer("tables", _training_tables(process), persistent=False)

    def initialize(self) -> None:
        self.net.initialize()

    def embed_times(self, t: Tensor) -> Tensor:
        return self.net.time_embed(t)

    def embed_cond(self, z: Tensor) -> Tensor:
        return self.net.cond_embed(z)

    def predict(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x, y)

    def forward(self, clean: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each token, without reduction.

        Args:
            clean: `[..., D]` tokens.
            z: `[..., Z]` conditioning.
            t: `[...]` int64 timesteps.
            noise: `[..., D]`.

        Returns:
            Mean squared error of the noise `[...]`, and the bound in bits a channel `[...]`.
        """
        alpha, sigma, *posterior_tables = self.tables[t].unsqueeze(-2).unbind(-1)
        noisy = alpha * clean + sigma * noise
        out, value = self.predict(noisy, self.embed_times(t) + self.embed_cond(z)).chunk(2, dim=-1)
        predicted = (noisy - sigma * out.detach()) / alpha
        bound = _bound(clean, noisy, predicted, value, posterior_tables)
        return (noise - out).square().mean(-1), torch.where(t == 0, bound[1], bound[0])

    def corruption(self, shape: tuple[int, ...], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        timesteps = torch.randint(len(self.tables), shape, generator=generator)
        return timesteps, torch.randn(*shape, self.channels, generator=generator)

    def loss(self, clean: Tensor, z: Tensor, *corruption: Tensor) -> Tensor:
        t, noise = corruption
        squared, bound = self(clean.expand(noise.shape), z.expand(*t.shape, -1), t, noise)
        return squared + bound


def _training_tables(process: VPCosine) -> Tensor:
    """`[timesteps, 6]`: alpha, sigma, both factors of the posterior mean, and both log variances."""
    bars = process.alphas_cumprod
    steps = [posterior(bar, prev) for bar, prev in zip(bars, (1.0, *bars[:-1]), strict=True)]
    rows = [
        # The variance at t = 0 is 0; the published code takes that of t = 1.
        (math.sqrt(bar), math.sqrt(1 - bar), s.clean, s.state, math.log(s.variance or steps[1].variance),
         math.log(s.beta))
        for bar, s in zip(bars, steps, strict=True)
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64).float()


def _bound(
    clean: Tensor, noisy: Tensor, predicted: Tensor, value: Tensor, tables: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Eq. 4 to 6 of arXiv 2102.09672 in bits a channel, `[...]` each: the Kullback-Leibler divergence for
    `t > 0`, and the negative log likelihood of 8-bit bins for `t = 0`."""
    clean_factor, state_factor, low, high = tables
    mean, true_mean = (clean_factor * x_0 + state_factor * noisy for x_0 in (predicted, clean))
    share = (value + 1) / 2
    log_var = share * high + (1 - share) * low
    squared = (true_mean - mean).square() * torch.exp(-log_var)
    divergence = 0.5 * (log_var - low + torch.exp(low - log_var) - 1 + squared)
    likelihood = discretized_log_likelihood(clean, mean, 0.5 * log_var)
    return divergence.mean(-1) / math.log(2.0), -likelihood.mean(-1) / math.log(2.0)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of the bin of width 2/255 around `x` under a Gaussian; the outer bins are open.

    The normal distribution function is the tanh approximation of the published code.
    """
    inverse = torch.exp(-log_std)
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))

    def log(p: Tensor) -> Tensor:
        return p.clamp(min=1e-12).log()

    inner = torch.where(x > 0.999, log(1 - lower), log(upper - lower))
    return torch.where(x < -0.999, log(upper), inner)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
