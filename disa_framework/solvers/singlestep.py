"""Singlestep DPM-Solver++ (Lu et al., arXiv 2211.01095, appendix B; arXiv 2206.00927, algorithms 4 and 5): every
update begins anew, with up to three head evaluations of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from disa_framework.solvers.base import Solver
from disa_framework.solvers.grid import Grid
from disa_framework.solvers.process import Nodes, Process, log_ratio
from disa_framework.solvers.spacing import LogSNR
from disa_framework.solvers.table import Row, Table
from disa_framework.values import LATER

_INNER = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where an update of each order evaluates the head besides its start, as shares of its way in log-SNR."""


@dataclass(frozen=True)
class SinglestepDPMSolverPP(Solver):
    """Updates of order 1, 2 or 3, which keep the predicted clean tokens. An update of order `k` takes `k` evaluations.

    Args:
        order: of the updates, but for what is left at the end: 8 evaluations are updates of the orders 3, 3 and 2.
        grid: where updates start and end. A last update to clean tokens is of order 1, whatever it may be.
        stretch: factor on the times that the head is told. eMIGM tells it 1000/996 times the timestep.
    """

    order: Literal[1, 2, 3] = 3
    grid: Grid = LogSNR()
    stretch: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        if self.order not in _INNER:
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if not 0.5 <= self.stretch <= 2:
            raise ValueError(f"stretch must be near 1, from 0.5 to 2, got {self.stretch}")

    def build(self, process: Process, steps: int) -> Table:
        orders = update_orders(steps, self.order)
        outer = self.grid.nodes(process, len(orders))
        nodes, rows = [], list[Row]()
        for i, order in zip(range(len(outer) - 1), orders, strict=False):  # some grids have less steps than asked for
            places = _update_nodes(process, outer.take((i, i + 1)), order)
            rows += _rows(process, places)
            nodes.append(places.take(range(len(places) - 1)))
        told = sum(nodes[1:], nodes[0])
        told = replace(told, times=tuple(self.stretch * time for time in told.times))
        return Table(told, tuple(rows), process.learns_variance)


def update_orders(steps: int, order: int) -> tuple[int, ...]:
    """Orders of the updates for a number of head evaluations: what the highest order leaves is the last update; where
    it leaves nothing, the last of them becomes two of lower order, as published.

    Raises:
        ValueError: below 1 step.
    """
    if steps < 1:
        raise ValueError(f"a stage needs at least 1 diffusion step, got {steps}")
    whole, rest = divmod(steps, order)
    if rest:
        return (order,) * whole + (rest,)
    return (order,) * (whole - 1) + ((order - 1, 1) if order > 1 else (1,))


def _update_nodes(process: Process, ends: Nodes, order: int) -> Nodes:
    """Where an update evaluates the head, and its end."""
    start, end = (log_ratio(alpha, sigma) for alpha, sigma in zip(ends.alphas, ends.sigmas, strict=True))
    if not math.isfinite(end - start):
        return ends
    inner = process.nodes([process.time_at(start + r * (end - start)) for r in _INNER[order]])
    return ends.take((0,)) + inner + ends.take((1,))


def _rows(process: Process, nodes: Nodes) -> list[Row]:
    """An update's rows. State `j` is `a_j x + sum_l w_jl D_l` with the update's start `x` and clean tokens `D_l`; each
    row takes what the one before added of `D_l` back, to be left with `x`."""
    weights, rows = [(), *_weights(nodes)], []
    for j, after in enumerate(weights[1:]):
        A, before = nodes.sigmas[j + 1] / nodes.sigmas[j], weights[j]
        kept = [w - A * b for w, b in zip(after, (*before, 0.0), strict=True)]
        P, Q = process.to_clean(nodes.alphas[j], nodes.sigmas[j])
        rows.append(Row(P, Q, A, *reversed(kept)))
    return rows


def _weights(nodes: Nodes) -> list[tuple[float, ...]]:
    """Of the `D` known so far in each state after the start's, with `phi = alpha (1 - e^-rh)`."""
    (alpha, *alphas), (sigma, *sigmas) = nodes.alphas, nodes.sigmas
    phi = [a - alpha * s / sigma for a, s in zip(alphas, sigmas, strict=True)]
    if len(phi) == 1:
        return [(phi[0],)]
    h = math.log(alphas[-1] / sigmas[-1]) - math.log(alpha / sigma)
    if len(phi) == 2:
        return [(phi[0],), (0.0, phi[1])]
    c, d = 2 * (alphas[1] - phi[1] / (2 / 3 * h)), 3 / 2 * (alphas[2] - phi[2] / h)
    return [(phi[0],), (phi[1] - c, c), (phi[2] - d, 0.0, d)]
