"""NOVA's diffusion head, an MLP on single patches, with the parameter names of the published checkpoints (Deng et al.,
arXiv 2412.14169).

Letters: `...` any leading axes, `B` batch, `n` tokens of a stage, `C` channels, `p` side of a patch, `D = p p C`, `w`
width of the conditioning `z`, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.nn.adaln import modulate
from disa_framework.nn.region import Region
from disa_framework.nn.time import sinusoids
from disa_framework.sampling.guidance import Guidance, guided
from disa_framework.solvers.process import Nodes, Process
from disa_framework.solvers.table import Denoiser

TIMES = 1000
"""The head is told of times from 0 to this, of whole ones in training."""
FREQUENCIES = 256
"""Numbers that stand for a time."""


class PatchEmbed(nn.Module):
    """A convolution of patches, for patches that lie apart already: `[..., p p C] -> [..., w]`."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


class Perceptron(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class Modulation(nn.Module):
    """Scale, shift and, of three, gate `[..., w]` from a condition, in this order."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count, self.proj = count, nn.Linear(width, count * width)

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        return self.proj(F.silu(y)).chunk(self.count, dim=-1)


class HeadBlock(Region):
    """`x + gate * norm(mlp(modulate(norm(x))))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.proj, self.norm2 = Modulation(width, 3), Perceptron(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift, gate = self.norm1(y)
        return torch.addcmul(x, gate, self.norm2(self.proj(modulate(_plain_norm(x), shift, scale))))


class TimeCondEmbed(nn.Module):
    """What the head is told of a time `[...]`, from 0 to 1000, and of a token, `z [..., n, w]`."""

    def __init__(self, cond_width: int, width: int) -> None:
        super().__init__()
        self.timestep_proj, self.condition_proj = Perceptron(FREQUENCIES, width), Perceptron(cond_width, width)

    def time(self, t: Tensor) -> Tensor:
        """That of times alone, `[..., width]`."""
        return self.timestep_proj(sinusoids(t, FREQUENCIES).to(self.timestep_proj.fc1.weight.dtype))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.time(t) + self.condition_proj(z)


class PatchHead(nn.Module):
    """An MLP on single tokens: `x [..., D]` under `y [..., width]` to noise or velocity `[..., D]`."""

    def __init__(self, depth: int, width: int, cond_width: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, patch_size, width)
        self.time_cond_embed = TimeCondEmbed(cond_width, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.norm = Modulation(width, 2)
        self.head = nn.Linear(width, channels * patch_size**2)

    @property
    def starting_at_zero(self) -> list[nn.Linear]:
        return [self.head, self.norm.proj, *(cast(HeadBlock, block).norm1.proj for block in self.blocks)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, y)
        scale, shift = self.norm(y)
        return self.head(modulate(_plain_norm(x), shift, scale))

    def denoiser(self, z: Tensor, scale: float, guidance: Guidance, process: Process) -> Denoiser:
        """The head of one stage, guided by `scale` within the interval of `guidance`.

        Args:
            z: `[G B, n, w]`, conditional rows first.
        """
        cond = self.time_cond_embed.condition_proj(z)

        def embed(nodes: Nodes) -> Tensor:
            unit = process.unit_time(1.0)  # of the head's own scale
            return self.time_cond_embed.time(nodes.on(z.device) * (TIMES * unit))

        return guided(lambda x, time: self(x, time + cond[: len(x)]), embed, process, guidance, scale)


def _plain_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
