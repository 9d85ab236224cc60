"""The knapsack: equal to trying all budgets, Pareto-optimal, and never over a limit."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from disa_framework.search.knapsack import Choice, Matrix, best_within, pareto_front

Draw = Callable[[random.Random], float]


def continuous(rng: random.Random) -> float:
    return rng.uniform(0.1, 3.0)


def few_values(rng: random.Random) -> float:
    """Whole numbers, many of which tie."""
    return float(rng.randint(0, 3))


def instance(seed: int, draw: Draw = continuous) -> tuple[list[int], Matrix, Matrix]:
    """A menu, errors and costs that follow no rule, of 1 to 5 stages and 1 to 4 entries."""
    rng = random.Random(seed)
    stages, entries = rng.randint(1, 5), rng.randint(1, 4)
    menu = sorted(rng.sample(range(1, 40), entries))
    errors, costs = ([[draw(rng) for _ in menu] for _ in range(stages)] for _ in range(2))
    return menu, errors, costs


def all_choices(menu: list[int], errors: Matrix, costs: Matrix, fixed: float) -> list[Choice]:
    """Every budget there is."""
    stages = range(len(errors))
    return [
        Choice(
            tuple(menu[j] for j in entries),
            math.fsum([fixed, *(costs[k][entries[k]] for k in stages)]),
            math.fsum(errors[k][entries[k]] for k in stages),
        )
        for entries in itertools.product(range(len(menu)), repeat=len(errors))
    ]


def test_the_front_is_that_of_all_budgets() -> None:
    for seed in range(60):
        menu, errors, costs = instance(seed, few_values)
        everything = all_choices(menu, errors, costs, 0.5)
        front = pareto_front(menu, errors, costs, 0.5)
        unbeaten = {
            (a.cost, a.error)
            for a in everything
            if not any(b.cost <= a.cost and b.error <= a.error and b != a and (b.cost, b.error) != (a.cost, a.error)
                       for b in everything)
        }  # fmt: skip
        assert [(c.cost, c.error) for c in front] == sorted(unbeaten) and set(front) <= set(everything)


def test_costs_that_are_multiples_of_the_resolution_stay_exact() -> None:
    for seed in range(60):
        menu, errors, _ = instance(seed)
        rng = random.Random(-seed)
        # Tenths, which floating point does not hold exactly, above a constant that is no multiple.
        costs = [[math.pi + rng.randint(0, 30) * 0.1 for _ in menu] for _ in errors]
        coarse, everything = pareto_front(menu, errors, costs, resolution=0.1), all_choices(menu, errors, costs, 0.0)
        for limit in sorted(c.cost + 1e-9 for c in everything):
            least = min(c.error for c in everything if c.cost <= limit)
            assert best_within(coarse, limit).error == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("resolution", [1e-4, 0.07, 0.5, 100.0])
def test_limits_hold_and_rounding_costs_at_most_a_unit_a_stage(resolution: float) -> None:
    for seed in range(30):
        menu, errors, costs = instance(seed)
        everything = all_choices(menu, errors, costs, 2.0)
        front = pareto_front(menu, errors, costs, 2.0, resolution)
        assert set(front) <= set(everything)  # with their true costs
        for cheap, dear in itertools.pairwise(front):
            assert cheap.cost < dear.cost and cheap.error > dear.error
        lost = len(errors) * resolution
        for choice in everything:
            found = best_within(front, choice.cost + lost)
            assert found.cost <= choice.cost + lost
            assert found.error <= choice.error + 1e-12


def test_a_large_problem_agrees_with_its_relaxation() -> None:
    stages, menu = 256, list(range(1, 31))
    rng = random.Random(0)
    weights = [rng.uniform(0.1, 10.0) for _ in range(stages)]
    errors = [[w / steps for steps in menu] for w in weights]
    front = pareto_front(menu, errors, [[float(steps) for steps in menu]] * stages)
    # Errors are convex, so the best budgets on the hull spend each step where it gains most.
    gains = sorted((w / t - w / (t + 1) for w in weights for t in menu[:-1]), reverse=True)
    for spent in (0, 1000, len(gains)):
        expected = sum(weights) - math.fsum(gains[:spent])
        assert best_within(front, stages + spent).error == pytest.approx(expected)


def test_a_single_stage_is_the_menu_without_what_does_not_pay() -> None:
    front = pareto_front([1, 2, 3, 4], [[4.0, 5.0, 1.0, 1.0]], [[1.0, 2.0, 3.0, 4.0]], fixed_cost=10.0)
    assert front == [Choice((1,), 11.0, 4.0), Choice((3,), 13.0, 1.0)]


def test_an_impossible_limit_names_the_cheapest_cost() -> None:
    front = pareto_front([2, 3], [[1.0, 0.0]] * 3, [[2.0, 3.0]] * 3, fixed_cost=0.25)
    with pytest.raises(ValueError, match=r"at most 6\.0: the cheapest feasible cost is 6\.25"):
        best_within(front, 6.0)
    assert best_within(front, 6.25).budget == (2, 2, 2)


def test_bad_tables_are_refused() -> None:
    good = [[1.0, 2.0], [1.0, 2.0]]
    for value in (math.nan, math.inf):
        for tables in ((good, [[1.0, 2.0], [1.0, value]]), ([[1.0, 2.0], [1.0, value]], good)):
            with pytest.raises(ValueError, match="must be finite"):
                pareto_front([1, 2], *tables)
    for tables in ((good, good[:1]), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match="a row for each stage, with a number for each of the 2"):
            pareto_front([1, 2], *tables)
