from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from disa_framework import Guidance, Lazy
from disa_framework.schedules import (
    Constant,
    Cosine,
    Linear,
    Logistic,
    PerStage,
    PiecewiseLinear,
    Power,
    StepSchedule,
    TwoStage,
)
from disa_framework.search.space import Knots, Parametric, ScheduleSpace, Space, Stages
from disa_framework.solvers import DDIM, DDPM, Spaced
from tests.search.small import mixture_module, per_stage

K = 12
EXPONENT, SIGMOID = {"exponent": (0.25, 8.0)}, {"midpoint": (0.1, 0.9), "steepness": (1.0, 30.0)}
SPACES: dict[str, tuple[ScheduleSpace, StepSchedule]] = {
    "linear": (Parametric(Linear), Linear(50, 5)),
    "cosine": (Parametric(Cosine, early=(2, 60)), Cosine(50, 5)),
    "two-stage": (Parametric(TwoStage), TwoStage(5, 50)),
    "power": (Parametric(Power, shape=EXPONENT), Power(50, 5, 3.21)),
    "logistic": (Parametric(Logistic, late=(1, 9), shape=SIGMOID), Logistic(50, 5, 0.37, 12.5)),
    "knots": (Knots(4), PiecewiseLinear(((0, 50), (1 / 3, 20), (2 / 3, 22), (1, 3)))),
    "every stage": (Stages(K, 2, 60), PerStage((9, 2, 60, 4, 5, 6, 7, 8, 3, 2, 2, 11))),
    "groups": (Stages(4), PerStage((9, 9, 9, 30, 30, 30, 4, 4, 4, 1, 1, 1))),
    "falling groups": (Stages(4, monotone=True), PerStage((30, 30, 30, 9, 9, 9, 4, 4, 4, 4, 4, 4))),
}


@pytest.fixture(params=SPACES)
def case(request: pytest.FixtureRequest) -> tuple[ScheduleSpace, StepSchedule]:
    return SPACES[request.param]


def random_members(space: ScheduleSpace, count: int) -> list[StepSchedule]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask(), K) for _ in range(count)]


def test_a_member_is_found_again_by_its_parameters(case: tuple[ScheduleSpace, StepSchedule]) -> None:
    space, schedule = case
    found = space.suggest(FixedTrial(space.encode(schedule, K)), K)
    assert found.budget(K) == schedule.budget(K)


def test_whatever_is_suggested_is_a_member_and_none_is_cheaper_than_the_cheapest(
    case: tuple[ScheduleSpace, StepSchedule],
) -> None:
    space, _ = case
    cheapest = sum(space.cheapest(K).budget(K))
    for member in random_members(space, 20):
        assert min(member.budget(K)) >= space.least and sum(member.budget(K)) >= cheapest
        encoded = space.encode(member, K)
        assert space.build(encoded, K).budget(K) == member.budget(K)
        assert all(bounds.low <= encoded[name] <= bounds.high for name, bounds in space.ranges.items())


@pytest.mark.parametrize("schedule", [Linear(50, 5), Cosine(40, 4), Constant(20), PerStage(tuple(range(1, K + 1)))])
def test_any_schedule_has_a_nearest_member(schedule: StepSchedule, case: tuple[ScheduleSpace, StepSchedule]) -> None:
    space, _ = case
    encoded = space.encode(schedule, K)
    assert encoded.keys() == space.ranges.keys()
    assert len(space.suggest(FixedTrial(encoded), K).budget(K)) == K


def test_the_nearest_member_is_near() -> None:
    power = Parametric(Power, shape=EXPONENT)
    near = power.build(power.encode(Linear(50, 5), K), K).budget(K)
    assert max(abs(a - b) for a, b in zip(near, Linear(50, 5).budget(K), strict=True)) <= 3
    groups = Stages(4)
    assert groups.encode(PerStage((1, 2, 6, 4, 4, 4, 9, 9, 9, 7, 8, 9)), K) == {
        "steps_0": 3, "steps_1": 4, "steps_2": 9, "steps_3": 8,
    }  # fmt: skip


def test_falling_groups_never_rise() -> None:
    for member in random_members(Stages(5, monotone=True), 20):
        budget = member.budget(K)
        assert list(budget) == sorted(budget, reverse=True)


def test_groups_fit_any_number_of_stages() -> None:
    for stages in range(1, 20):
        budget = Stages(7).suggest(FixedTrial({f"steps_{g}": 10 - g for g in range(7)}), stages).budget(stages)
        assert budget[0] == 10 and list(budget) == sorted(budget, reverse=True)
        assert Stages(7).encode(PerStage(budget), stages)["steps_0"] == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stages(4, low=0), "whole numbers from 1, the lower one first, got 0 and 100"),
        (lambda: Stages(4, low=9, high=8), "got 9 and 8"),
        (lambda: Stages(0), "at least 1 group, got 0"),
        (lambda: Knots(1), "at least 2 knots, got 1"),
        (lambda: Parametric(Linear, shape=EXPONENT), "Linear has no exponent"),
        (lambda: Parametric(Constant), "Constant has no early or late"),
        (lambda: Parametric(Power, shape={"exponent": (2.0, 1.0)}), "numbers, the lower one first, got 2 and 1"),
    ],
)
def test_what_is_no_space_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_families_are_values(case: tuple[ScheduleSpace, StepSchedule]) -> None:
    space, _ = case
    assert copy.deepcopy(space) == space != Knots(9) and repr(copy.deepcopy(space)) == repr(space)


def test_solvers_are_chosen_from_beside_the_one_that_there_is() -> None:
    base, space = mixture_module().sampling, Space(Stages(2), solvers=(DDIM(),))
    steps = {"steps_0": 7, "steps_1": 3}
    for solver in (base.solver, DDIM()):
        assert space.encode(replace(base, solver=solver), base)["solver"] == repr(solver)
        assert space.suggest(FixedTrial({**steps, "solver": repr(solver)}), base).solver == solver
    assert {sampling.solver for sampling in space.cheapest(base)} == {base.solver, DDIM()}


def test_solver_guidance_and_stages_are_chosen_on_request() -> None:
    base = mixture_module().sampling
    solvers = (DDPM(), DDIM(), DDPM(temperature=0.9))
    space = Space(Stages(2), guidance=(1.0, 3.0), solvers=solvers, num_stages=(2, 4))
    wanted = replace(per_stage(base, 7, 3), solver=solvers[2], guidance=Guidance(2.5))
    assert space.suggest(FixedTrial(space.encode(wanted, base)), base) == wanted
    alone = Space(Stages(2)).suggest(FixedTrial({"steps_0": 7, "steps_1": 3}), base)
    assert alone == per_stage(base, 7, 7, 3, 3)


def test_a_temperature_is_chosen_on_request_for_solvers_that_have_one() -> None:
    base, space = mixture_module().sampling, Space(Stages(2), temperature=(1.0, 1.2))
    space.check(base)
    for given, found in ((1.0, 1.0), (1.1, 1.1), (0.5, 1.0), (3.0, 1.2)):
        sampling = replace(base, solver=DDPM(Spaced(), temperature=given))
        chosen = space.suggest(FixedTrial(space.encode(sampling, base)), sampling).solver
        assert chosen == DDPM(Spaced(), temperature=found)
    mixed = replace(space, solvers=(DDIM(), DDPM()))
    mixed.check(base)
    for solver in (DDIM(), DDPM(temperature=1.1)):
        values = space.encode(replace(base, solver=solver), base) | {"solver": repr(type(solver)())}
        assert mixed.suggest(FixedTrial(values), base).solver == solver


def test_a_temperature_that_cannot_be_chosen_is_refused() -> None:
    with pytest.raises(ValueError, match="temperatures must be above 0, got 0"):
        Space(Stages(2), temperature=(0.0, 1.0))
    space = Space(Stages(2), temperature=(1.0, 1.2), solvers=(DDIM(eta=1.0),))
    with pytest.raises(ValueError, match="none of the solvers has a temperature"):
        space.check(replace(mixture_module().sampling, solver=DDIM()))


def test_the_period_of_feature_caching_is_chosen_on_request() -> None:
    base, space = mixture_module().sampling, Space(Stages(2), refresh=(1, 2, 4))
    for cache, found in ((None, None), (Lazy(2, 0.3), Lazy(2, 0.3)), (Lazy(7), Lazy(4))):
        sampling = replace(base, cache=cache)
        assert space.suggest(FixedTrial(space.encode(sampling, base)), sampling).cache == found
    assert {sampling.cache for sampling in space.cheapest(base)} == {None, Lazy(2), Lazy(4)}
