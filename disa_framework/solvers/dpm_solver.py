"""DPM-Solver (Lu et al., arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095), multistep, orders 1 to 3.

Both integrate the probability-flow ODE exactly in its linear part and a polynomial through the last
outputs in `lambda = log(alpha / sigma)`: of the noise (DPM-Solver) or of the clean tokens (++). The second
order has the midpoint weights of the published 2M; the third integrates its quadratic exactly. DPM-Solver++ also
solves the reverse SDE, with as much noise as one likes (arXiv 2211.01095, eq. 18; eta as of arXiv 2305.14267).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from disa_framework.solvers.base import Solver
from disa_framework.solvers.grid import Grid, UniformTime
from disa_framework.solvers.process import Nodes, Process, log_ratio
from disa_framework.solvers.table import Row, Table
from disa_framework.values import check_numbers

_Step = tuple[tuple[float, float], float, tuple[float, ...], float]
"""What is kept as `(P, Q)`, the factor of `x`, the weights of the polynomial's terms, and the factor of fresh noise."""


@dataclass(frozen=True)
class _Multistep(Solver):
    """
    Args:
        order: 1, 2 or 3. The first steps, and a last step to clean tokens, are of lower order.
        grid: times; `UniformTime(clip=950)` is the one published with MAR.
    """

    order: Literal[1, 2, 3] = 2
    grid: Grid = UniformTime(clip=950)

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")

    def build(self, process: Process, steps: int) -> Table:
        nodes = self.grid.nodes(process, steps)
        count = len(nodes) - 1
        rows = tuple(self._row(process, nodes, i) for i in range(count))
        return Table(nodes.take(range(count)), rows, process.learns_variance)

    def _row(self, process: Process, nodes: Nodes, i: int) -> Row:
        log_snr = log_snrs(nodes.take(range(max(0, i - 2), i + 2)))
        past = _divided_differences(log_snr, self.order)
        (P, Q), A, weights, S = self._step(process, nodes, i, log_snr[-1] - log_snr[-2])
        B, C, D = (sum(w * d[j] for w, d in zip(weights, past, strict=False)) for j in range(3))
        return Row(P, Q, A, B, C, D, S)

    def _step(self, process: Process, nodes: Nodes, i: int, h: float) -> _Step:
        """A step over `h` in lambda."""
        raise NotImplementedError


@dataclass(frozen=True)
class DPMSolver(_Multistep):
    """DPM-Solver, which keeps the predicted noise. It cannot start where `alpha` is 0 (a flow at t = 1)."""

    def _step(self, process: Process, nodes: Nodes, i: int, h: float) -> _Step:
        (alpha, alpha_s), (sigma, sigma_s) = nodes.alphas[i : i + 2], nodes.sigmas[i : i + 2]
        if alpha == 0:
            raise ValueError("DPMSolver cannot start from pure noise: use DPMSolverPP")
        # sigma_s (e^h - 1), written so that it is finite at sigma_s = 0
        first = alpha_s * sigma / alpha - sigma_s
        second = first / h - sigma_s if sigma_s else 0.0
        third = 2 * second / h - sigma_s if sigma_s else 0.0
        weights = (-first, -(first / 2 if self.order == 2 else second), -third)
        return process.to_noise(alpha, sigma), alpha_s / alpha, weights, 0.0


@dataclass(frozen=True)
class DPMSolverPP(_Multistep):
    """DPM-Solver++, which keeps the predicted clean tokens. Order 2 is the published 2M.

    Args:
        eta: 0 solves the probability-flow ODE, 1 the reverse SDE (the published SDE-DPM-Solver++), and what lies
            between has part of its noise.
        temperature: factor on all noise: that which tokens begin as, and that of each step, where there is any.
    """

    eta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        check_numbers(DPMSolverPP.__init__, vars(self))

    def build(self, process: Process, steps: int) -> Table:
        return replace(super().build(process, steps), start=self.temperature)

    def _step(self, process: Process, nodes: Nodes, i: int, h: float) -> _Step:
        (alpha, alpha_s), (sigma, sigma_s) = nodes.alphas[i : i + 2], nodes.sigmas[i : i + 2]
        forgotten = math.exp(-self.eta * h) if self.eta else 1.0  # share of the state that fresh noise leaves
        g = (1 + self.eta) * h
        first = alpha_s - alpha * sigma_s / sigma * forgotten  # alpha_s (1 - e^-g)
        second = alpha_s - first / g
        third = alpha_s - 2 * second / g
        weights = (first, first / 2 if self.order == 2 else second, third)
        noise = self.temperature * sigma_s * math.sqrt(max(1 - forgotten**2, 0.0))
        return process.to_clean(alpha, sigma), sigma_s / sigma * forgotten, weights, noise


def log_snrs(nodes: Nodes) -> list[float]:
    """`lambda = log(alpha / sigma)` at each node, in part infinite."""
    return [log_ratio(alpha, sigma) for alpha, sigma in zip(nodes.alphas, nodes.sigmas, strict=True)]


def _divided_differences(log_snr: list[float], order: int) -> list[tuple[float, float, float]]:
    """The polynomial's terms in `u = (lambda - lambda_i) / h`, each as factors of `(m_i, m_i-1, m_i-2)`.

    `log_snr` ends with `lambda_i` and `lambda_i+1`; terms that would need an infinite one are left out.
    """
    *before, now, after = log_snr
    h = after - now
    gaps = [a - b for a, b in zip([now, *before[::-1]], before[::-1], strict=False)]
    known = len([gap for gap in gaps if math.isfinite(gap)]) if math.isfinite(h) else 0
    terms = min(order, known + 1)
    constant = (1.0, 0.0, 0.0)
    if terms == 1:
        return [constant]
    i0 = h / gaps[0]
    if terms == 2:
        return [constant, (i0, -i0, 0.0)]
    i1, s = h / gaps[1], h / (gaps[0] + gaps[1])
    q = s * gaps[0] / h
    slope = ((1 + q) * i0, -(1 + q) * i0 - q * i1, q * i1)
    return [constant, slope, (s * i0, -s * (i0 + i1), s * i1)]
