"""Times as heads are told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """`[cos(t f), sin(t f)]` with `f_i = exp(-ln(10000) i / 128)`, then two linear layers."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def initialize(self) -> None:
        """Starts small (DiT, arXiv 2212.09748)."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times `[...]` as `[..., width]`."""
        return self.mlp(sinusoids(t, self.frequencies).to(self.dtype))


def sinusoids(t: Tensor, count: int) -> Tensor:
    """`[cos(t f), sin(t f)]` of times `[...]`, `[..., count]`, in float32, with `f_i = exp(-ln(10000) 2 i / count)`."""
    half = count // 2
    places = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t[..., None].float() * torch.exp(-math.log(10000) * places / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def flow_times(times: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """Times `[...]` in [0, 1] as FlowAR and xAR tell them to their heads: `trunc(1000 t)`, in float32."""
    return torch.trunc(1000 * torch.as_tensor(times, dtype=torch.float32, device=device))
