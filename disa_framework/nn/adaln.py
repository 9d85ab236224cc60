"""Transformer blocks of FlowAR and xAR, with the parameter names of the published checkpoints: adaptive norms,
rotary positions on a square, gated MLPs.

Letters: `B` batch, `L` sequence length, `w` width, `h` heads, `d = w / h` width of a head, `s` side of a grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.nn.attention import KVCache, Past
from disa_framework.nn.precise import precise
from disa_framework.nn.region import Region
from disa_framework.nn.rotary import RotaryAttention
from disa_framework.nn.transformer import hidden_width


class GatedMLP(nn.Module):
    """`fc2(GELU(fc1_g(x)) * fc1_x(x))` with two thirds of the usual hidden width (arXiv 2002.05202)."""

    def __init__(self, width: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = hidden_width(width * ratio * 2 / 3)
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1_g(x)) * self.fc1_x(x))))


class AdaptiveBlock(Region):
    """Transformer block whose norms are modulated by a condition (DiT, arXiv 2212.09748)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.attn = RotaryAttention(width, heads, True, attn_dropout, proj_dropout, positions)
        self.mlp = GatedMLP(width, mlp_ratio, proj_dropout)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, condition: Tensor, table: Tensor, past: Past | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`x [B, L, w]` under `condition [B, m, w]`, each of them for `L / m` tokens in turn."""
        modulation, m = self.ada_lin(condition), condition.shape[1]
        if m > 1:
            modulation = modulation.repeat_interleave(x.shape[1] // m, dim=1)
        return adaptive(x, modulation, self.attn, self.mlp, table, past, mask)


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
    x = torch.addcmul(x, gate1, attn(modulate(rms_norm(x), shift1, scale1), table, past, mask))
    return torch.addcmul(x, gate2, mlp(modulate(rms_norm(x), shift2, scale2)))


def allocate_caches(blocks: Iterable[nn.Module], batch_size: int, length: int, like: Tensor) -> list[KVCache]:
    """Room for `length` keys and values of each block."""
    layers = [cast(RotaryAttention, block.attn) for block in blocks]
    return [KVCache.empty(batch_size, layer.heads, length, layer.width // layer.heads, like) for layer in layers]


def block_causal_mask(sizes: Sequence[int]) -> Tensor:
    """`[1, 1, L, L]`, added to the scores: 0 where a token may look, in its own block and in earlier ones."""
    blocks = torch.cat([torch.full((size,), block) for block, size in enumerate(sizes)])
    hidden = blocks[:, None] < blocks
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[None, None]


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm without a weight, in float32 at least."""
    return F.rms_norm(precise(x), (x.shape[-1],), eps=1e-6).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm (arXiv 1910.07467) with a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part (DiT, arXiv 2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)
