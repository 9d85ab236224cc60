"""Ancestral sampling (Ho et al., arXiv 2006.11239; variances of Nichol & Dhariwal, arXiv 2102.09672)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from disa_framework.solvers.base import Solver
from disa_framework.solvers.grid import Grid, Spaced
from disa_framework.solvers.process import Nodes, Process, VPCosine
from disa_framework.solvers.table import Row, Table
from disa_framework.values import check_numbers

Variance = Literal["auto", "learned", "small", "large"]


@dataclass(frozen=True)
class Posterior:
    """`q(x_s | x_t, x_0)` for `s < t`, with betas recomputed for the step from `t` to `s`.

    Attributes:
        beta: `1 - alpha_bar_t / alpha_bar_s`.
        variance: the posterior variance, `beta~`; 0 where `s` is clean.
        clean, state: the posterior mean is `clean * x_0 + state * x_t`.
    """

    beta: float
    variance: float
    clean: float
    state: float


def posterior(bar_t: float, bar_s: float) -> Posterior:
    """Eq. 7 of the DDPM paper for `alpha_bar` at `t` and at the next time `s`."""
    beta = 1 - bar_t / bar_s
    return Posterior(
        beta,
        beta * (1 - bar_s) / (1 - bar_t),
        beta * math.sqrt(bar_s) / (1 - bar_t),
        (1 - bar_s) * math.sqrt(1 - beta) / (1 - bar_t),
    )


@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampler.

    Args:
        grid: times; `Spaced(clip=950)` is annealed MAR's, `Spaced()` the plain baseline's.
        variance: of each step: `learned` between both bounds by the head, `small` is `beta~`, `large` is
            `beta`; `auto` is learned where the head predicts it, else small.
        temperature: factor on the noise of each step (not on the initial noise).
    """

    grid: Grid = Spaced(clip=950)
    variance: Variance = "auto"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        known = get_args(Variance)
        if self.variance not in known:
            raise ValueError(f"variance must be one of {', '.join(known)}, got {self.variance!r}")
        check_numbers(DDPM.__init__, vars(self))

    def build(self, process: Process, steps: int) -> Table:
        if not isinstance(process, VPCosine):
            raise ValueError(
                f"DDPM is for variance-preserving heads, this one is {type(process).__name__}: use {process.solvers}"
            )
        nodes = self.grid.nodes(process, steps)
        count = len(nodes) - 1
        variance = self._variance(process)
        rows = tuple(self._row(process, nodes, i, variance) for i in range(count))
        return Table(nodes.take(range(count)), rows, process.learns_variance)

    def _variance(self, process: Process) -> Variance:
        if self.variance == "learned" and not process.learns_variance:
            raise ValueError("this head predicts no variance: use variance='small' or 'large'")
        if self.variance == "auto":
            return "learned" if process.learns_variance else "small"
        return self.variance

    def _row(self, process: VPCosine, nodes: Nodes, i: int, variance: Variance) -> Row:
        """The mean by way of `x_0`, and the standard deviation."""
        pair = posterior(nodes.alphas[i] ** 2, nodes.alphas[i + 1] ** 2)
        P, Q = process.to_clean(nodes.alphas[i], nodes.sigmas[i])
        if pair.variance == 0:
            return Row(P, Q, A=pair.state, B=pair.clean)
        low, high = math.log(pair.variance), math.log(pair.beta)
        if variance == "learned":
            # log var = (v+1)/2 high + (1-v)/2 low, so std = exp((low+high)/4) exp(v (high-low)/4)
            std, slope = math.exp((low + high) / 4), (high - low) / 4
        else:
            std, slope = math.exp((low if variance == "small" else high) / 2), 0.0
        return Row(P, Q, A=pair.state, B=pair.clean, S=self.temperature * std, R=slope)
