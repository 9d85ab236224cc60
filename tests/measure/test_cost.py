"""The cost model, fitted to machines whose times are known: a clock that only models move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import SamplingConfig
from disa_framework.measure import (
    CostModel,
    analytic_cost,
    held_out_error,
    measure_cost,
    measure_latency,
    median_error,
)
from disa_framework.models.base import Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule
from disa_framework.search.knapsack import best_within, pareto_front
from disa_framework.solvers import DDIM, DDPM, DPMSolverPP, Heun, Nodes, RectifiedFlow, Solver, Spaced, VPCosine
from disa_framework.solvers.table import Step
from disa_framework.tokenizers import Identity
from disa_framework.toy.mixture import MixtureAR, MixtureState

K, BATCH = 4, 8
BACKBONE = (3.0, 1.0, 2.0, 5.0)
HEAD = (0.5, 0.25, 0.125, 0.75)
FIXED, SETUP = 7.0, 0.25


class Clock:
    """Shows the time that others let pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(MixtureAR):
    """Takes known times for its stages and evaluations.

    Attributes:
        interrupt: seconds lost in a run, counted from 1, before a stage.
        setup: seconds before the first of so many evaluations.
        last: stages after which all samples have come to their end.
    """

    def __init__(self, clock: Clock, process: VPCosine | RectifiedFlow | None = None) -> None:
        super().__init__(num_tokens=K, num_classes=2, process=process)
        self.clock = clock
        self.runs, self.drawn, self.last = 0, 0, K
        self.interrupt: Callable[[int, int], float] = lambda run, stage: 0.0
        self.setup: Callable[[int], float] = lambda evaluations: SETUP

    def begin(self, *request: Any) -> MixtureState:
        self.drawn = 0
        return super().begin(*request)

    def finished(self, state: MixtureState) -> Tensor:
        return torch.tensor([self.drawn == self.last])

    def propose(self, state: MixtureState, stage: int) -> Proposal:
        self.runs, self.drawn = self.runs + (stage == 0), stage + 1
        self.clock.now += BACKBONE[stage] + self.interrupt(self.runs, stage)
        proposal = super().propose(state, stage)

        def denoise(nodes: Nodes) -> Step:
            self.clock.now += self.setup(len(nodes) - 1)
            step = proposal.denoise(nodes)

            def timed(x: Tensor, i: int) -> Tensor:
                self.clock.now += HEAD[stage]
                return step(x, i)

            return timed

        return replace(proposal, denoise=denoise)


class SlowTokenizer(Identity):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def decode(self, latents: Tensor) -> Tensor:
        self.clock.now += FIXED
        return super().decode(latents)


def slow_module(clock: Clock, model: Slow | None = None, **sampling: Any) -> ARDiffusionModule:
    return ARDiffusionModule(model or Slow(clock), SamplingConfig(**sampling), SlowTokenizer(clock))


def labels(count: int = BATCH) -> Tensor:
    return torch.arange(count) % 2


def example(solver: Solver | None = None) -> CostModel:
    return CostModel(0.5, (1.0, 2.0), (0.25, 0.125), VPCosine(), solver or DDPM(), batch_size=4, device="cpu")


# --- fitting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [None, [(2,) * K, (9, 5, 7, 3)]])
def test_known_times_are_recovered(budgets: list[tuple[int, ...]] | None) -> None:
    clock = Clock()
    model = measure_cost(slow_module(clock), labels(), BATCH, budgets=budgets, repeats=2, clock=clock)
    assert model.fixed * BATCH == pytest.approx(FIXED)
    assert [b * BATCH for b in model.backbone] == pytest.approx([b + SETUP for b in BACKBONE])
    assert [h * BATCH for h in model.head] == pytest.approx(HEAD)
    assert (model.unit, model.batch_size, model.device) == ("seconds", BATCH, "cpu")


@pytest.mark.parametrize(
    ("process", "solver"), [(VPCosine(), DDPM(Spaced(clip=950))), (VPCosine(), DDIM()), (RectifiedFlow(), Heun())]
)
def test_budgets_it_was_not_fitted_on_are_predicted(process: VPCosine | RectifiedFlow, solver: Solver) -> None:
    clock = Clock()
    module = slow_module(clock, Slow(clock, process), solver=solver)
    model = measure_cost(module, labels(), BATCH, repeats=1, clock=clock)
    budgets = [(50, 25, 25, 2), (2, 2, 2, 2), Linear(20, 5).budget(K)]
    predictions = held_out_error(model, module, labels(), budgets, repeats=1, clock=clock)
    assert [p.budget for p in predictions] == budgets
    for budget, predicted, measured in predictions:
        counts = [solver.evaluations(process, steps) for steps in budget]
        seconds = FIXED + sum(BACKBONE) + K * SETUP + sum(n * h for n, h in zip(counts, HEAD, strict=True))
        assert measured * BATCH == pytest.approx(seconds)
        assert predicted == pytest.approx(measured)
    assert median_error(predictions) < 1e-9


def test_medians_leave_out_a_run_that_was_interrupted() -> None:
    clock = Clock()
    model = Slow(clock)
    # The first run warms up; of the others, one is held up at one stage.
    model.interrupt = lambda run, stage: 1000.0 if run <= 3 or (run == 5 and stage == 2) else 0.0
    module = slow_module(clock, model)
    fitted = measure_cost(module, labels(), BATCH, repeats=3, clock=clock)
    assert [b * BATCH for b in fitted.backbone] == pytest.approx([b + SETUP for b in BACKBONE])
    model.interrupt = lambda run, stage: 0.0
    assert median_error(held_out_error(fitted, module, labels(), [(9,) * K], repeats=1, clock=clock)) < 1e-9


def test_stages_that_are_interrupted_at_random_still_add_up_to_whole_runs() -> None:
    clock = Clock()
    model = Slow(clock)
    # In every run one stage is held up, each time another: no stage's median shows it, the whole run's does.
    model.interrupt = lambda run, stage: 20.0 if (run + stage) % K == 0 else 0.0
    module = slow_module(clock, model)
    fitted = measure_cost(module, labels(), BATCH, repeats=7, clock=clock)
    predictions = held_out_error(fitted, module, labels(), [(15,) * K], repeats=1, clock=clock)
    assert predictions[0].error < 0.1


@pytest.mark.parametrize("setup", [lambda n: 100.0 - 2.0 * n, lambda n: 2.0 * n**2], ids=["falling", "bent"])
def test_no_cost_comes_out_negative(setup: Callable[[int], float]) -> None:
    clock = Clock()
    model = Slow(clock)
    model.setup = setup  # a line through such times falls, or starts below 0
    fitted = measure_cost(slow_module(clock, model), labels(), BATCH, repeats=1, clock=clock)
    assert min(*fitted.backbone, *fitted.head) >= 0
    assert fitted((12,) * K) > 0


def test_stages_that_are_never_drawn_cost_nothing() -> None:
    clock = Clock()
    model = Slow(clock)
    model.last = 2  # all samples have come to their end by then
    fitted = measure_cost(slow_module(clock, model), labels(), BATCH, repeats=1, clock=clock)
    assert [b * BATCH for b in fitted.backbone] == pytest.approx([b + SETUP for b in BACKBONE[:2]] + [0, 0])
    assert [h * BATCH for h in fitted.head] == pytest.approx([*HEAD[:2], 0, 0])
    assert fitted.fixed * BATCH == pytest.approx(FIXED)


def test_the_module_is_left_as_it_was() -> None:
    clock = Clock()
    module = slow_module(clock, schedule=Linear(9, 3))
    before = module.sampling
    measure_latency(module, labels(), BATCH, [SamplingConfig(Constant(3), DDIM(), 2)], repeats=1, clock=clock)
    assert module.sampling is before and analytic_cost(module)(before.budget) == module.evaluations()


def test_latency_is_seconds_per_image() -> None:
    clock = Clock()
    module = slow_module(clock)
    three = SamplingConfig(Constant(3))
    alone, together = (
        measure_latency(module, labels(count), count, [three], repeats=1, clock=clock)[0] for count in (1, BATCH)
    )
    assert alone == pytest.approx(BATCH * together)


def test_sampling_configs_that_differ_in_more_than_steps_are_timed_in_turn() -> None:
    clock = Clock()
    model = Slow(clock)
    model.interrupt = lambda run, stage: 100.0 * (run > 6)  # the machine is slow from the fourth round on
    samplings = [SamplingConfig(Linear(9, 3), num_stages=K), SamplingConfig(Constant(4), num_stages=2)]
    latencies = measure_latency(slow_module(clock, model), labels(), BATCH, samplings, repeats=4, clock=clock)
    for latency, sampling in zip(latencies, samplings, strict=True):
        stages = sampling.stages
        heads = sum(n * h for n, h in zip(sampling.budget, HEAD, strict=False))
        slowed = 100.0 * stages / 2
        assert latency * BATCH == pytest.approx(FIXED + sum(BACKBONE[:stages]) + stages * SETUP + heads + slowed)


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


def test_a_cost_model_checks_itself() -> None:
    with pytest.raises(ValueError, match="for each stage, got 1 and 2"):
        replace(example(), backbone=(1.0,))
    for cost in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"finite and at least 0, got {cost}"):
            replace(example(), fixed=cost)
    with pytest.raises(ValueError, match=r"one of \['seconds', 'evaluations'\], got 'hours'"):
        replace(example(), unit="hours")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a budget for 2 stages needs as many step counts, got 3"):
        example()((1, 2, 3))


def test_runs_that_tell_nothing_are_refused() -> None:
    clock = Clock()
    module = slow_module(clock)
    with pytest.raises(ValueError, match="all give stage 2 5"):
        measure_cost(module, labels(), BATCH, budgets=[(5,) * K, (9, 9, 5, 9)], clock=clock)
    with pytest.raises(ValueError, match="a batch of 8 needs a condition of as many, got one of 3"):
        measure_cost(module, labels(3), BATCH, clock=clock)
    with pytest.raises(ValueError, match=r"at least 1 run .* must be timed, got repeats=0"):
        measure_latency(module, labels(), BATCH, [module.sampling], repeats=0, clock=clock)
    with pytest.raises(ValueError, match="counts evaluations, which no clock can check"):
        held_out_error(analytic_cost(module), module, labels(), [(5,) * K], clock=clock)
