from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.order import CheckerboardOrder, HaltonOrder, RandomOrder
from disa_framework.sampling.stage_sizes import LinearSizes
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, PiecewiseLinear, StepSchedule
from disa_framework.search.space import Knots, ScheduleSpace, Space, Stages
from disa_framework.solvers import DDIM, DDPM, Components, DPMSolverPP, Euler, Solver, Spaced
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_xar
from tests.search.small import mixture_module, per_stage

K = 12
SPACES: dict[str, tuple[ScheduleSpace, StepSchedule]] = {
    "knots": (Knots(4), PiecewiseLinear(((0, 50), (1 / 3, 20), (2 / 3, 22), (1, 3)))),
    "every stage": (Stages(K, 2, 60), PerStage((9, 2, 60, 4, 5, 6, 7, 8, 3, 2, 2, 11))),
    "groups": (Stages(4), PerStage((9, 9, 9, 30, 30, 30, 4, 4, 4, 1, 1, 1))),
    "falling groups": (Stages(4, monotone=True), PerStage((30, 30, 30, 9, 9, 9, 4, 4, 4, 4, 4, 4))),
}


@pytest.fixture(params=SPACES)
def case(request: pytest.FixtureRequest) -> tuple[ScheduleSpace, StepSchedule]:
    return SPACES[request.param]


def test_a_member_is_found_again_by_its_parameters(case: tuple[ScheduleSpace, StepSchedule]) -> None:
    space, schedule = case
    found = space.suggest(FixedTrial(space.encode(schedule, K)), K)
    assert found.budget(K) == schedule.budget(K)
    assert copy.deepcopy(space) == space != Knots(9) and repr(copy.deepcopy(space)) == repr(space)


def test_what_is_suggested_is_a_member_and_none_is_cheaper_than_the_cheapest(
    case: tuple[ScheduleSpace, StepSchedule],
) -> None:
    space, _ = case
    cheapest = sum(space.cheapest(K).budget(K))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        budget = (member := space.suggest(study.ask(), K)).budget(K)
        assert space.low <= min(budget) <= max(budget) <= space.high and sum(budget) >= cheapest
        assert space.suggest(FixedTrial(space.encode(member, K)), K).budget(K) == budget
        assert space != SPACES["falling groups"][0] or list(budget) == sorted(budget, reverse=True)


@pytest.mark.parametrize("schedule", [Linear(50, 5), Cosine(40, 4), Constant(20), PerStage(tuple(range(1, K + 1)))])
def test_any_schedule_has_a_nearest_member(schedule: StepSchedule, case: tuple[ScheduleSpace, StepSchedule]) -> None:
    space, _ = case
    assert len(space.suggest(FixedTrial(space.encode(schedule, K)), K).budget(K)) == K


def test_the_nearest_member_has_the_means_of_the_groups() -> None:
    found = Stages(4).encode(PerStage((1, 2, 6, 4, 4, 4, 9, 9, 9, 7, 8, 9)), K)
    assert found == {"steps_0": 3, "steps_1": 4, "steps_2": 9, "steps_3": 8}


def test_groups_fit_any_number_of_stages() -> None:
    for stages in range(1, 20):
        budget = Stages(7).suggest(FixedTrial({f"steps_{g}": 10 - g for g in range(7)}), stages).budget(stages)
        assert budget[0] == 10 and list(budget) == sorted(budget, reverse=True)
        assert Stages(7).encode(PerStage(budget), stages)["steps_0"] == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stages(4, low=0), "needs 1 to"),
        (lambda: Stages(4, low=9, high=8), "low <= high, got 9 and 8"),
        (lambda: Stages(0), "Stages needs from 1 to .* got 0"),
        (lambda: Knots(1), "Knots needs from 2 to .* got 1"),
        (lambda: Space(temperature=(-1.0, 1.0)), "temperature must be two numbers from 0 on"),
        (lambda: Space(guidance=(3.0, 1.0)), "guidance must be .*, got .3.0, 1.0"),
    ],
)
def test_what_is_no_space_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_chosen_is_found_again_and_the_rest_stays() -> None:
    base, solvers = replace(mixture_module().sampling, cache=Lazy(2, 0.3)), (DDPM(), DDIM(), DDPM(temperature=0.9))
    space = Space(Stages(2), num_stages=(2, 4), solver=solvers, guidance=(1.0, 3.0), refresh=(1, 4))
    wanted = replace(per_stage(base, 7, 3), solver=solvers[2], guidance=Guidance(2.5), cache=Lazy(4, 0.3))
    values = space.encode(wanted, base)
    assert space.suggest(FixedTrial(values), base) == wanted
    assert space.steps.encode(wanted, base) == {"steps_0": 7, "steps_1": 3, "num_stages": 2}
    assert Space(Stages(2)).suggest(FixedTrial(values), base) == per_stage(base, 7, 7, 3, 3)


def test_order_sizes_and_guided_stages_are_chosen_from_beside_those_that_there_are() -> None:
    base = replace(mixture_module().sampling, guidance=Guidance(2.0))
    offered: dict[str, Any] = {
        "order": [HaltonOrder(), CheckerboardOrder(3)], "stage_sizes": [LinearSizes()], "guided_stages": [(0.25, 0.5)],
        "reuse": (1, 3),
    }  # fmt: skip
    space = Space(Stages(2), **offered)
    wanted = replace(
        per_stage(base, 7, 7, 3, 3), order=CheckerboardOrder(3), stage_sizes=LinearSizes(),
        guidance=Guidance(2.0, stages=(0.25, 0.5), reuse=3),
    )  # fmt: skip
    for sampling in (wanted, replace(wanted, order=None), per_stage(base, 7, 7, 3, 3)):
        assert space.suggest(FixedTrial(space.encode(sampling, base)), base) == sampling
    assert len(space.cheapest(base)) == 3 * 2 * 2 * 2
    elsewhere = space.encode(replace(wanted, order=RandomOrder()), base)
    assert space.suggest(FixedTrial(elsewhere), base).order is None
    with pytest.raises(ValueError, match="guidance stages must"):
        replace(space, guided_stages=[(0.5, 0.1)]).cheapest(base)


def test_solvers_are_chosen_from_beside_the_one_that_there_is() -> None:
    base, space = mixture_module().sampling, Space(Stages(2), solver=(DDIM(),))
    for solver in (base.solver, DDIM()):
        values = space.encode(replace(base, solver=solver), base)
        assert space.suggest(FixedTrial(values), base).solver == solver
    assert {sampling.solver for sampling in space.cheapest(base)} == {base.solver, DDIM()}


def test_a_temperature_is_chosen_for_solvers_that_have_one() -> None:
    base, space = mixture_module().sampling, Space(Stages(2), temperature=(1.0, 1.2))
    for given, found in ((1.0, 1.0), (1.1, 1.1), (0.5, 1.0), (3.0, 1.2)):
        sampling = replace(base, solver=DDPM(Spaced(), temperature=given))
        chosen = space.suggest(FixedTrial(space.encode(sampling, base)), sampling).solver
        assert chosen == DDPM(Spaced(), temperature=found)
    mixed = replace(space, solver=(DDIM(), DDPM()))
    for solver in (DDIM(), DDPM(temperature=1.1)):
        values = mixed.encode(replace(base, solver=solver), base) | {"solver": repr(type(solver)())}
        assert mixed.suggest(FixedTrial(values), base).solver == solver
    with pytest.raises(ValueError, match="none of the solvers has a temperature"):
        replace(space, solver=(DDIM(eta=1.0),)).cheapest(replace(base, solver=DDIM()))


def test_the_period_of_feature_caching_is_the_nearest() -> None:
    base, space = mixture_module().sampling, Space(Stages(2), refresh=(1, 2, 4))
    for cache, found in ((None, None), (Lazy(2, 0.3), Lazy(2, 0.3)), (Lazy(7), Lazy(4))):
        sampling = replace(base, cache=cache)
        assert space.suggest(FixedTrial(space.encode(sampling, base)), sampling).cache == found
    assert {sampling.cache for sampling in space.cheapest(base)} == {None, Lazy(2), Lazy(4)}


def test_the_whole_space_has_what_a_model_has() -> None:
    masked, sequence = tiny_mar(), tiny_xar()
    base = SamplingConfig(Constant(8), guidance=Guidance(2.0))
    space = Space.whole(masked, masked.settle(base), cached=True)
    assert space.order and space.stage_sizes and space.refresh and space.guided_stages and space.num_stages
    assert not Space.whole(masked, masked.settle(base), cached=False).refresh
    plain = Space.whole(sequence, sequence.settle(replace(base, solver=Euler(), guidance=Guidance())), cached=True)
    assert not (plain.order or plain.stage_sizes or plain.refresh or plain.guided_stages or plain.reuse)
    guided = replace(base, solver=Euler())
    assert [Space.whole(sequence, sequence.settle(guided), timed).reuse for timed in (True, False)] == [(1, 2, 4), ()]


@pytest.mark.parametrize(
    ("model", "solver"),
    [
        (tiny_mar(), DDPM()),
        (tiny_xar(), Euler()),
        (tiny_mar(components=3), Components()),
        (tiny_mar(self_distillation=0.25), Euler()),
    ],
    ids=["masked", "flow", "mixture", "flow map"],
)
def test_all_of_the_whole_space_can_be_drawn_with(model: ARDiffusionModel, solver: Solver) -> None:
    base = model.settle(SamplingConfig(Constant(3), solver, guidance=Guidance(2.0)))
    space = Space.whole(model, base, cached=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        model.settle(space.suggest(study.ask(), base))


def test_steps_of_another_config_come_with_a_solver_that_is_not_to_choose() -> None:
    base, space = SamplingConfig(num_stages=4), Space(solver=(DDIM(),), temperature=(0.8, 1.2))
    chosen = replace(base, solver=DDPM(temperature=0.9), order=HaltonOrder())
    offered = per_stage(replace(base, solver=DDPM(temperature=1.1)), 4, 2)
    assert space.with_steps(chosen, offered, base) == replace(chosen, schedule=PerStage((4, 2)), num_stages=2)
    foreign = DPMSolverPP(temperature=1.1)
    kept = space.with_steps(chosen, replace(offered, solver=foreign), base)
    assert kept.solver == replace(foreign, temperature=0.9) and kept.order == HaltonOrder() and kept.budget == (4, 2)
    assert Space().with_steps(chosen, replace(offered, solver=foreign), base).solver == foreign
