"""UniPC (Zhao et al., arXiv 2302.04867) of order 2 in the clean tokens: what DPM-Solver++ (2M) predicted is corrected
with the next evaluation's output, which costs no evaluation of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disa_framework.solvers.base import Solver
from disa_framework.solvers.dpm_solver import DPMSolverPP, log_snrs
from disa_framework.solvers.grid import Grid
from disa_framework.solvers.process import Process
from disa_framework.solvers.spacing import LogSNR
from disa_framework.solvers.table import Row, Table


@dataclass(frozen=True)
class UniPC(Solver):
    """Predictor and corrector of order 2, with the published `B(h) = e^h - 1`.

    Args:
        grid: times.
    """

    grid: Grid = LogSNR()

    def build(self, process: Process, steps: int) -> Table:
        predictor = DPMSolverPP(2, self.grid).build(process, steps)
        levels, rows = log_snrs(predictor.nodes), list(predictor.rows[:1])
        for i in range(1, len(predictor)):
            before, row = predictor.rows[i - 1], predictor.rows[i]
            # Not the state, but what the corrector would have it differ by: of m_i, m_i-1 and m_i-2.
            now, last, older = _corrector(levels[max(i - 2, 0) : i + 1], _first(before))
            last, older = last - before.B, older - before.C
            rows.append(replace(row, B=row.B + row.A * now, C=row.C + row.A * last, D=row.A * older))
        return Table(predictor.nodes, tuple(rows), process.learns_variance)


def _first(row: Row) -> float:
    """`alpha (1 - e^-h)` of a step of the predictor: all of its weights."""
    return row.B + row.C


def _corrector(levels: list[float], first: float) -> tuple[float, float, float]:
    """Weights of `m_i`, `m_i-1` and `m_i-2` in the corrected state, beside those of the step's start.

    Args:
        levels: `lambda` of the evaluations, `lambda_i` last.
        first: `alpha (1 - e^-h)` of the step that ends there.
    """
    h = levels[-1] - levels[-2]
    if len(levels) == 2 or not math.isfinite(levels[0]):
        return first / 2, first / 2, 0.0
    ratio = (levels[0] - levels[1]) / h
    b_h = math.expm1(-h)
    phi = b_h / -h - 1
    b = phi / b_h, 2 * (phi / -h - 1 / 2) / b_h
    slope = (b[1] - b[0]) / (ratio - 1)  # of the older difference
    now = b[0] - slope
    return first * now, first * (1 - now - slope / ratio), first * slope / ratio
