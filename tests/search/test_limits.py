"""Limits as steps, and limits that are met on the clock, on machines of a known speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.measure.cost import CostModel, analytic_cost
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.order import RasterOrder
from disa_framework.sampling.stage_sizes import LinearSizes
from disa_framework.schedules import Adaptive, Constant, Cosine, Linear, PerStage, TwoStage
from disa_framework.search.limits import (
    Costs,
    Limit,
    Timed,
    filled,
    fitted_ramps,
    meeting_the_limit,
    shortened,
)
from disa_framework.solvers import DDIM, DDPM, Fitted
from tests.models.tiny import tiny_mar
from tests.search.small import STAGES, mixture_module, per_stage

LIMIT = Limit.seconds(1.0)  # in which a hundred steps were to fit


def analytic(**sampling: Any) -> Costs:
    """Of 48 evaluations for the baseline."""
    return Costs(mixture_module(**sampling), analytic_cost)


def test_a_limit_is_a_number_of_costs() -> None:
    assert Limit.evaluations(24).cost(analytic()) == Limit.speedup(2.0, "evaluations").cost(analytic()) == 24
    assert Limit("evaluations").cost(analytic()) is None
    assert Limit.seconds(0.5) == Limit("seconds", 0.5) != Limit.speedup(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limit.seconds(0.0), "must be above 0, got 0"),
        (lambda: Limit.speedup(-2.5), "must be above 0, got -2.5"),
        (lambda: Limit("seconds", 1.0, 2.0), "one limit"),
        (lambda: Limit.speedup(2.0).cost(analytic(schedule=Adaptive(1.0))), "over a baseline of fixed steps"),
    ],
)
def test_what_is_no_limit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_are_multiplied_to_make_the_most_of_the_limit() -> None:
    costs = analytic()
    for limit in range(8, 60):
        for budget in ((1, 1, 1, 1), (50, 20, 3, 1), (3, 4, 5, 7), (1, 1, 30, 1)):
            found = filled(per_stage(costs.base, *budget), costs, limit)
            assert costs(found) == limit
            order = sorted(range(STAGES), key=lambda k: (budget[k], -k))  # of equal stages early ones get more
            assert order == sorted(order, key=lambda k: found.budget[k])
    assert filled(costs.base, costs, 3).budget == (1,) * STAGES
    falling = per_stage(costs.base, 50, 20, 3, 1)
    assert min(filled(falling, costs, 30, least=2).budget) == 2
    assert shortened(falling, costs, 74) == falling and costs(shortened(falling, costs, 73)) <= 73


def test_costs_are_measured_once_for_all_that_shares_them() -> None:
    measured = []

    def measure(module: ARDiffusionModule) -> CostModel:
        measured.append((module.sampling.stages, module.sampling.guidance.active))
        return analytic_cost(module)

    costs = Costs(mixture_module(), measure)
    for guidance in (Guidance(), Guidance(2.0), Guidance(3.0)):
        for schedule in (Constant(3), Linear(9, 2)):
            costs(replace(costs.base, schedule=schedule, guidance=guidance))
    assert costs(replace(costs.base, schedule=Constant(3), solver=DDPM(temperature=0.5), num_stages=2)) == 6
    assert measured == [(4, False), (4, True), (2, False)]
    measured.clear()
    cached = Costs(ARDiffusionModule(tiny_mar()), measure)
    for cache in (None, Lazy(2), Lazy(4), Lazy(2)):
        cached(replace(cached.base, cache=cache))
    assert len(measured) == 3
    measured.clear()
    guided = replace(cached.base, guidance=Guidance(2.0, stages=(0.5, 1.0)))
    for sampling in (cached.base, guided, replace(guided, order=RasterOrder())):
        for sizes in (None, LinearSizes()):
            cached(replace(sampling, stage_sizes=sizes))
    assert len(measured) == 3  # of guided stages, and of two stage sizes


def test_ramps_are_fitted_to_the_limit() -> None:
    costs = analytic()
    ramps = fitted_ramps(costs, 30, falls=(5.0,))
    assert {name: sampling.schedule for name, sampling in ramps.items()} == {
        "Constant": Constant(7), "Linear 5:1": Linear(12, 2), "Cosine 5:1": Cosine(12, 2),
        "TwoStage 5:1": TwoStage(12, 2),
    }  # fmt: skip
    larger = (Constant(8), Linear(13, 3), Cosine(13, 3), TwoStage(13, 3))
    for sampling, next_one in zip(ramps.values(), larger, strict=True):
        assert costs(sampling) <= 30 < costs(replace(sampling, schedule=next_one))
    assert fitted_ramps(costs, 3) == fitted_ramps(costs, 1, (), [2]) == {}
    constants = fitted_ramps(costs, 24, (), [2, 3, 4])
    assert {name: start.budget for name, start in constants.items()} == {
        "Constant": (6,) * 4, "Constant (2 stages)": (12, 12), "Constant (3 stages)": (8, 8, 8),
    }  # fmt: skip
    solvers = fitted_ramps(costs, 24, (), solvers=[costs.base.solver, DDIM()])
    assert [start.solver for start in solvers.values()] == [costs.base.solver, DDIM()]


def test_no_more_steps_are_filled_in_than_a_fitted_solver_has_tables_for() -> None:
    row = (0.9, 0.1, 0.8, 0.0, 0.0)
    solver = Fitted(((row,), (row, row, row)))
    base = replace(mixture_module().sampling, solver=solver)
    for limit, budget in ((400, (3, 3, 3, 3)), (9, (3, 3, 1, 1)), (4, (1, 1, 1, 1))):
        assert filled(per_stage(base, 8, 8, 2, 2), analytic(), limit).budget == budget


class Machine:
    """Takes a hundredth of a second for a step, times its slowness; keeps what it was asked to find."""

    def __init__(self, slowness: float) -> None:
        module, self.slowness = mixture_module(), slowness
        cost = CostModel(0.0, (0.0,) * STAGES, (0.01,) * STAGES, module.model.process, DDPM())
        self.costs = Costs(module, lambda _: cost)  # 12 steps at each stage: 0.48 s
        self.asked: list[float] = []

    def latencies(self, samplings: Sequence[SamplingConfig]) -> list[float]:
        return [0.01 * self.slowness * sum(sampling.budget) for sampling in samplings]

    def within(self, limit: float) -> SamplingConfig:
        self.asked.append(limit)
        return replace(self.costs.base, schedule=PerStage((int(100 * limit + 1e-9) - 6, 3, 2, 1)))

    def meet(self, within: Any = None, limit: Limit = LIMIT) -> Timed:
        return meeting_the_limit(within or self.within, self.costs, limit, self.latencies, [self.costs.base])


def test_what_takes_as_long_as_predicted_needs_little_room() -> None:
    machine = Machine(slowness=0.97)
    timed = machine.meet()
    assert machine.asked == [1.0] and timed.limit == 1.0
    assert timed.latencies == pytest.approx((0.97, 0.97 * 0.48))
    assert "takes 970 ms a sample, within the limit of 1000;" in str(timed) and "0.48 times as long" in str(timed)


@pytest.mark.parametrize("slowness", [1.0, 1.2, 3.0])
def test_what_takes_longer_is_found_within_less(slowness: float) -> None:
    machine = Machine(slowness)
    timed = machine.meet()
    assert 2 <= len(machine.asked) <= 3 and timed.sampling.budget[1:] == (3, 2, 1)
    assert 0.89 < timed.latencies[0] <= 0.98


def test_a_speedup_is_over_the_baseline_of_the_same_moment() -> None:
    timed = Machine(slowness=2.0).meet(limit=Limit.speedup(2.0))
    assert timed.limit == pytest.approx(0.48)  # all is half as fast as when the limit was made
    assert 20 <= sum(timed.sampling.budget) <= 23  # of 24: only the room that is left for timing it again
    assert timed.latencies[1] / timed.latencies[0] >= 2.0


def test_a_config_that_leaves_some_of_the_limit_is_shortened_at_once() -> None:
    machine = Machine(slowness=1.5)
    given = machine.within(0.8)
    timed = machine.meet(lambda most: given if machine.costs(given) <= most else machine.within(most))
    assert len(machine.asked) == 2 and 0.9 < timed.latencies[0] <= 0.98


def test_a_slow_spell_while_it_is_timed_costs_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(slowness=1.0)
    usual, spells = machine.latencies, iter([1.6, 1.0, 1.0, 1.0])
    monkeypatch.setattr(machine, "latencies", lambda samplings: [next(spells) * usual(samplings)[0], 0.48])
    timed = machine.meet()
    assert machine.asked == pytest.approx([1.0, 0.58, 0.93], abs=0.01)
    assert 0.9 <= timed.latencies[0] <= 0.98


@pytest.mark.parametrize(("slowness", "least"), [(9.0, 0.0), (3.0, 0.3)])
def test_what_never_meets_the_limit_is_what_was_tried_last_and_says_so(slowness: float, least: float) -> None:
    machine = Machine(slowness)

    def within(most: float) -> SamplingConfig:
        if most < least:
            raise ValueError("no budget costs so little")
        return machine.within(max(most, 0.5))

    timed = machine.meet(within)
    assert sum(timed.sampling.budget) == 50 and not timed.within
    assert f"takes {500 * slowness:g} ms a sample, above," in str(timed)
    if least:
        with pytest.raises(ValueError, match="so little"):
            machine.meet(within, Limit.seconds(0.2))
