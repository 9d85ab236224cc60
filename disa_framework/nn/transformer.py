"""Layers that the families share, with the parameter names of the published checkpoints.

Letters: `B` batch, `L` sequence length, `w` width, `h` heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.nn.attention import AttentionLayer, Past, attend
from disa_framework.nn.region import Region
from disa_framework.values import MOST


def start_linears(model: nn.Module, at_zero: Callable[[str], bool] = lambda name: False) -> None:
    """Starts linear layers as the published code does: Xavier-uniform weights, and biases at zero.

    Args:
        at_zero: of a layer's name, whether its weights start at zero, too, as modulations and outputs do (DiT, arXiv
            2212.09748).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            (nn.init.zeros_ if at_zero(name) else nn.init.xavier_uniform_)(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Attention(AttentionLayer):
    """Multi-head attention with a joint projection for queries, keys and values."""

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, proj_dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
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
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


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
        self.mlp = MLP(width, hidden_width(width * mlp_ratio), proj_dropout)

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


def check_heads(width: int, heads: int) -> None:
    """Raises a ValueError unless the width divides into the heads."""
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")


def hidden_width(width: float) -> int:
    """Width within an MLP, rounded down, or a ValueError."""
    if not 1 <= width <= MOST:
        raise ValueError(f"mlp_ratio must give the MLPs a width of 1 … {MOST:,}, got one of {width:g}")
    return int(width)
