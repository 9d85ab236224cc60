"""The best budget for a cost, for all costs at once: a multiple-choice knapsack, by dynamic programming over stages.

Letters: `K` stages, `M` entries of the menu of step counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from disa_framework.schedules.base import Budget

Matrix = Sequence[Sequence[float]]
"""`[K][M]`, a row a stage."""
P = TypeVar("P", bound=tuple[Any, ...])


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
    menu: Sequence[int], errors: Matrix, costs: Matrix, fixed_cost: float = 0.0, resolution: float = 1.0
) -> list[Choice]:
    """The budgets that no other one beats in both cost and error, by rising cost and strictly falling error.

    What entries cost above the cheapest one of their stage is rounded up to multiples of the resolution while
    searching. The choice within a limit is at least as good as the best within `limit - K * resolution`, and the best
    where costs are multiples of the resolution, as head evaluations are of 1. The costs returned are the true ones.
    With `S = sum of the stages' cost ranges / resolution` it takes `K S M` operations and `2 K S` bytes.

    Args:
        menu: the step counts a stage may have.
        errors: `[K][M]` of a stage with these step counts; the sum over stages is minimized.
        costs: `[K][M]`, likewise.
        fixed_cost: what every budget costs on top.
        resolution: above 0, in the unit of the costs.

    Raises:
        ValueError: for tables that do not fit each other or hold numbers that are not finite.
    """
    for name, table in (("errors", errors), ("costs", costs)):
        if len(table) != len(errors) or any(len(row) != len(menu) for row in table):
            raise ValueError(f"{name} need a row for each stage, with a number for each of the {len(menu)} step counts")
        if not all(math.isfinite(value) for row in table for value in row):
            raise ValueError(f"{name} must be finite, got {table}")
    points = (
        (
            math.fsum([fixed_cost, *(row[j] for row, j in zip(costs, entries, strict=True))]),
            math.fsum(row[j] for row, j in zip(errors, entries, strict=True)),
            tuple(menu[j] for j in entries),
        )
        for entries in _found(errors, _rounded_up(costs, resolution))
    )
    return [Choice(budget, cost, error) for cost, error, budget in undominated(points)]


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


def undominated(points: Iterable[P]) -> list[P]:
    """Of tuples of a cost, an error and whatever else, by rising cost those with less error than all before."""
    kept: list[P] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _rounded_up(costs: Matrix, resolution: float) -> list[list[int]]:
    """What the entries of a stage cost more than its cheapest one, in units of the resolution."""
    above = [[(cost - min(row)) / resolution for cost in row] for row in costs]
    # Quotients that a rounding error lifts above a whole number stay at it.
    return [[math.ceil(value * (1 - 1e-12)) for value in row] for row in above]


def _found(errors: Matrix, units: list[list[int]]) -> list[tuple[int, ...]]:
    """Menu entries of the best budgets for all costs; a cell holds the least error at its cost."""
    cells = sum(map(max, units)) + 1
    least, picked = torch.full((cells,), math.inf, dtype=torch.float64), []
    least[0] = 0.0
    for stage_errors, stage_units in zip(errors, units, strict=True):
        best, pick = torch.full_like(least, math.inf), torch.zeros(cells, dtype=torch.int16)
        for j in reversed(range(len(stage_units))):
            cost = stage_units[j]
            extended = least[: cells - cost] + stage_errors[j]
            pick[cost:].masked_fill_(extended < best[cost:], j)
            torch.minimum(best[cost:], extended, out=best[cost:])
        least = best
        picked.append(pick)
    least = least.cummin(dim=0).values
    cell, found = torch.cat((torch.tensor([True]), least[1:] < least[:-1])).nonzero().squeeze(1), []
    for pick, stage_units in zip(reversed(picked), reversed(units), strict=True):
        entry = pick[cell].long()
        cell = cell - torch.tensor(stage_units)[entry]
        found.append(entry)
    return [tuple(entries) for entries in torch.stack(found[::-1], dim=1).tolist()]
