"""The layers of MAR, FlowAR and xAR in plain PyTorch, as the published code writes them; of the models' modules they
read weights and sizes, and call none.

Letters: `B` batch, `L` sequence length, `w` width, `h` heads, `d = w / h` width of a head, `D` token channels,
`Z` width of the conditioning, `n` tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disa_framework.nn.attention import Past
from disa_framework.nn.flow_head import CrossFlowBlock

Weights = Any
"""A module of a model."""

Table = tuple[Tensor, Tensor]
"""Cosines and sines of rotary positions, `[L, d]` each."""


def linear(x: Tensor, layer: Weights) -> Tensor:
    """`[..., w] -> [..., out]`."""
    return F.linear(x, layer.weight, layer.bias)


def layer_norm(x: Tensor, norm: Weights) -> Tensor:
    """LayerNorm of `x [..., w]`."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm of `x [..., w]`, without a weight."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm's affine part, `[..., w]`."""
    return x * (1 + scale) + shift


def modulation(y: Tensor, layer: Weights) -> Tensor:
    """Shifts, scales and gates that a condition `y [..., w]` makes: `[..., out]`."""
    return linear(F.silu(y), layer)


def embed_times(t: Tensor, layer: Weights) -> Tensor:
    """Times `[...]` as `[..., w]`."""
    half = layer.frequencies // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[..., None] * frequencies
    return two_linears(torch.cat((angles.cos(), angles.sin()), dim=-1), layer.mlp)


def two_linears(x: Tensor, layers: Weights) -> Tensor:
    """Linear, SiLU, linear: `[..., w] -> [..., out]`."""
    return linear(F.silu(linear(x, layers[0])), layers[2])


def mlp(x: Tensor, layer: Weights) -> Tensor:
    """Linear, exact GELU, linear: `[..., w]`."""
    return linear(F.gelu(linear(x, layer.fc1)), layer.fc2)


def gated_mlp(x: Tensor, layer: Weights) -> Tensor:
    """`fc2(GELU(fc1_g(x)) * fc1_x(x))`, `[..., w]`."""
    return linear(F.gelu(linear(x, layer.fc1_g)) * linear(x, layer.fc1_x), layer.fc2)


def heads(x: Tensor, parts: int, count: int) -> Tensor:
    """`[B, L, parts w] -> [parts, B, h, L, d]`."""
    return x.unflatten(-1, (parts, count, -1)).permute(2, 0, 3, 1, 4)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[B, h, L, d]` each; heads joined, `[B, L, w]`."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rotary_table(positions: Tensor, layer: Weights) -> Table:
    """For tokens at `positions [L, 2]`: rows turn the first half of a head, columns the second."""
    angles = (positions.to(layer.freqs)[..., None] * layer.freqs).flatten(1).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turns neighboring channels of `x [B, h, L, d]`, which are a pair."""
    cos, sin = table
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def attention(x: Tensor, layer: Weights) -> Tensor:
    """Self-attention of `x [B, L, w]`."""
    q, k, v = heads(linear(x, layer.qkv), 3, layer.heads)
    return linear(attend(q, k, v), layer.proj)


def rotary_attention(x: Tensor, layer: Weights, table: Table, past: Past | None = None) -> Tensor:
    """Self-attention of `x [B, L, w]` with rotary positions, over cached tokens and its own."""
    q, k, v = heads(linear(x, layer.qkv), 3, layer.heads)
    q, k = rotate(q, table), rotate(k, table)
    if past:
        k, v = past.cache.write(past.start, k, v)
    return linear(attend(q, k, v), layer.proj)


def cross_attention(x: Tensor, z: Tensor, layer: Weights, table: Table) -> Tensor:
    """Attention of `x [B, n, w]` to `z [B, n, Z]`, both with rotary positions."""
    (q,), (k, v) = heads(linear(x, layer.q), 1, layer.heads), heads(linear(z, layer.kv), 2, layer.heads)
    return linear(attend(rotate(q, table), rotate(k, table), v), layer.proj)


def vit_block(x: Tensor, block: Weights) -> Tensor:
    """MAR's transformer block: `x [B, L, w]`."""
    x = x + attention(layer_norm(x, block.norm1), block.attn)
    return x + mlp(layer_norm(x, block.norm2), block.mlp)


def adaptive_block(x: Tensor, vectors: Tensor, block: Weights, table: Table, past: Past | None = None) -> Tensor:
    """FlowAR's and xAR's transformer block: `x [B, L, w]` under the modulation `vectors [B, 1 or L, 6 w]`."""
    gate1, gate2, scale1, scale2, shift1, shift2 = vectors.chunk(6, dim=-1)
    x = x + gate1 * rotary_attention(modulate(rms_norm(x), shift1, scale1), block.attn, table, past)
    return x + gate2 * gated_mlp(modulate(rms_norm(x), shift2, scale2), block.mlp)


def cross_flow_block(x: Tensor, time: Tensor, y: Tensor, z: Tensor, block: Weights, table: Table) -> Tensor:
    """FlowAR-L's block of the head: `x [B, n, w]` under `time [B, 1, w]`, `y [B, n, w]` and `z [B, n, Z]`."""
    gate, scale, shift = modulation(time, block.ada_lin_attn).chunk(3, dim=-1)
    x = x + gate * rotary_attention(modulate(rms_norm(x), shift, scale), block.attn, table)
    seen = rms_norm(z) * block.norm2_2.weight
    x = x + cross_attention(rms_norm(x) * block.norm2_1.weight, seen, block.crossattn, table)
    gate, scale, shift = modulation(y, block.ada_lin_mlp).chunk(3, dim=-1)
    return x + gate * gated_mlp(modulate(rms_norm(x), shift, scale), block.mlp)


def diffusion_head(x: Tensor, t: Tensor, z: Tensor, net: Weights) -> Tensor:
    """MAR's head: `x [B, D]` at times `[B]` under `z [B, Z]` gives `[B, 2 D]`, noise and variance value."""
    y = embed_times(t, net.time_embed) + linear(z, net.cond_embed)
    x = linear(x, net.input_proj)
    for block in net.res_blocks:
        shift, scale, gate = modulation(y, block.adaLN_modulation[1]).chunk(3, dim=-1)
        x = x + gate * two_linears(modulate(layer_norm(x, block.in_ln), shift, scale), block.mlp)
    shift, scale = modulation(y, net.final_layer.adaLN_modulation[1]).chunk(2, dim=-1)
    return linear(modulate(layer_norm(x, net.final_layer.norm_final), shift, scale), net.final_layer.linear)


def flow_head(x: Tensor, t: Tensor, z: Tensor, net: Weights, table: Table) -> Tensor:
    """FlowAR's head: the velocity of `x [B, n, D]` at times `[B, 1]` under `z [B, n, Z]`."""
    time = embed_times(t, net.time_embed)
    y = time + linear(z, net.cond_embed)
    x = linear(x, net.input_proj)
    for block in net.res_blocks:
        if isinstance(block, CrossFlowBlock):
            x = cross_flow_block(x, time, y, z, block, table)
        else:
            x = adaptive_block(x, modulation(y, block.ada_lin), block, table)
    shift, scale = modulation(y, net.final_layer.adaLN_modulation[1]).chunk(2, dim=-1)
    return linear(modulate(rms_norm(x), shift, scale), net.final_layer.linear)
