"""Solvers converge to the exact solution at their order.

The tokens are from `N(M, S^2)`, for which the best head and the solution of the probability-flow equation are
known: `x_t` stays at the same quantile of `N(alpha_t M, alpha_t^2 S^2 + sigma_t^2)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Grid,
    Heun,
    Nodes,
    Process,
    RectifiedFlow,
    Row,
    SinglestepDPMSolverPP,
    Solver,
    Spaced,
    Table,
    Uniform,
    UniPC,
    VPCosine,
)
from disa_framework.testing.solvers import gaussian_head

M, S = 0.7, 0.5


@dataclass(frozen=True)
class Smooth(Grid):
    """`log(alpha / sigma) = -2 + 5 u^2` for `u` from 0 to 1, with `alpha = cos`, `sigma = sin`.

    Discrete timesteps, of which `log alpha` is interpolated, are not smooth enough to show an order. The
    square makes the first steps small, whose lower order would otherwise decide a third-order method's.
    """

    def nodes(self, process: Process, steps: int) -> Nodes:
        log_snr = [-2 + 5 * (i / steps) ** 2 for i in range(steps + 1)]
        angles = [math.atan(math.exp(-value)) for value in log_snr]
        return Nodes(tuple(angles), tuple(map(math.cos, angles)), tuple(map(math.sin, angles)))


@dataclass(frozen=True)
class Inside(Grid):
    """Evenly in the log SNR, apart from noise and from clean tokens."""

    def nodes(self, process: Process, steps: int) -> Nodes:
        return process.nodes([process.time_at(-2.5 + 5 * i / steps) for i in range(steps + 1)])


def error(solver: Solver, process: Process, grid: Grid, steps: int) -> float:
    """Largest error of the tokens for a few initial noises, in float64."""
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, -1, 1)

    def normal(draws: int, dtype: torch.dtype) -> Tensor:
        return start.to(dtype).expand(draws, *start.shape)

    def spread(nodes: Nodes, i: int) -> float:
        return math.hypot(nodes.alphas[i] * S, nodes.sigmas[i])

    table = solver.build(process, steps)
    tokens = table.run(gaussian_head(process, M, S), normal, torch.float64)
    nodes = grid.nodes(process, steps)
    quantile = (start - nodes.alphas[0] * M) / spread(nodes, 0)
    return (tokens - nodes.alphas[-1] * M - quantile * spread(nodes, -1)).abs().max().item()


def slope(steps: tuple[int, ...], errors: list[float]) -> float:
    """`p` where the error goes as `steps ** -p`."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


ORDERS: list[tuple[Solver, Process, Grid, int]] = [
    (DDIM(Smooth()), VPCosine(), Smooth(), 1),
    *((kind(order, Smooth()), VPCosine(), Smooth(), order)
      for kind in (DPMSolver, DPMSolverPP) for order in (1, 2, 3)),
    (Euler(), RectifiedFlow(), Uniform(), 1),
    (DDIM(Uniform()), RectifiedFlow(), Uniform(), 1),
    (Heun(), RectifiedFlow(), Uniform(), 2),  # in head evaluations, two a step
    (UniPC(Inside()), RectifiedFlow(), Inside(), 3),  # the corrector is worth one order
    *((SinglestepDPMSolverPP(order, Inside()), RectifiedFlow(), Inside(), order) for order in (1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("solver", "process", "grid", "order"), ORDERS, ids=str)
def test_a_solver_has_its_order(solver: Solver, process: Process, grid: Grid, order: int) -> None:
    # Singlestep updates end with one of order 2 here; Heun's method has two evaluations a step.
    steps = (62, 125, 251, 503) if isinstance(solver, SinglestepDPMSolverPP) else (64, 128, 256, 512)
    errors = [error(solver, process, grid, count) for count in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.25)


def test_a_higher_order_is_better_on_a_flow_too() -> None:
    # Its log SNR is infinite at both ends, so some steps there are of first order whatever the method's is.
    solvers = (DPMSolverPP(1, Uniform()), DPMSolverPP(2, Uniform()), DPMSolverPP(3, Uniform()))
    first, second, third = (error(solver, RectifiedFlow(), Uniform(), 64) for solver in solvers)
    assert max(second, third) < first / 4


# --- stochastic solvers: the distribution ---------------------------------------------------------------


def affine(process: Process, nodes: Nodes, row: Row, i: int) -> tuple[float, float]:
    """`(a, b)` of `x' = a x + b + noise`, for a row that keeps nothing of earlier ones."""
    assert row.C == row.D == 0
    head = gaussian_head(process, M, S)(nodes)
    at_0, at_1 = (head(torch.tensor([[[x]]], dtype=torch.float64), i)[..., :1].item() for x in (0.0, 1.0))
    return row.A + row.B * (row.P + row.Q * (at_1 - at_0)), row.B * row.Q * at_0


def moments(table: Table, process: Process) -> tuple[float, float]:
    """Mean and standard deviation of what a table draws from the Gaussian's exact head, in closed form."""
    mean, variance = 0.0, 1.0
    for i, row in enumerate(table.rows):
        a, b = affine(process, table.nodes, row, i)
        mean, variance = a * mean + b, a**2 * variance + row.S**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("solver", "process"),
    [
        (DDPM(Spaced(), "small"), VPCosine()),
        (DDPM(Spaced(), "large"), VPCosine()),
        (DDIM(Spaced(), eta=1.0), VPCosine()),
        (EulerMaruyama(Uniform()), RectifiedFlow()),
        (EulerMaruyama(Uniform(), final_step="flow"), RectifiedFlow()),
    ],
    ids=str,
)
def test_a_stochastic_solver_converges_to_the_distribution(solver: Solver, process: Process) -> None:
    steps = (125, 250, 500, 1000)
    found = [moments(solver.table(process, count), process) for count in steps]
    errors = [abs(mean - M) + abs(std - S) for mean, std in found]
    assert slope(steps, errors) == pytest.approx(1, abs=0.25)
    assert errors[-1] < 0.005


# --- solvers that are each other's special cases ----------------------------------------------------------

VP, FLOW = VPCosine(), RectifiedFlow()
TWINS: list[tuple[Solver, Solver, Process]] = [
    (DDIM(eta=1.0), DDPM(variance="small"), VP),
    *((DDIM(grid), Euler(grid), FLOW) for grid in (Uniform(), Uniform(0.04))),
    *((kind(1, Spaced(950)), DDIM(Spaced(950)), VP) for kind in (DPMSolver, DPMSolverPP)),
]


@pytest.mark.parametrize(("one", "other", "process"), TWINS, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_special_case_of_a_solver_is_another(one: Solver, other: Solver, process: Process, steps: int) -> None:
    tables = one.table(process, steps), other.table(process, steps)
    assert tables[0].nodes == tables[1].nodes
    for a, b in zip(tables[0].rows, tables[1].rows, strict=True):
        assert combined(a) == pytest.approx(combined(b), rel=1e-9, abs=1e-12)


def combined(row: Row) -> dict[str, float]:
    """Factors of the state, the head's output and the noise, whatever the row keeps."""
    return {"state": row.A + row.B * row.P, "head": row.B * row.Q, "noise": row.S}
