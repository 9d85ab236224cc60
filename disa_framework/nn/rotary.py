"""Rotary positions on a square, and self-attention with them, as FlowAR, xAR and SphereAR have them.

Letters: `B` batch, `L` sequence length, `w` width, `h` heads, `d = w / h` width of a head, `s` side of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

from disa_framework.nn.attention import AttentionLayer, Past, attend
from disa_framework.nn.precise import precise, unrounded
from disa_framework.nn.transformer import check_heads

_THETA = 10_000.0
_SQUARE = 16.0  # side of the square that the positions of any grid span


def grid_positions(side: int) -> Tensor:
    """Row and column of each token of an `s x s` grid on the common square: `[s s, 2]`, raster order."""
    axis = torch.arange(side, dtype=torch.float32) / side * _SQUARE
    return torch.cartesian_prod(axis, axis)


class _Unrounded(nn.Module):
    """Base of what keeps its buffers as precise as they were made."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with unrounded(self):
            return super()._apply(fn, recurse)


class RotaryEmbedding(_Unrounded):
    """Rotary embedding (arXiv 2104.09864) of rows in the first half of a head and of columns in the second.

    Args:
        width: `d`.
        positions: `[L, 2]`, where the tokens stand; the checkpoints of xAR hold the tables made of them.
    """

    freqs: Tensor
    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, width: int, positions: Tensor | None = None) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"rotary positions on a square need heads of a width divisible by 4, got {width}")
        exponents = torch.arange(0, width // 2, 2) / (width // 2)
        self.register_buffer("freqs", _THETA**-exponents)
        if positions is not None:
            turns = self.table(positions).repeat_interleave(2, dim=-1)
            self.register_buffer("freqs_cos", turns.real.clone())
            self.register_buffer("freqs_sin", turns.imag.clone())

    def table(self, positions: Tensor) -> Tensor:
        """The turn of each pair of channels at `positions [L, 2]`, complex `[L, d / 2]`."""
        angles = (positions.to(self.freqs)[..., None] * precise(self.freqs)).flatten(1)
        return torch.polar(torch.ones_like(angles), angles)

    def own_table(self, place: slice) -> Tensor:
        """The part at `place` of the table of its own positions."""
        cos, sin = (precise(part[place, ::2]) for part in (self.freqs_cos, self.freqs_sin))
        return torch.complex(cos, sin)


class RotaryTable(_Unrounded):
    """The turns of tokens that stand in the same places in every image; files hold nothing of it.

    Args:
        width: `d`.
        positions: `[L, 2]`, where they stand.
    """

    turns: Tensor

    def __init__(self, width: int, positions: Tensor) -> None:
        super().__init__()
        turns = RotaryEmbedding(width).table(positions)
        self.register_buffer("turns", torch.view_as_real(turns), persistent=False)

    def forward(self, place: slice) -> Tensor:
        """Those of the tokens at `place`, complex `[l, d / 2]`."""
        return torch.view_as_complex(self.turns[place])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns neighbouring channels of `x [B, L, h, d]`, which are a pair, by a table `[L, d / 2]`."""
    if torch.compiler.is_compiling():  # which knows how to fuse real numbers, and leaves complex ones alone
        even, odd = precise(x).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = (part[:, None] for part in torch.view_as_real(table).unbind(-1))
        turned = even * cos - odd * sin, odd * cos + even * sin
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(precise(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).to(x.dtype)


def rotated(qkv: Tensor, heads: int, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned, and values, `[B, h, L, d]` each, of their joint projection `[B, L, 3 w]`."""
    parts, both = qkv.unflatten(-1, (3 * heads, -1)), 2 * heads
    q, k = rotate(parts[:, :, :both], table).transpose(1, 2).chunk(2, dim=1)
    return q, k, parts[:, :, both:].transpose(1, 2)


class RotaryAttention(AttentionLayer):
    """Self-attention with rotary positions, over cached tokens and its own."""

    def __init__(
        self,
        width: int,
        heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.width, self.heads, self.dropout = width, heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_dropout)
        self.rope = RotaryEmbedding(width // heads, positions)

    def forward(self, x: Tensor, table: Tensor, past: Past | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = rotated(self.qkv(x), self.heads, table)
        if past:
            k, v = past.cache.write(past.start, k, v)
        x = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0, backend=self.backend)
        return self.proj_drop(self.proj(x))


def rotary(blocks: nn.ModuleList) -> RotaryEmbedding:
    """The rotary embedding that these blocks share."""
    return cast(RotaryAttention, blocks[0].attn).rope
