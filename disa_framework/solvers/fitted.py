"""Tables that were fitted to a head: times and coefficients for a few steps that end where many steps end.

Any row of a table is linear, so a few numbers say all of it; Shaul et al. (arXiv 2403.01329) fit solvers of this kind.
`disa_framework.search.fit_solver` finds them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from disa_framework.solvers.base import Solver
from disa_framework.solvers.process import Process
from disa_framework.solvers.table import Row, Table
from disa_framework.values import check_numbers

FittedRow = tuple[float, float, float, float, float]
"""The time from 0 (clean) to 1 (noise) of an evaluation, and `A`, `B`, `C`, `D` of `x' = A x + B m + C m' + D m''` with
the clean tokens `m` that were predicted there, at the evaluation before, and at the one before that."""


@dataclass(frozen=True)
class Fitted(Solver):
    """A solver for one head and few steps.

    Args:
        tables: for each number of steps, its rows. Other numbers of steps take the largest one below.
        temperature: factor on the noise that tokens begin as.
    """

    tables: tuple[tuple[FittedRow, ...], ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        tables = sorted((tuple(tuple(map(float, row)) for row in rows) for rows in self.tables), key=len)
        object.__setattr__(self, "tables", tuple(tables))
        if not tables or len({len(rows) for rows in tables}) < len(tables) or not all(tables):
            raise ValueError("a fitted solver has one table for each number of steps, from 1 on")
        if any(len(row) != 5 or not 0 < row[0] <= 1 for rows in tables for row in rows):
            raise ValueError("rows of a fitted solver are a time above 0 and up to 1, and four coefficients")
        check_numbers(Fitted.__init__, vars(self))

    def taken(self, steps: int) -> int:
        return len(self._largest(steps))

    def build(self, process: Process, steps: int) -> Table:
        largest = self._largest(steps)
        nodes = process.nodes([process.at_unit_time(row[0]) for row in largest])
        coefficients = zip(nodes.alphas, nodes.sigmas, largest, strict=True)
        rows = tuple(Row(*process.to_clean(alpha, sigma), *row[1:]) for alpha, sigma, row in coefficients)
        return Table(nodes, rows, process.learns_variance, self.temperature)

    def _largest(self, steps: int) -> tuple[FittedRow, ...]:
        """The rows for at most so many steps."""
        fitting = [rows for rows in self.tables if len(rows) <= steps]
        if not fitting:
            raise ValueError(f"this solver was fitted for {len(self.tables[0])} steps and more, got {steps}")
        return fitting[-1]


@dataclass(frozen=True)
class Staged(Solver):
    """A solver for each AR stage: how a stage's tokens are best drawn depends on how much is known of them.

    Args:
        solvers: of the stages `0 … K - 1`.
        temperature: factor on top of theirs.
    """

    solvers: tuple[Solver, ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "solvers", tuple(self.solvers))
        if not self.solvers or any(isinstance(s, Staged) or not isinstance(s, Solver) for s in self.solvers):
            raise ValueError("a staged solver has one solver for each stage")
        if self.temperature != 1 and not all(hasattr(solver, "temperature") for solver in self.solvers):
            raise ValueError("not all of the stages' solvers have a temperature")
        check_numbers(Staged.__init__, vars(self))

    def at(self, stage: int) -> Solver:
        solver: Any = self.solvers[stage]
        if self.temperature == 1:
            return solver
        return replace(solver, temperature=self.temperature * solver.temperature)

    @property
    def num_stages(self) -> int:
        return len(self.solvers)

    def build(self, process: Process, steps: int) -> Table:
        raise ValueError("a staged solver has a table for each stage: take that of at(stage)")
