"""Transformer blocks of FlowAR and xAR, with the parameter names of the published checkpoints: adaptive norms,
rotary positions on a square, gated MLPs.

Letters: `B` batch, `L` sequence length, `w` width, `h` heads, `d = w / h` width of a head, `s` side of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.models.attention import AttentionLayer, KVCache, attend
from disa_framework.models.layers import modulate

_THETA = 10_000.0
_SQUARE = 16.0  # side of the square that the positions of any grid span


def grid_positions(side: int) -> Tensor:
    """Row and column of each token of an `s x s` grid on the common square: `[s s, 2]`, raster order."""
    axis = torch.arange(side) / side * _SQUARE
    return torch.cartesian_prod(axis, axis)


class RotaryEmbedding(nn.Module):
    """Rotary embedding (arXiv 2104.09864) of rows in the first half of a head and of columns in the second."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"rotary positions on a square need heads of a width divisible by 4, got {width}")
        exponents = torch.arange(0, width // 2, 2) / (width // 2)
        self.register_buffer("freqs", _THETA**-exponents)

    def table(self, positions: Tensor) -> Tensor:
        """Cosines and sines `[2, L, d]` at `positions [L, 2]`; neighbouring channels are one pair."""
        angles = (positions[..., None] * self.freqs).repeat_interleave(2, dim=-1).flatten(1)
        return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns each pair of channels of `x [B, h, L, d]` by the angle of its position."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    cos, sin = table.to(x.dtype)
    return x * cos + turned * sin


@dataclass(frozen=True)
class Past:
    """What a layer has seen: the first `start` keys of its cache. The keys of the tokens at hand are written behind
    them, so that all lie in one piece, and stay or are overwritten by the next to come."""

    cache: KVCache
    start: int


class RotaryAttention(AttentionLayer):
    """Self-attention with rotary positions, over cached tokens and its own."""

    def __init__(
        self, width: int, heads: int, qkv_bias: bool = True, dropout: float = 0.0, proj_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_dropout)
        self.rope = RotaryEmbedding(width // heads)

    def forward(self, x: Tensor, table: Tensor, past: Past | None = None, mask: Tensor | None = None) -> Tensor:
        # [B, L, 3 w] -> three of [B, h, L, d]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, table), rotate(k, table)
        if past:
            k, v = past.cache.write(past.start, k, v)
        x = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0, backend=self.backend)
        return self.proj_drop(self.proj(x))


class GatedMLP(nn.Module):
    """`fc2(GELU(fc1_g(x)) * fc1_x(x))` with two thirds of the usual hidden width (arXiv 2002.05202)."""

    def __init__(self, width: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = int(width * ratio * 2 / 3)
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1_g(x)) * self.fc1_x(x))))


class AdaptiveBlock(nn.Module):
    """Transformer block whose norms are modulated by a condition (DiT, arXiv 2212.09748)."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, attn_dropout: float = 0.0, proj_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attn = RotaryAttention(width, heads, dropout=attn_dropout, proj_dropout=proj_dropout)
        self.mlp = GatedMLP(width, mlp_ratio, proj_dropout)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, condition: Tensor, table: Tensor, past: Past | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`x [B, L, w]` under `condition [B, 1 or L, w]`."""
        return adaptive(x, self.ada_lin(condition), self.attn, self.mlp, table, past, mask)


def adaptive(
    x: Tensor,
    modulation: Tensor,
    attn: RotaryAttention,
    mlp: GatedMLP,
    table: Tensor,
    past: Past | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention and MLP under a modulation `[B, 1 or L, 6 w]`: gates, scales and shifts of both in turn."""
    gate1, gate2, scale1, scale2, shift1, shift2 = modulation.chunk(6, dim=-1)
    x = x + gate1 * attn(modulate(rms_norm(x), shift1, scale1), table, past, mask)
    return x + gate2 * mlp(modulate(rms_norm(x), shift2, scale2))


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm without a weight, in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=1e-6).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm (arXiv 1910.07467) with a weight, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight
