"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): how strong, at which stage, for which `t`.

Letters: `B` batch, `n` tokens of a stage, `D` token channels, `T` rows of a solver's table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from disa_framework import values
from disa_framework.solvers.process import Nodes, Process
from disa_framework.solvers.table import Denoiser, Step, state_precision

Head = Callable[[Tensor, Any], Tensor]
"""`(x [B or 2 B, n, D], time) -> out`, `[…, D]`, or `[…, 2 D]` with the variance value behind. It knows nothing of
guidance: rows of the conditional branch come first, and are alone where guidance does not act."""

_MOST_SCALE = 1000  # far beyond all that gives images


@dataclass(frozen=True)
class Guidance:
    """Scale of classifier-free guidance.

    Args:
        scale: the output is `uncond + scale * (cond - uncond)`. 1 is no guidance, and costs nothing.
        schedule: `linear` grows from `start` to `scale` as stages fill the image, `constant` holds `scale`.
        interval: the `t` between which guidance acts, both ends included; 0 is the image, 1 is noise.
            Outside of it the unconditional branch of the head is not computed.
        stages: the shares of the stages between which guidance acts, both ends included: at stage `k` of `K`, counted
            from 0, if `(k + 1) / K` lies between them. At others no unconditional branch is computed, unless later
            stages need its keys and values.
        reuse: both branches of the head are evaluated at every so many of a stage's evaluations in which guidance acts,
            from the first on. In between the conditional one is alone, and what guidance added last is added again
            (LazyMAR, arXiv 2503.12450), which saves time, not evaluations: each counts as one. 1 is exact.
        start: what `linear` grows from; 1 everywhere but in NOVA, which may start higher.
    """

    scale: float = 1.0
    schedule: Literal["linear", "constant"] = "linear"
    interval: tuple[float, float] = (0.0, 1.0)
    stages: tuple[float, float] = field(default=(0.0, 1.0), metadata=values.LATER)
    reuse: int = field(default=1, metadata=values.LATER)
    start: float = field(default=1.0, metadata=values.LATER)

    def __post_init__(self) -> None:
        for name in ("scale", "start"):
            value = getattr(self, name)
            if not math.isfinite(value) or abs(value) > _MOST_SCALE:
                raise ValueError(f"guidance {name} must lie in -{_MOST_SCALE} … {_MOST_SCALE}, got {value:g}")
        if self.schedule not in ("linear", "constant"):
            raise ValueError(f"guidance schedule must be 'linear' or 'constant', got {self.schedule!r}")
        for name in ("interval", "stages"):
            ends = tuple(getattr(self, name))
            object.__setattr__(self, name, ends)
            if len(ends) != 2 or not 0.0 <= ends[0] <= ends[1] <= 1.0:
                raise ValueError(f"guidance {name} must satisfy 0 <= low <= high <= 1, got {ends}")
        if type(self.reuse) is not int or not 1 <= self.reuse <= values.MOST:
            raise ValueError(f"guidance reuse must be a whole number from 1 to {values.MOST:,}, got {self.reuse!r}")

    @property
    def active(self) -> bool:
        """Whether it changes anything, where it acts."""
        return self.scale != 1.0 or (self.schedule == "linear" and self.start != 1.0)

    @property
    def branches(self) -> int:
        """How many there are, the conditional one included."""
        return 2 if self.active else 1

    def acts_at(self, stage: int, num_stages: int) -> bool:
        """Whether it acts at a stage, counted from 0."""
        low, high = self.stages
        return self.active and low <= (stage + 1) / num_stages <= high

    def at(self, progress: float) -> float:
        """Scale at a stage after which the share `progress` of the image exists."""
        return self.scale if self.schedule == "constant" else self.start + (self.scale - self.start) * progress

    def rising(self, stage: int, num_stages: int) -> float:
        """Scale at a stage where it rises from the first stage, which has none, to the last (FlowAR, xAR)."""
        return self.at(stage / (num_stages - 1) if num_stages > 1 else 1.0)

    def acts(self, t: float) -> bool:
        """Whether guidance acts at the time `t` in [0, 1]."""
        low, high = self.interval
        return self.active and low <= t <= high

    def acts_among(self, times: Iterable[float], scale: float) -> list[bool]:
        """Whether it acts at each of the times, at a stage of this scale."""
        return [scale != 1.0 and self.acts(t) for t in times]


def combine(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """`uncond + scale * (cond - uncond)`, equation (6) of the paper with `scale = 1 + w`."""
    return uncond + scale * (cond - uncond)


def guided(
    head: Head, embed: Callable[[Nodes], Sequence[Any] | Tensor], process: Process, guidance: Guidance, scale: float
) -> Denoiser:
    """What a stage is drawn with, of a head that knows nothing of guidance: both branches in one batch where guidance
    acts and is not reused, and the conditional one alone elsewhere. A variance value stays the conditional branch's.

    Args:
        head: evaluated once a row, in the order of the rows.
        embed: what the head is told of the times of a table, `T` things, made once a stage.
        process: on which the head was trained.
        guidance: its interval and reuse.
        scale: at this stage, see `Guidance.at` and `Guidance.rising`.
    """

    def denoise(nodes: Nodes) -> Step:
        times = embed(nodes)
        acts = guidance.acts_among(map(process.unit_time, nodes.times), scale)
        acting = (i for i, acts_here in enumerate(acts) if acts_here)
        both = {i for count, i in enumerate(acting) if count % guidance.reuse == 0}
        last: tuple[Tensor, Tensor]

        def step(x: Tensor, i: int) -> Tensor:
            nonlocal last
            if not acts[i]:
                return head(x, times[i])
            # In bfloat16 the scale itself would be rounded.
            D, precision = x.shape[-1], state_precision(x.dtype)
            if i in both:
                cond, null = head(torch.cat((x, x)), times[i]).to(precision).chunk(2)
                last = cond, null
            else:
                cond = head(x, times[i]).to(precision)
                null = cond - (last[0] - last[1])
            if cond.shape[-1] == D:
                return combine(cond, null, scale)
            return torch.cat((combine(cond[..., :D], null[..., :D], scale), cond[..., D:]), dim=-1)

        return step

    return denoise
