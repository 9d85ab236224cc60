"""What finished stages leave behind, for adaptive schedules and observers. A stage's head is wrapped to watch the way
from noise to tokens, so no solver knows of it.

Letters: `B` batch, `n` tokens of a stage, `D` token channels, `lambda = log(alpha / sigma)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from disa_framework.solvers.process import Nodes, Process
from disa_framework.solvers.table import Denoiser, Step

_LARGEST = 20.0  # factor between output and clean tokens, above which a prediction is mostly rounding and noise


@dataclass(frozen=True)
class Signals:
    """What a finished stage reveals, means over its tokens: scalars on the device, which nobody waits for unread.

    Attributes:
        straightness: cosine between the direction that the head predicts, from token to noise, and the straight line
            between them, averaged along the way; 1 if one step would have done.
        variance: mean square of what the head did not know when it began, the token less its first prediction: the
            variance of the token given `z`.
        error: root mean square of what Euler's steps in `lambda` miss of the trapezoidal rule's, in units of tokens:
            the embedded error of a pair of first and second order. It falls as `1 / T`.
    """

    straightness: Tensor
    variance: Tensor
    error: Tensor


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves behind.

    Attributes:
        stage: `k`.
        steps: `T(k)` as scheduled.
        evaluations: how often the head was evaluated.
        tokens: tokens of one sample that were drawn.
        signals: what the way from noise to tokens showed, if someone asked for it.
    """

    stage: int
    steps: int
    evaluations: int
    tokens: int
    signals: Signals | None = None


class Trajectory:
    """Watches one stage: draw with `watch(denoise)` instead of `denoise`, then ask for the `signals`.

    Args:
        process: of the head.
    """

    def __init__(self, process: Process) -> None:
        self.process = process

    def watch(self, denoise: Denoiser) -> Denoiser:
        """The same head, watched."""

        def watched(nodes: Nodes) -> Step:
            step, follow = denoise(nodes), self._follow(nodes)

            def watched_step(x: Tensor, i: int) -> Tensor:
                out = step(x, i)
                follow(x, out, i)
                return out

            return watched_step

        return watched

    def _follow(self, nodes: Nodes) -> _Follower:
        self._follower = _Follower(self.process, nodes)
        return self._follower

    def signals(self, tokens: Tensor) -> Signals:
        """What the way to `tokens [B, n, D]` showed."""
        return self._follower.signals(tokens)


class _Follower:
    """Adds up along one table's rows."""

    last: Tensor

    def __init__(self, process: Process, nodes: Nodes) -> None:
        self.nodes, self.learns_variance = nodes, process.learns_variance
        self.to_clean = [process.to_clean(a, s) for a, s in zip(nodes.alphas, nodes.sigmas, strict=True)]
        noisy = [i for i, sigma in enumerate(nodes.sigmas) if sigma]  # Heun looks at finished tokens, too
        fits = [i for i in noisy if max(map(abs, self.to_clean[i])) <= _LARGEST]
        self.rows = fits or noisy[-1:]

    def __call__(self, x: Tensor, out: Tensor, i: int) -> None:
        if i == 0:
            self.start = x
        if not self.rows[0] <= i <= self.rows[-1]:
            return
        if self.learns_variance:
            out = out.chunk(2, dim=-1)[0]
        P, Q = self.to_clean[i]
        clean = P * x + Q * out
        noise = (x - self.nodes.alphas[i] * clean) / self.nodes.sigmas[i]
        direction = torch.nn.functional.normalize(noise - clean, dim=-1)
        if i == self.rows[0]:
            self.first, self.directions, self.missed = clean, direction, torch.zeros_like(clean)
        else:
            self.directions = self.directions + direction
            self.missed = self.missed + self._weight(i) * (clean - self.last)
        self.last = clean

    def _weight(self, i: int) -> float:
        """Half of how much of a row's prediction the step into row `i` takes over."""
        before, now = ((self.nodes.alphas[j], self.nodes.sigmas[j]) for j in (i - 1, i))
        if before[0] == 0:
            return 0.5
        return 0.5 * max(0.0, 1 - (before[0] * now[1]) / (before[1] * now[0]))

    def signals(self, tokens: Tensor) -> Signals:
        line = torch.nn.functional.normalize(self.start - tokens, dim=-1)
        cosines = (self.directions * line).sum(dim=-1) / len(self.rows)
        return Signals(cosines.mean(), (tokens - self.first).square().mean(), self.missed.square().mean().sqrt())
