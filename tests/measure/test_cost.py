"""The cost model, fitted to machines whose times are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from disa_framework import Guidance, SamplingConfig
from disa_framework.measure import CostModel, analytic_cost, held_out_error, measure_cost, measure_latency
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule
from disa_framework.search.knapsack import best_within, pareto_front
from disa_framework.solvers import DDIM, DDPM, DPMSolverPP, Heun, RectifiedFlow, Solver, Spaced, VPCosine
from disa_framework.toy import mixture
from disa_framework.toy.mixture import MixtureAR
from tests.measure.slow import BACKBONE, BATCH, FIXED, HEAD, SETUP, Clock, K, Slow, labels, slow_module


def fitted(module: ARDiffusionModule, **options: Any) -> CostModel:
    return measure_cost(module, labels(), BATCH, **{"repeats": 1, **options})


def error(model: CostModel, module: ARDiffusionModule, *budgets: tuple[int, ...]) -> float:
    return held_out_error(model, module, labels(), budgets, repeats=1)


def seconds(sampling: SamplingConfig, process: VPCosine | RectifiedFlow) -> float:
    """Of a batch."""
    stages = sampling.stages
    counts = [sampling.solver.evaluations(process, steps) for steps in sampling.budget]
    heads = sum(n * h for n, h in zip(counts, HEAD, strict=False))
    return FIXED + sum(BACKBONE[:stages]) + stages * SETUP + heads


def example(solver: Solver | None = None) -> CostModel:
    return CostModel(0.5, (1.0, 2.0), (0.25, 0.125), VPCosine(), solver or DDPM(), batch_size=4, device="cpu")


# --- fitting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [None, [(2,) * K, (9, 5, 7, 3)]])
@pytest.mark.parametrize("last", [K, 2])
def test_known_times_are_recovered_and_stages_that_are_never_drawn_cost_nothing(
    clock: Clock, budgets: list[tuple[int, ...]] | None, last: int
) -> None:
    slow, rest = Slow(clock), [0.0] * (K - last)
    slow.last = last  # all samples have come to their end by then
    model = fitted(slow_module(slow), budgets=budgets, repeats=2)
    assert model.fixed * BATCH == pytest.approx(FIXED)
    assert [b * BATCH for b in model.backbone] == pytest.approx([b + SETUP for b in BACKBONE[:last]] + rest)
    assert [h * BATCH for h in model.head] == pytest.approx([*HEAD[:last], *rest])
    assert (model.unit, model.batch_size, model.device) == ("seconds", BATCH, "cpu")


@pytest.mark.parametrize(
    ("process", "solver"), [(VPCosine(), DDPM(Spaced(clip=950))), (VPCosine(), DDIM()), (RectifiedFlow(), Heun())]
)
def test_budgets_it_was_not_fitted_on_are_predicted(
    clock: Clock, process: VPCosine | RectifiedFlow, solver: Solver
) -> None:
    module = slow_module(Slow(clock, process), solver=solver)
    model = fitted(module)
    budgets = [(50, 25, 25, 2), (2, 2, 2, 2), Linear(20, 5).budget(K)]
    for budget in budgets:
        expected = seconds(replace(module.sampling, schedule=PerStage(budget)), process)
        assert model(budget) * BATCH == pytest.approx(expected)
    assert error(model, module, *budgets) < 1e-9
    assert error(replace(model, fixed=model.fixed + model((2,) * K)), module, (2,) * K) == pytest.approx(1)


def test_medians_leave_out_a_run_that_was_interrupted(clock: Clock) -> None:
    slow = Slow(clock)
    # The first run warms up; of the others, one is held up at one stage.
    slow.interrupt = lambda run, stage: 1000.0 if run <= 3 or (run == 5 and stage == 2) else 0.0
    model = fitted(module := slow_module(slow), repeats=3)
    assert [b * BATCH for b in model.backbone] == pytest.approx([b + SETUP for b in BACKBONE])
    slow.interrupt = lambda run, stage: 0.0
    assert error(model, module, (9,) * K) < 1e-9


def test_stages_that_are_interrupted_at_random_still_add_up_to_whole_runs(clock: Clock) -> None:
    slow = Slow(clock)
    # In every run one stage is held up, each time another: no stage's median shows it, the whole run's does.
    slow.interrupt = lambda run, stage: 20.0 if (run + stage) % K == 0 else 0.0
    module = slow_module(slow)
    assert error(fitted(module, repeats=7), module, (15,) * K) < 0.1


@pytest.mark.parametrize("setup", [lambda n: 100.0 - 2.0 * n, lambda n: 2.0 * n**2], ids=["falling", "bent"])
def test_no_cost_comes_out_negative(clock: Clock, setup: Callable[[int], float]) -> None:
    slow = Slow(clock)
    slow.setup = setup  # a line through such times falls, or starts below 0
    model = fitted(slow_module(slow))
    assert min(*model.backbone, *model.head) >= 0 and model((12,) * K) > 0


def test_latency_is_seconds_per_sample_and_leaves_the_module_as_it_was(clock: Clock) -> None:
    module = slow_module(Slow(clock), schedule=Linear(9, 3))
    before, three = module.sampling, SamplingConfig(Constant(3), DDIM(), 2)
    alone, together = (measure_latency(module, labels(n), n, [three], repeats=1)[0] for n in (1, BATCH))
    assert alone == pytest.approx(BATCH * together) == pytest.approx(seconds(three, VPCosine()))
    assert module.sampling is before and analytic_cost(module)(before.budget) == module.evaluations()


def test_sampling_configs_that_differ_in_more_than_steps_are_timed_in_turn(clock: Clock) -> None:
    slow = Slow(clock)
    slow.interrupt = lambda run, stage: 100.0 * (run > 6)  # the machine is slow from the fourth round on
    samplings = [SamplingConfig(Linear(9, 3), num_stages=K), SamplingConfig(Constant(4), num_stages=2)]
    latencies = measure_latency(slow_module(slow), labels(), BATCH, samplings, repeats=4)
    for latency, sampling in zip(latencies, samplings, strict=True):
        assert latency * BATCH == pytest.approx(seconds(sampling, VPCosine()) + 100.0 * sampling.stages / 2)


def test_the_time_that_reused_guidance_saves_is_predicted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = mixture.exact_posterior

    def slow(*branch: Any) -> Any:
        clock.now += 1.0
        return exact(*branch)

    monkeypatch.setattr(mixture, "exact_posterior", slow)
    costs = []
    for period in (1, 2, 5):
        module = slow_module(Slow(clock), guidance=Guidance(2.0, reuse=period))
        model = fitted(module)
        assert error(model, module, Linear(20, 5).budget(K)) < 0.02 and error(model, module, (8,) * K) < 0.05
        costs.append(model((20,) * K) * BATCH)
        assert module.evaluations() == SamplingConfig(num_stages=K).evaluations(VPCosine())
    branches = [K * (20 + 20 // period) for period in (1, 2, 5)]
    assert [costs[0] - cost for cost in costs] == pytest.approx([branches[0] - count for count in branches], abs=1.0)


# --- counting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDPM(Spaced(clip=950)), DDPM(Spaced()), DPMSolverPP()])
@pytest.mark.parametrize("schedule", [Constant(50), Linear(50, 5), PerStage((100, 37, 2, 2))])
def test_the_analytic_unit_counts_head_evaluations(solver: Solver, schedule: StepSchedule) -> None:
    module = ARDiffusionModule(MixtureAR(num_tokens=K), SamplingConfig(schedule, solver))
    model = analytic_cost(module)
    assert model(schedule.budget(K)) == module.evaluations()
    assert (model.unit, model.fixed) == ("evaluations", 0)


def test_another_solver_costs_its_own_evaluations() -> None:
    model = example(DDPM(Spaced()))
    # The clipped grid merges one of 25 and two of 50 steps.
    other = replace(model, solver=DDPM(Spaced(clip=950)))
    assert model((25, 50)) == 0.5 + 1.0 + 25 * 0.25 + 2.0 + 50 * 0.125
    assert other((25, 50)) == 0.5 + 1.0 + 24 * 0.25 + 2.0 + 48 * 0.125


def test_the_knapsack_sees_the_same_costs() -> None:
    model = CostModel(0.1, (0.7, 0.3, 0.01), (1 / 3, 0.1, 1 / 7), VPCosine(), DDPM())
    menu = [1, 3, 7, 25]
    front = pareto_front(menu, [[1 / steps for steps in menu]] * 3, model.stage_costs(menu), model.fixed)
    assert len(front) > 5
    for choice in front:
        assert choice.cost == model(choice.budget)  # to the bit: a limit between two sums must not be missed
        assert best_within(front, model(choice.budget)) == choice


# --- files ------------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    solver = DDPM(Spaced(clip=900))
    counted = analytic_cost(ARDiffusionModule(MixtureAR(num_tokens=2), SamplingConfig(solver=solver)))
    for model in (replace(example(solver), fixed=1 / 3), counted):
        model.save(tmp_path / "cost.json")
        assert CostModel.load(tmp_path / "cost.json", VPCosine(), solver) == model


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    example().save(path)
    wrong = path.read_text().replace("0.25", "-1")
    for text in ("", "[1, 2]", '{"fixed": 1}', '{"backbone": "x"}', wrong):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"cost\.json holds no cost model, measure one anew"):
            CostModel.load(path, VPCosine(), DDPM())
    with pytest.raises(FileNotFoundError):
        CostModel.load(tmp_path / "none.json", VPCosine(), DDPM())


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": (1.0,)}, "for each stage, got 1 and 2"),
        *(({"fixed": cost}, rf"finite and at least 0, got {cost}") for cost in (-1.0, math.nan, math.inf)),
        ({"unit": "hours"}, r"one of \['seconds', 'evaluations'\], got 'hours'"),
    ],
)
def test_a_cost_model_checks_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(example(), **changes)


def test_runs_that_tell_nothing_are_refused() -> None:
    module = slow_module(Slow(Clock()))
    with pytest.raises(ValueError, match="a budget for 2 stages needs as many step counts, got 3"):
        example()((1, 2, 3))
    with pytest.raises(ValueError, match="all give stage 2 5"):
        fitted(module, budgets=[(5,) * K, (9, 9, 5, 9)])
    with pytest.raises(ValueError, match="batch_size=8 contradicts a condition of 3"):
        measure_cost(module, labels(3), BATCH)
    with pytest.raises(ValueError, match=r"at least 1 run .* must be timed, got repeats=0"):
        measure_latency(module, labels(), BATCH, [module.sampling], repeats=0)
    with pytest.raises(ValueError, match="counts evaluations, which no clock can check"):
        error(analytic_cost(module), module, (5,) * K)
