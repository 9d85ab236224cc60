"""The best budget for a cost, for all costs at once: a multiple-choice knapsack, by dynamic programming over stages.

Letters: `K` stages, `M` entries of the menu of step counts.

`rows[j]` holds the best budgets of the stages so far among those that use no entry below `j`. A stage extends
them by one entry after another, from the last to the first. If budgets may not rise, an entry extends the budgets
of its own row, else those of `rows[0]`, which are all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from disa_framework.schedules.base import Budget, whole

_MAX_CELLS = 2**30

Matrix = Sequence[Sequence[float]]
"""`[K][M]`, a row a stage."""
Point = tuple[float, float, tuple[int, ...]]
"""Cost, error, and what has them."""


@dataclass(frozen=True)
class Choice:
    """One point of a front.

    Attributes:
        budget: `T(0), …, T(K-1)`.
        cost: of the budget, with the fixed cost.
        error: sum over the stages.
    """

    budget: Budget
    cost: float
    error: float


def pareto_front(
    menu: Sequence[int],
    errors: Matrix,
    costs: Matrix,
    fixed_cost: float = 0.0,
    monotone: bool = False,
    resolution: float | None = None,
) -> list[Choice]:
    """The budgets that no other one beats in both cost and error, by rising cost and strictly falling error.

    Without a resolution the front is exact, and the work grows with the number of points on the fronts of the
    first `k` stages, in the worst case `M**k`; with errors that fall smoothly, 64 stages and a dozen entries take a
    second.

    With a resolution, what entries cost above the cheapest one of their stage is rounded up to its multiples while
    searching. The tables have `S = sum of the stages' cost ranges / resolution` cells: `K S M` operations and
    `2 K S` bytes, `M` times as many bytes if monotone. The choice within a limit is at least as good as the best
    within `limit - K * resolution`, and the best where costs are multiples of the resolution, as head evaluations
    are of 1. The costs returned are the true ones, so limits hold.

    Args:
        menu: the step counts a stage may have, rising.
        errors: `[K][M]` of a stage with these step counts; the sum over stages is minimized.
        costs: `[K][M]`, likewise.
        fixed_cost: what every budget costs on top.
        monotone: whether only budgets that never rise from stage to stage are allowed.
        resolution: above 0, in the unit of the costs.

    Raises:
        ValueError: for a menu that does not rise from 1 or more, tables of another shape or with numbers that are
            not finite, or a resolution that is not above 0 or too fine for memory.
    """
    menu = [whole(steps) for steps in menu]
    if not menu or menu[0] < 1 or sorted(set(menu)) != menu:
        raise ValueError(f"a menu of step counts must rise from 1 or more, got {menu}")
    _check_tables(errors, costs, len(menu))
    if not math.isfinite(fixed_cost):
        raise ValueError(f"the fixed cost must be finite, got {fixed_cost}")
    if resolution is None:
        found = _search_points(errors, costs, monotone)
    else:
        found = _search_cells(errors, _rounded_up(costs, resolution, monotone), monotone)
    points = (
        (
            math.fsum([fixed_cost, *(row[j] for row, j in zip(costs, entries, strict=True))]),
            math.fsum(row[j] for row, j in zip(errors, entries, strict=True)),
            tuple(menu[j] for j in entries),
        )
        for entries in found
    )
    return [Choice(budget, cost, error) for cost, error, budget in _undominated(points)]


def best_within(front: Sequence[Choice], limit: float) -> Choice:
    """The choice of least error that costs at most `limit`.

    Raises:
        ValueError: if there is none; the message names the cheapest feasible cost.
    """
    within = [choice for choice in front if choice.cost <= limit]
    if not within:
        cheapest = min(choice.cost for choice in front)
        raise ValueError(f"no budget costs at most {limit}: the cheapest feasible cost is {cheapest}")
    return min(within, key=lambda choice: choice.error)


def _search_points(errors: Matrix, costs: Matrix, monotone: bool) -> list[tuple[int, ...]]:
    """Menu entries of all budgets on the exact front."""
    M = len(costs[0])
    rows: list[list[Point]] = [[(0.0, 0.0, ())]] * M
    for stage_errors, stage_costs in zip(errors, costs, strict=True):
        best: list[Point] = []
        extended: list[list[Point]] = []
        for j in reversed(range(M)):
            cost, error = stage_costs[j], stage_errors[j]
            best = _undominated([*best, *((c + cost, e + error, (*p, j)) for c, e, p in rows[j if monotone else 0])])
            extended.append(best)
        rows = extended[::-1]
    return [entries for _, _, entries in rows[0]]


def _undominated(points: Iterable[Point]) -> list[Point]:
    """By rising cost, those with less error than all before."""
    kept: list[Point] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _search_cells(errors: Matrix, units: list[list[int]], monotone: bool) -> list[tuple[int, ...]]:
    """As `_search_points` for costs in whole units: a cell holds the least error at its cost."""
    K, M, cells = len(units), len(units[0]), _cells(units)
    rows = torch.full((M if monotone else 1, cells), math.inf, dtype=torch.float64)
    rows[:, 0] = 0.0
    picked = torch.empty((K, *rows.shape), dtype=torch.int16)
    for k in range(K):
        best = torch.full((cells,), math.inf, dtype=torch.float64)
        pick = torch.zeros(cells, dtype=torch.int16)
        for j in reversed(range(M)):
            cost, row = units[k][j], j if monotone else 0
            extended = rows[row, : cells - cost] + errors[k][j]
            pick[cost:].masked_fill_(extended < best[cost:], j)
            torch.minimum(best[cost:], extended, out=best[cost:])
            if j == row:  # no later entry reads this row
                rows[row], picked[k, row] = best, pick
    least = rows[0].cummin(dim=0).values
    cell = torch.cat((torch.tensor([True]), least[1:] < least[:-1])).nonzero().squeeze(1)
    entry, found = torch.zeros_like(cell), []
    for k in reversed(range(K)):
        entry = picked[k, entry if monotone else 0, cell].long()
        cell = cell - torch.tensor(units[k])[entry]
        found.append(entry)
    return [tuple(entries) for entries in torch.stack(found[::-1], dim=1).tolist()]


def _rounded_up(costs: Matrix, resolution: float, monotone: bool) -> list[list[int]]:
    """What the entries of a stage cost more than its cheapest one, in units of the resolution."""
    if not 0 < resolution < math.inf:
        raise ValueError(f"the resolution must be above 0, got {resolution}")
    above = [[(cost - min(row)) / resolution for cost in row] for row in costs]
    # Quotients that a rounding error lifts above a whole number stay at it.
    units = [[math.ceil(value * (1 - 1e-12)) for value in row] for row in above]
    tables = len(costs) * (len(costs[0]) if monotone else 1)
    if tables * _cells(units) > _MAX_CELLS:
        coarser = 2 * resolution * tables * _cells(units) / _MAX_CELLS
        raise ValueError(f"a resolution of {resolution} makes tables too large: use {coarser:.1g} or more")
    return units


def _cells(units: list[list[int]]) -> int:
    return sum(map(max, units)) + 1


def _check_tables(errors: Matrix, costs: Matrix, width: int) -> None:
    if not len(errors) == len(costs) >= 1:
        raise ValueError(f"errors and costs need a row for each stage, got {len(errors)} and {len(costs)} rows")
    for name, table in (("errors", errors), ("costs", costs)):
        for k, row in enumerate(table):
            if len(row) != width:
                raise ValueError(f"a menu of {width} needs as many {name} a stage; stage {k} has {len(row)}")
            if wrong := [value for value in row if not math.isfinite(value)]:
                raise ValueError(f"{name} must be finite; stage {k} has {wrong[0]}")
