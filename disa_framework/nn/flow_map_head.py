"""A head of few steps: an MLP that knows the flow map, where a jump from one time to any later one ends, trained by
Lagrangian self-distillation (LSD; Boffi et al., arXiv 2505.18825).

Letters: `...` any leading axes, `D` token channels, `Z` width of the conditioning, `w` width of the head, `T` rows of a
table, `J` jumps, `s` the time at which one begins, `t` that at which it ends (1 is noise, 0 the token, so `s >= t`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from disa_framework.nn.diffusion_head import MLPHead, TimedHead
from disa_framework.nn.time import TimestepEmbedding
from disa_framework.runtime.devices import constant
from disa_framework.solvers.flow import FlowMap
from disa_framework.solvers.process import Nodes

_MEAN_TIME = -0.4  # of the normal whose sigmoid a time is: nearer to tokens than to noise


class WrittenNorm(nn.LayerNorm):
    """LayerNorm in single operations: the gradient of PyTorch's own is wrong behind a forward-mode derivative."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return torch.addcmul(self.bias, x, self.weight) if self.elementwise_affine else x


class FlowMapHead(TimedHead):
    """The head `v(x, s, t)`, the mean velocity of a jump: `X_{s,t}(x) = x + (t - s) v(x, s, t)`.

    At `s = t` it is the velocity of a rectified flow, which it learns from tokens; between other times it learns that a
    jump goes on as the velocity where it ends says, from itself, or from a teacher.

    Args:
        channels: `D`.
        cond_width: `Z`.
        depth, width: of the MLP.
        self_distillation: share of the training that is spent on jumps. With 0 the head is for many steps.

    Raises:
        ValueError: a share outside of [0, 1).
    """

    def __init__(self, channels: int, cond_width: int, depth: int, width: int, self_distillation: float) -> None:
        super().__init__(FlowMap())
        if not 0 <= self_distillation < 1:
            raise ValueError(f"self_distillation must lie in [0, 1), got {self_distillation}")
        self.channels, self.share = channels, self_distillation
        self.net = MLPHead(channels, cond_width, depth, width, channels, WrittenNorm)
        self.end_embed = TimestepEmbedding(width)
        self.log_weight = nn.Linear(width, 1)
        self._teacher: tuple[FlowMapHead, ...] = ()  # a tuple, so that it is no part of the module tree

    def initialize(self) -> None:
        self.net.initialize()
        self.end_embed.initialize()
        nn.init.zeros_(self.log_weight.weight)

    @property
    def teacher(self) -> FlowMapHead:
        """Whose velocity jumps learn from: the head itself, unless it learns from another one."""
        return self._teacher[0] if self._teacher else self

    def learn_from(self, teacher: FlowMapHead) -> None:
        """Has jumps learn from a head as it is now, which may be this one, not from what it becomes."""
        self._teacher = (copy.deepcopy(teacher).requires_grad_(False),)

    def embed_times(self, t: Tensor) -> Tensor:
        return self.embed_jumps(t, t)

    def embed_jumps(self, s: Tensor, t: Tensor) -> Tensor:
        """Embeds jumps between times `[...]` as `[..., w]`."""
        return self.net.time_embed(s) + self.end_embed(t)

    def embed_nodes(self, nodes: Nodes, device: torch.device) -> Tensor:
        ends = constant((*nodes.times[1:], self.process.clean), torch.float32, device)
        return self.embed_jumps(nodes.on(device), ends)

    def embed_cond(self, z: Tensor) -> Tensor:
        return self.net.cond_embed(z)

    def predict(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x, y)

    def velocity(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """At `x [..., D]` and times `t [...]`, under `z [..., Z]`: `[..., D]`."""
        return self.predict(x, self.embed_times(t) + self.embed_cond(z))

    def jump(self, x: Tensor, s: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Where jumps from `x [..., D]` at times `s [...]` end at times `t [...]`, under `z [..., Z]`: `[..., D]`."""
        return x + (t - s)[..., None].to(x) * self.predict(x, self.embed_jumps(s, t) + self.embed_cond(z))

    def corruption(self, shape: tuple[int, ...], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Both times of each token, and its noise. The last ones are those of jumps."""
        first, second = (torch.randn(2, *shape, generator=generator) + _MEAN_TIME).sigmoid()
        jumps = (torch.arange(first.numel()) >= self._diagonal(first.numel())).view(shape)
        s, t = (torch.where(jumps, end(first, second), first) for end in (torch.maximum, torch.minimum))
        return s, t, torch.randn(*shape, self.channels, generator=generator)

    def _diagonal(self, tokens: int) -> int:
        """How many of the tokens of a loss teach the velocity."""
        return tokens - round(self.share * tokens)

    def loss(self, clean: Tensor, z: Tensor, *corruption: Tensor) -> Tensor:
        """Squared errors `[...]` of velocities and of jumps, weighted by what is learned of their times (EDM2, arXiv
        2312.02696)."""
        s, t, noise = corruption
        time, cond = self.embed_jumps(s, t), self.embed_cond(z).expand(*s.shape, -1)
        x = torch.lerp(clean.expand(noise.shape), noise, s[..., None].to(clean))
        target = self.process.target(clean, noise)
        flat = (part.flatten(0, -2) for part in (x, time + cond, target, z.expand(*s.shape, -1)))
        x, y, target, z = flat
        cut = self._diagonal(len(x))
        errors = self.predict(x[:cut], y[:cut]) - target[:cut]
        if cut < len(x):
            jumps = self.jump_errors(x[cut:], s.flatten()[cut:], t.flatten()[cut:], z[cut:])
            errors = torch.cat((errors, jumps))
        weight = self.log_weight(time.detach()).flatten()
        return (weight.exp() * errors.square().mean(-1) - weight).view(s.shape)

    def jump_errors(self, x: Tensor, s: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """`d/dt X_{s,t}(x) - v(X_{s,t}(x), t, t)`, `[J, D]`, which is 0 of the exact map. The velocity is what jumps
        learn from, and passes no gradient on.

        Args:
            x: `[J, D]` noisy tokens.
            s, t: `[J]` times of the jumps.
            z: `[J, Z]` conditioning.
        """
        moved: Any = torch.func.jvp(lambda t: self.jump(x, s, t, z), (t,), (torch.ones_like(t),))
        end, rate = moved
        with torch.no_grad():
            target = self.teacher.to(x.device).velocity(end, t, z)
        return rate - target
