"""Solvers of a linear flow, `dx/dt = v(x, t)` from t = 1 to 0, and its map."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from disa_framework.solvers.base import Solver
from disa_framework.solvers.grid import Grid, Uniform
from disa_framework.solvers.process import Process, RectifiedFlow
from disa_framework.solvers.table import Row, Table
from disa_framework.values import LATER, check_numbers

_ROUNDING = 1e-9


@dataclass(frozen=True)
class FlowMap(RectifiedFlow):
    """A linear flow whose head knows where jumps end: at each node it predicts the mean velocity on the way to the next
    one, and at the last node that on the way to a clean token (Boffi et al., arXiv 2505.18825)."""

    solvers: ClassVar[str] = "Euler"

    def runs(self, table: Table) -> bool:
        jumps = zip(table.rows, pairwise((*table.nodes.times, self.clean)), strict=True)
        off = (
            (row.A + row.B * row.P - 1, row.B * row.Q - (end - start), row.C, row.D, row.S)
            for row, (start, end) in jumps
        )
        return all(abs(part) < _ROUNDING for parts in off for part in parts)


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method.

    Args:
        grid: times; `Uniform()` has equal steps.
    """

    grid: Grid = Uniform()

    def build(self, process: Process, steps: int) -> Table:
        _check_flow(self, process)
        nodes = self.grid.nodes(process, steps)
        rows = tuple(Row(P=0, Q=1, A=1, B=b - a) for a, b in _intervals(nodes.times))
        return Table(nodes.take(range(len(rows))), rows)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method, two head evaluations a step; an odd count ends with an Euler step.

    `T` counts head evaluations, as for every solver, so a budget costs the same whatever solver runs it.

    Args:
        grid: times of the `T / 2` steps, rounded up.
    """

    grid: Grid = Uniform()

    def build(self, process: Process, steps: int) -> Table:
        _check_flow(self, process)
        nodes = self.grid.nodes(process, -(-steps // 2))
        rows: list[Row] = []
        places: list[int] = []
        for i, (a, b) in enumerate(_intervals(nodes.times)):
            h = b - a
            rows.append(Row(P=0, Q=1, A=1, B=h))
            # The corrector takes half of the predictor back: x + h (v + v') / 2.
            rows.append(Row(P=0, Q=1, A=1, B=h / 2, C=-h / 2))
            places += [i, i + 1]
        if steps % 2:
            rows.pop()
            places.pop()
        return Table(nodes.take(places), tuple(rows))


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """The reverse SDE with diffusion coefficient `2 t`, as published for xAR and SphereAR; no noise at the last step.

    With `score = -((1 - t) v + x) / t`, the drift `v - t score` is `(2 - t) v + x`.

    Args:
        grid: times; those of both are `Uniform(last=0.04)`.
        temperature: factor on the noise of each step.
        final_step: what it follows: the SDE's drift, as xAR's does, or the flow, as SphereAR's, which is then one
            of Euler's.
    """

    grid: Grid = Uniform(last=0.04)
    temperature: float = 1.0
    final_step: Literal["drift", "flow"] = field(default="drift", metadata=LATER)

    def __post_init__(self) -> None:
        check_numbers(EulerMaruyama.__init__, vars(self))
        if self.final_step not in ("drift", "flow"):
            raise ValueError(f"final_step must be 'drift' or 'flow', got {self.final_step!r}")

    def build(self, process: Process, steps: int) -> Table:
        _check_flow(self, process)
        nodes = self.grid.nodes(process, steps)
        rows = tuple(self._row(a, b, last=b == nodes.times[-1]) for a, b in _intervals(nodes.times))
        return Table(nodes.take(range(len(rows))), rows)

    def _row(self, t: float, end: float, last: bool) -> Row:
        dt = end - t
        if last and self.final_step == "flow":
            return Row(P=0, Q=1, A=1, B=dt)
        noise = 0.0 if last else self.temperature * math.sqrt(2 * t * -dt)
        return Row(P=0, Q=1, A=1 + dt, B=(2 - t) * dt, S=noise)


def _intervals(times: tuple[float, ...]) -> list[tuple[float, float]]:
    return list(pairwise(times))


def _check_flow(solver: Solver, process: Process) -> None:
    if not isinstance(process, RectifiedFlow):
        raise ValueError(
            f"{type(solver).__name__} is for linear flows, this head is {type(process).__name__}: use {process.solvers}"
        )
