"""What experiments compare takes as many head evaluations."""

from __future__ import annotations

import pytest
import torch

from benchmarks.experiments import components, few_steps
from benchmarks.experiments.late_start import FromPrediction, FromStage
from benchmarks.experiments.needy_tokens import Divided, shares
from benchmarks.experiments.orders import FALLING, SAME, STAGES
from benchmarks.experiments.stages_or_steps import STEPS, milliseconds, most_steps
from disa_framework import SamplingConfig, generate
from disa_framework.schedules import Constant
from disa_framework.solvers import DPMSolverPP, LogSNR, VPCosine
from disa_framework.testing.models import StageLog
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar

SOLVER = DPMSolverPP(grid=LogSNR())


@pytest.mark.parametrize(("tokens", "steps", "extra"), [(1, 5, 2), (2, 5, 1), (7, 8, 3), (9, 4, 3)])
def test_divided_steps_are_as_many_as_the_same_for_all(tokens: int, steps: int, extra: int) -> None:
    counts = shares(tokens, steps, extra)
    assert sum(counts) == tokens * steps and counts == sorted(counts, reverse=True) and min(counts) > 0


def test_the_neediest_tokens_have_the_most_steps() -> None:
    model = MixtureAR(num_tokens=5)

    def tokens(solver: DPMSolverPP | Divided, steps: int) -> torch.Tensor:
        return generate(model, None, SamplingConfig(Constant(steps), solver, 1), batch_size=3).flatten(1)

    need = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0]).expand(3, -1)
    divided = tokens(Divided(SOLVER, 2, lambda look, steps: need), 4)
    torch.testing.assert_close(divided[:, [2, 4]], tokens(SOLVER, 6)[:, [2, 4]])
    torch.testing.assert_close(divided[:, [0]], tokens(SOLVER, 4)[:, [0]])
    torch.testing.assert_close(divided[:, [1, 3]], tokens(SOLVER, 2)[:, [1, 3]])


@pytest.mark.parametrize("start", [0.8, 0.3])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_late_start_counts_the_evaluation_that_predicts(start: float, eta: float) -> None:
    late = FromPrediction(DPMSolverPP(grid=LogSNR(), eta=eta), start)
    sampling = SamplingConfig(Constant(3), FromStage(SOLVER, late), 16)
    assert sampling.evaluations(VPCosine()) == 3 * 16
    assert late.table(VPCosine(), 3).nodes.times[1] == pytest.approx(1000 * start)


def test_falling_steps_are_as_many_as_constant_ones() -> None:
    assert sum(FALLING.budget(STAGES)) == sum(SAME.budget(STAGES))


def test_halves_of_the_stages_have_as_many_components_as_constant_ones() -> None:
    budgets = [schedule.budget(components.STAGES) for _, schedule in components.schedules()][len(components.USED) :]
    for early, late, constant in zip(budgets[::3], budgets[1::3], budgets[2::3], strict=True):
        assert sum(early) == sum(late) == sum(constant) and early == late[::-1] and early[0] > late[0]


@pytest.mark.parametrize("name", ["4 → 1", "3 → 1"])
def test_jumps_that_fall_are_as_many_as_two_at_each_stage(name: str) -> None:
    budget = few_steps.FALLING[name]
    assert sum(budget) == 2 * few_steps.STAGES == 2 * len(budget) and [*budget] == sorted(budget, reverse=True)


def test_swapped_heads_draw_their_stages_from_the_same_backbone() -> None:
    early, late = (tiny_mar(latent_size=8, self_distillation=0.25) for _ in range(2))
    with torch.no_grad():
        late.diffloss.net.final_layer.linear.bias.add_(1)
    logs, sampling = [StageLog() for _ in range(3)], few_steps.sampled(Constant(2))
    for model, log in zip((early, late, few_steps.Swapped(early, late)), logs, strict=True):
        generate(model, None, sampling, batch_size=2, observers=[log])
    once, other, both = (log.tokens for log in logs)
    assert all(map(torch.equal, both[: few_steps.LATE], once)) and not torch.equal(both[few_steps.LATE], once[8])
    again = generate(few_steps.Swapped(late, late), None, sampling, batch_size=2)
    assert torch.equal(again, generate(late, None, sampling, batch_size=2)) and len(other) == few_steps.STAGES


@pytest.mark.parametrize("limit", [2.6, 3.43, 4.75])
@pytest.mark.parametrize("stages", [4, 8, 16, 49])
def test_steps_fit_the_time(limit: float, stages: int) -> None:
    steps = most_steps(limit, stages)
    if steps is None:
        assert milliseconds(stages, min(STEPS)) > limit
    else:
        assert milliseconds(stages, steps) <= limit and (steps == max(STEPS) or milliseconds(stages, steps + 1) > limit)
