"""Layers that the families share, with the parameter names of the published checkpoints.

Letters: `B` batch, `L` sequence length, `w` width, `h` heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from disa_framework.models.attention import AttentionLayer, Past, attend
from disa_framework.models.compiling import Region
from disa_framework.models.linear import Linear


class Attention(AttentionLayer):
    """Multi-head attention with a joint projection for queries, keys and values."""

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, proj_dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.proj_drop = nn.Dropout(proj_dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x [B, L, w]`, `[B, h, L, w / h]` each."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries see, `[B, L, w]`."""
        dropout = self.dropout if self.training else 0.0
        x = attend(q, k, v, causal=self.causal, dropout=dropout, backend=self.backend)
        return self.proj_drop(self.proj(x))


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, gelu=True)
        self.fc2 = Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.fc1(x))))


class Block(Region):
    """Pre-LayerNorm transformer block (ViT, arXiv 2010.11929)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, attn_dropout, proj_dropout, causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio), proj_dropout)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        q, k, v = self.project(x)
        if past:
            k, v = past.cache.write(past.start, k, v)
        return self.update(x, q, k, v)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x [B, L, w]`, `[B, h, L, w / h]` each."""
        return self.attn.project(self.norm1(x))

    def update(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`x [B, L, w]` once its queries `q` have met keys and values, which may be of other tokens, too."""
        x = x + self.attn(q, k, v)
        return x + self.mlp(self.norm2(x))


class TimestepEmbedding(nn.Module):
    """`[cos(t f), sin(t f)]` with `f_i = exp(-ln(10000) i / 128)`, then two linear layers."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(Linear(frequencies, width), nn.SiLU(), Linear(width, width))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times `[...]` as `[..., width]`."""
        half = self.frequencies // 2
        places = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[..., None].float() * torch.exp(-math.log(10000) * places / half)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.dtype))


def check_heads(width: int, heads: int) -> None:
    """Raises a ValueError unless the width divides into the heads."""
    if width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part (DiT, arXiv 2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


def flow_times(times: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """Times `[...]` in [0, 1] as FlowAR and xAR tell them to their heads: `trunc(1000 t)`, in float32."""
    return torch.trunc(1000 * torch.as_tensor(times, dtype=torch.float32, device=device))


def patchify(latents: Tensor, patch: int) -> Tensor:
    """`[B, C, H, W] -> [B, (H/p)(W/p), C p p]`, raster order, channel-major inside a token."""
    B, C, H, W = latents.shape
    x = latents.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // patch) * (W // patch), C * patch * patch)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify` for latents of the given height and width."""
    B, _, D = tokens.shape
    x = tokens.reshape(B, height // patch, width // patch, D // patch**2, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, D // patch**2, height, width)


def gather_tokens(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of `x [B, N, w]` at `places [B, n]`: `[B, n, w]`; `x` may be `[1, N, w]`."""
    return x.expand(len(places), -1, -1).gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def gather_heads(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of `x [B, h, L, d]` at `places [B, n]`: `[B, h, n, d]`."""
    B, h, _, d = x.shape
    return x.gather(2, places[:, None, :, None].expand(B, h, -1, d))
