"""DDIM (Song et al., arXiv 2010.02502). On a linear flow and with eta 0 it is the Euler method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from disa_framework.solvers.base import Solver
from disa_framework.solvers.grid import Grid, Spaced
from disa_framework.solvers.process import Process
from disa_framework.solvers.table import Row, Table


@dataclass(frozen=True)
class DDIM(Solver):
    """Implicit sampler, eq. 12.

    Args:
        grid: times; `Strided(clip=980)` is the one published with MAR.
        eta: 0 is deterministic, 1 has the variance of DDPM's `small`.
    """

    grid: Grid = Spaced(clip=950)
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")

    def build(self, process: Process, steps: int) -> Table:
        nodes = self.grid.nodes(process, steps)
        count = len(nodes) - 1
        rows = tuple(self._row(process, *nodes.alphas[i : i + 2], *nodes.sigmas[i : i + 2]) for i in range(count))
        return Table(nodes.take(range(count)), rows, process.learns_variance)

    def _row(self, process: Process, alpha: float, alpha_s: float, sigma: float, sigma_s: float) -> Row:
        """`x' = alpha_s x_0 + kept noise + std fresh`, with `x_0` and `noise` read off the head's output."""
        # Noising from s to t adds the variance sigma^2 - (alpha / alpha_s)^2 sigma_s^2.
        added = max(sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2, 0.0)
        std = self.eta * sigma_s / sigma * math.sqrt(added)
        kept = math.sqrt(max(sigma_s**2 - std**2, 0.0))
        (p0, q0), (p1, q1) = process.to_clean(alpha, sigma), process.to_noise(alpha, sigma)
        return Row(P=0, Q=1, A=alpha_s * p0 + kept * p1, B=alpha_s * q0 + kept * q1, S=std)
