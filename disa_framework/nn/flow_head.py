"""FlowAR's velocity head: a transformer over the tokens of one scale (Ren et al., arXiv 2412.15205).

Letters: `B` batch, `G` guidance branches, `n` tokens of a scale, `D` token channels, `Z` width of the conditioning,
`w` width of the head, `T` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.nn.adaln import GatedMLP, RMSNorm, adaptive, modulate, rms_norm
from disa_framework.nn.attention import AttentionLayer, attend
from disa_framework.nn.region import Region
from disa_framework.nn.rotary import RotaryAttention, RotaryEmbedding, rotate
from disa_framework.nn.time import TimestepEmbedding

_HEAD_WIDTH = 64

KeysValues = tuple[Tensor, Tensor]


class CrossAttention(AttentionLayer):
    """Attention of the tokens to the conditioning at the same places."""

    def __init__(self, width: int, cond_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(cond_width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.rope = RotaryEmbedding(width // heads)

    def keys_values(self, z: Tensor, table: Tensor) -> KeysValues:
        """Of the conditioning `[G B, n, Z]`, `[G B, h, n, d]` each."""
        k, v = self.kv(z).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        return rotate(k, table).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, keys_values: KeysValues, table: Tensor) -> Tensor:
        q = rotate(self.q(x).unflatten(-1, (self.heads, -1)), table).transpose(1, 2)
        k, v = keys_values
        return self.proj(attend(q, k[: len(q)], v[: len(q)], backend=self.backend))


class FlowBlock(Region):
    """Self-attention and MLP, both modulated by time and conditioning (the head of FlowAR-S)."""

    def __init__(self, width: int, cond_width: int) -> None:
        super().__init__()
        self.attn = RotaryAttention(width, width // _HEAD_WIDTH, qkv_bias=False)
        self.mlp = GatedMLP(width)
        self.ada_lin = nn.Linear(width, 6 * width)

    def at_times(self, t: Tensor) -> Tensor:
        """What the block needs of the embedded times `[..., w]` alone."""
        return t

    def keys_values(self, z: Tensor, table: Tensor) -> KeysValues | None:
        """What the block needs of the conditioning alone."""
        return None

    def forward(self, x: Tensor, y: Tensor, time: Tensor, keys_values: KeysValues | None, table: Tensor) -> Tensor:
        """`x [B, n, w]` under `y [B, n, w]`, SiLU of embedded time plus conditioning."""
        return adaptive(x, self.ada_lin(y), self.attn, self.mlp, table)


class CrossFlowBlock(Region):
    """Self-attention modulated by time, cross-attention to the conditioning, and an MLP modulated by both (the head of
    FlowAR-L and -H)."""

    def __init__(self, width: int, cond_width: int) -> None:
        super().__init__()
        heads = width // _HEAD_WIDTH
        self.attn = RotaryAttention(width, heads, qkv_bias=False)
        self.crossattn = CrossAttention(width, cond_width, heads)
        self.norm2_1 = RMSNorm(width)
        self.norm2_2 = RMSNorm(cond_width)
        self.mlp = GatedMLP(width)
        self.ada_lin_attn = nn.Linear(width, 3 * width)
        self.ada_lin_mlp = nn.Linear(width, 3 * width)

    def at_times(self, t: Tensor) -> Tensor:
        """The attention's modulation at the embedded times `[..., w]`: `[..., 3 w]`."""
        return self.ada_lin_attn(F.silu(t))

    def keys_values(self, z: Tensor, table: Tensor) -> KeysValues | None:
        """Of the cross-attention, which the steps of a stage share."""
        return self.crossattn.keys_values(self.norm2_2(z), table)

    def forward(self, x: Tensor, y: Tensor, time: Tensor, keys_values: KeysValues | None, table: Tensor) -> Tensor:
        """`x [B, n, w]` under `y [B, n, w]`, SiLU of embedded time plus conditioning."""
        assert keys_values is not None
        gate, scale, shift = time.chunk(3, dim=-1)
        x = torch.addcmul(x, gate, self.attn(modulate(rms_norm(x), shift, scale), table))
        x = x + self.crossattn(self.norm2_1(x), keys_values, table)
        gate, scale, shift = self.ada_lin_mlp(y).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(modulate(rms_norm(x), shift, scale)))


class FinalLayer(nn.Module):
    """Modulated norm without a weight, and the output projection."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`x [B, n, w]` under `y [B, n, w]`, to which SiLU has been applied."""
        shift, scale = self.adaLN_modulation[1](y).chunk(2, dim=-1)
        return self.linear(modulate(rms_norm(x), shift, scale))


@dataclass(frozen=True)
class Conditioning:
    """What the steps of a stage share.

    Attributes:
        embedded: `[G B, n, w]`, the projected conditioning.
        keys_values: of each block's cross-attention.
        table: rotary table of the scale.
    """

    embedded: Tensor
    keys_values: list[KeysValues | None]
    table: Tensor


class FlowHead(nn.Module):
    """`(x_t [B, n, D], t, z [B, n, Z]) -> v [B, n, D]`.

    Args:
        channels: `D`.
        cond_width: `Z`.
        depth, width: of the transformer.
        cross_attention: whether its blocks attend to the conditioning.
    """

    def __init__(self, channels: int, cond_width: int, depth: int, width: int, cross_attention: bool) -> None:
        super().__init__()
        if width % _HEAD_WIDTH:
            raise ValueError(f"the head's width must be a multiple of {_HEAD_WIDTH}, got {width}")
        block = CrossFlowBlock if cross_attention else FlowBlock
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(cond_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(block(width, cond_width) for _ in range(depth))
        self.final_layer = FinalLayer(width, channels)

    @property
    def _blocks(self) -> list[FlowBlock | CrossFlowBlock]:
        return cast(list[FlowBlock | CrossFlowBlock], self.res_blocks)

    def condition(self, z: Tensor, table: Tensor) -> Conditioning:
        """Everything that depends on `z [G B, n, Z]` and the scale's rotary table alone."""
        keys_values = [block.keys_values(z, table) for block in self._blocks]
        return Conditioning(self.cond_embed(z), keys_values, table)

    def embed_times(self, t: Tensor) -> list[Tensor]:
        """Everything that depends on the times `[...]` alone: the embedding `[..., w]`, and each block's part."""
        embedded = self.time_embed(t)
        return [embedded, *(block.at_times(embedded) for block in self._blocks)]

    def forward(self, x: Tensor, times: Sequence[Tensor], conditioning: Conditioning) -> Tensor:
        """The velocity `[B, n, D]`.

        Args:
            x: `[B, n, D]`; the conditioning may have more rows, which are then left out.
            times: as `embed_times` gives them, each `[w]` or `[B, 1, w]`.
            conditioning: as `condition` gives it.
        """
        t, *parts = times
        y = F.silu(t + conditioning.embedded[: len(x)])
        x = self.input_proj(x)
        for block, part, keys_values in zip(self._blocks, parts, conditioning.keys_values, strict=True):
            x = block(x, y, part, keys_values, conditioning.table)
        return self.final_layer(x, y)
