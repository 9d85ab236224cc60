"""SphereAR's layers, with the parameter names of its checkpoints: a causal transformer without biases, and a velocity
head whose blocks share modulations (Ke & Xue, arXiv 2509.24335).

Letters: `...` any leading axes, `B` batch, `L` sequence length, `w` width, `D` token channels, `Z` width of the
conditioning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.nn.adaln import RMSNorm, modulate
from disa_framework.nn.attention import AttentionLayer, Past, attend
from disa_framework.nn.diffusion_head import TimedHead
from disa_framework.nn.region import Region
from disa_framework.nn.rotary import rotated
from disa_framework.nn.time import TimestepEmbedding
from disa_framework.nn.transformer import check_heads
from disa_framework.solvers.process import RectifiedFlow

_MULTIPLE = 256  # of the hidden width in the transformer


class SwiGLU(nn.Module):
    """`w2(SiLU(a) * b)` with `[a, b] = w1(x)` (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w1(x).chunk(2, dim=-1)
        return self.w2(F.silu(a) * b)


class CausalRotaryAttention(AttentionLayer):
    """Self-attention with rotary positions, over cached tokens and its own up to each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, table: Tensor, past: Past | None = None) -> Tensor:
        q, k, v = rotated(self.wqkv(x), self.heads, table)
        if past:
            k, v = past.cache.write(past.start, k, v)
        return self.wo(attend(q, k, v, causal=True, backend=self.backend))


class GatedBlock(Region):
    """Pre-RMSNorm transformer block with a SwiGLU of 8/3 of the width, rounded up to whole 256."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = CausalRotaryAttention(width, heads)
        self.feed_forward = SwiGLU(width, -(-(8 * width // 3) // _MULTIPLE) * _MULTIPLE, bias=False)
        self.attention_norm = RMSNorm(width)
        self.ffn_norm = RMSNorm(width)

    def forward(self, x: Tensor, table: Tensor, past: Past | None = None) -> Tensor:
        """`x [B, L, w]`, turned by a table `[L, d / 2]`."""
        x = x + self.attention(self.attention_norm(x), table, past)
        return x + self.feed_forward(self.ffn_norm(x))


class GatedResBlock(SwiGLU, Region):
    """`x + gate * swiglu(modulate(norm(x)))`."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width * 3 // 2, bias=True)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return torch.addcmul(x, gate, super().forward(modulate(self.norm(x), shift, scale)))


class FinalLayer(nn.Module):
    """Modulated norm without affine, and the output projection."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ada_ln_modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.ada_ln_modulation(y).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class GatedMLPHead(nn.Module):
    """`(x_t [..., D], t, z [..., Z]) -> [..., D]`; `depth / modulations` consecutive blocks share a modulation."""

    def __init__(self, channels: int, cond_width: int, depth: int, width: int, modulations: int) -> None:
        super().__init__()
        if depth % modulations:
            raise ValueError(f"{depth} blocks of the head do not divide into {modulations} that share a modulation")
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(cond_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(GatedResBlock(width) for _ in range(depth))
        self.ada_ln_blocks = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(modulations))
        self.final_layer = FinalLayer(width, channels)

    def initialize(self) -> None:
        """Starts modulations and output at zero, and the embedding of times small (DiT, arXiv 2212.09748)."""
        self.time_embed.initialize()
        for layer in (*self.ada_ln_blocks, self.final_layer.ada_ln_modulation, self.final_layer.linear):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`x [..., D]` under the conditioning `y = time_embed(t) + cond_embed(z)`, `[..., w]`."""
        x, y = self.input_proj(x), F.silu(y)
        shared = len(self.res_blocks) // len(self.ada_ln_blocks)
        for i, block in enumerate(self.res_blocks):
            if i % shared == 0:
                scale, shift, gate = self.ada_ln_blocks[i // shared](y).chunk(3, dim=-1)
            x = block(x, scale, shift, gate)
        return self.final_layer(x, y)


class VelocityHead(TimedHead):
    """The head on single tokens, its sampling, and its loss. As published it is told `1000 (1 - t)`, from noise on, and
    its output is the velocity the other way round, `x_0 - noise`."""

    def __init__(
        self, channels: int, cond_width: int, depth: int, width: int, modulations: int, process: RectifiedFlow
    ) -> None:
        super().__init__(process)
        self.channels = channels
        self.net = GatedMLPHead(channels, cond_width, depth, width, modulations)

    def initialize(self) -> None:
        self.net.initialize()

    def embed_times(self, t: Tensor) -> Tensor:
        return self.net.time_embed(1000 * (1 - t))

    def embed_cond(self, z: Tensor) -> Tensor:
        return self.net.cond_embed(z)

    def predict(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.net(x, y)

    def forward(self, clean: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Velocity `[..., D]` of noisy tokens.

        Args:
            clean: `[..., D]` tokens.
            z: `[..., Z]` conditioning.
            t: `[...]` times.
            noise: `[..., D]`.
        """
        noisy = torch.lerp(clean, noise, t[..., None].to(clean))
        return self.predict(noisy, self.embed_times(t) + self.embed_cond(z))

    def corruption(self, shape: tuple[int, ...], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        times = torch.randn(shape, generator=generator).sigmoid()  # logit-normal (0, 1)
        return times, torch.randn(*shape, self.channels, generator=generator)

    def loss(self, clean: Tensor, z: Tensor, *corruption: Tensor) -> Tensor:
        t, noise = corruption
        clean = clean.expand(noise.shape)
        velocity = self(clean, z.expand(*t.shape, -1), t, noise)
        return (velocity - self.process.target(clean, noise)).square().mean(dim=-1)
