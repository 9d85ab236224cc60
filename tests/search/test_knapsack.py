"""The knapsack: equal to trying all budgets, Pareto-optimal, and never over a limit."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from disa_framework.search import Choice, best_within, pareto_front
from disa_framework.search.knapsack import Matrix

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


def all_choices(menu: list[int], errors: Matrix, costs: Matrix, fixed: float, monotone: bool) -> list[Choice]:
    """Every budget there is."""
    stages = range(len(errors))
    return [
        Choice(
            tuple(menu[j] for j in entries),
            math.fsum([fixed, *(costs[k][entries[k]] for k in stages)]),
            math.fsum(errors[k][entries[k]] for k in stages),
        )
        for entries in itertools.product(range(len(menu)), repeat=len(errors))
        if not monotone or list(entries) == sorted(entries, reverse=True)
    ]


def undominated(choices: list[Choice]) -> list[tuple[float, float]]:
    """Costs and errors of those that no other one beats, by looking at all pairs."""
    kept = {
        (a.cost, a.error)
        for a in choices
        if not any(b.cost <= a.cost and b.error <= a.error and (b.cost, b.error) != (a.cost, a.error) for b in choices)
    }
    return sorted(kept)


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("draw", [continuous, few_values])
def test_the_front_is_that_of_all_budgets(draw: Draw, monotone: bool) -> None:
    for seed in range(60):
        menu, errors, costs = instance(seed, draw)
        everything = all_choices(menu, errors, costs, 0.5, monotone)
        front = pareto_front(menu, errors, costs, 0.5, monotone)
        assert [(c.cost, c.error) for c in front] == undominated(everything), seed
        assert set(front) <= set(everything)


@pytest.mark.parametrize("monotone", [False, True])
def test_costs_that_are_multiples_of_the_resolution_stay_exact(monotone: bool) -> None:
    for seed in range(60):
        menu, errors, _ = instance(seed)
        rng = random.Random(-seed)
        # Tenths, which floating point does not hold exactly, above a constant that is no multiple.
        costs = [[math.pi + rng.randint(0, 30) * 0.1 for _ in menu] for _ in errors]
        coarse = pareto_front(menu, errors, costs, monotone=monotone, resolution=0.1)
        everything = all_choices(menu, errors, costs, 0.0, monotone)
        for limit in sorted(c.cost + 1e-9 for c in everything):
            least = min(c.error for c in everything if c.cost <= limit)
            assert best_within(coarse, limit).error == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("resolution", [None, 1e-4, 0.07, 0.5, 100.0])
def test_limits_hold_and_rounding_costs_at_most_a_unit_a_stage(resolution: float | None, monotone: bool) -> None:
    for seed in range(30):
        menu, errors, costs = instance(seed)
        everything = all_choices(menu, errors, costs, 2.0, monotone)
        front = pareto_front(menu, errors, costs, 2.0, monotone, resolution)
        assert set(front) <= set(everything)  # with their true costs
        lost = len(errors) * (resolution or 0.0)
        for choice in everything:
            found = best_within(front, choice.cost + lost)
            assert found.cost <= choice.cost + lost
            assert found.error <= choice.error + 1e-12


def test_the_front_is_strictly_better_the_more_it_costs() -> None:
    for seed in range(60):
        for resolution in (None, 0.3):
            front = pareto_front(*instance(seed, few_values), resolution=resolution)
            for cheap, dear in itertools.pairwise(front):
                assert cheap.cost < dear.cost and cheap.error > dear.error


def test_monotone_budgets_never_rise() -> None:
    rng = random.Random(0)
    menu = [2, 5, 9]
    # Late stages gain most, so that the rule binds.
    errors = [[(k + 1) * rng.uniform(0.5, 1.5) / steps for steps in menu] for k in range(6)]
    costs = [[float(steps) for steps in menu]] * 6
    for resolution in (None, 1.0):
        free = pareto_front(menu, errors, costs, resolution=resolution)
        falling = pareto_front(menu, errors, costs, monotone=True, resolution=resolution)
        assert all(c.budget == tuple(sorted(c.budget, reverse=True)) for c in falling)
        assert any(c.budget != tuple(sorted(c.budget, reverse=True)) for c in free)
        assert {(2,) * 6, (9,) * 6} <= {c.budget for c in falling}


def test_a_large_problem_agrees_with_its_relaxation() -> None:
    stages, menu = 256, list(range(1, 31))
    rng = random.Random(0)
    weights = [rng.uniform(0.1, 10.0) for _ in range(stages)]
    errors = [[w / steps for steps in menu] for w in weights]
    costs = [[float(steps) for steps in menu]] * stages
    front = pareto_front(menu, errors, costs, resolution=1.0)
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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(value: float) -> None:
    good, bad = [[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, value]]
    with pytest.raises(ValueError, match=rf"errors must be finite; stage 1 has {value}"):
        pareto_front([1, 2], bad, good)
    with pytest.raises(ValueError, match=rf"costs must be finite; stage 1 has {value}"):
        pareto_front([1, 2], good, bad)
    with pytest.raises(ValueError, match=rf"fixed cost must be finite, got {value}"):
        pareto_front([1, 2], good, good, value)
    with pytest.raises(ValueError, match=rf"resolution must be above 0, got {value}"):
        pareto_front([1, 2], good, good, resolution=value)


def test_bad_input_is_refused() -> None:
    table = [[1.0, 2.0]]
    for menu in ([], [2, 1], [3, 3], [0, 1]):
        with pytest.raises(ValueError, match=r"menu of step counts must rise from 1 or more, got \["):
            pareto_front(menu, table, table)
    with pytest.raises(ValueError, match="a menu of 2 needs as many errors a stage; stage 0 has 1"):
        pareto_front([1, 2], [[1.0]], table)
    with pytest.raises(ValueError, match="a row for each stage, got 1 and 2 rows"):
        pareto_front([1, 2], table, [*table, *table])
    with pytest.raises(ValueError, match=r"too large: use 7e-09 or more"):
        pareto_front([1, 2], table * 2, table * 2, resolution=1e-12)
