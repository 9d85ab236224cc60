"""xAR's own claims: its cache, how often it is evaluated, its order of cells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, Observer, generate
from disa_framework.generation import StageRecord
from disa_framework.guidance import combine
from disa_framework.models import XAR
from disa_framework.models.xar import TrainingDraws, XARState
from disa_framework.noise import PhiloxNoise
from disa_framework.schedules import Linear
from disa_framework.solvers import Euler, Nodes
from tests.models.tiny_flow import tiny_xar

LABELS = torch.tensor([2, 0, 1])
SCHEDULE = Linear(6, 3)


def test_a_cell_over_a_cache_equals_one_pass_over_all_cells() -> None:
    model = tiny_xar()
    cells = [torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    with torch.inference_mode():
        state: XARState = model.begin(LABELS, 4, Guidance(), PhiloxNoise(0, torch.arange(3)), 3)
        for k, cell in enumerate(cells):
            proposal = model.propose(state, k)
            v = proposal.denoise(Nodes((0.25,), (0.75,), (0.25,)))(cell, 0)
            # One pass: earlier cells are clean, this one is where it is.
            times = torch.zeros(3, 4)
            times[:, k] = 0.25
            clean = torch.cat(cells, dim=1)
            clean[:, model.cell(k)] = cell / 0.75
            draws = TrainingDraws(torch.zeros(3, dtype=torch.bool), times, torch.zeros_like(clean))
            at_once = model.velocity_of_all(clean, LABELS, draws)[:, model.cell(k)]
            torch.testing.assert_close(v, at_once, rtol=0, atol=1e-5)
            state = model.accept(state, proposal, cell)


def rows_of(model: XAR) -> list[int]:
    """Fills with the rows of each evaluation of the backbone."""
    rows: list[int] = []
    model.pred.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    return rows


def test_the_backbone_is_evaluated_once_a_step_and_once_a_finished_cell() -> None:
    model = tiny_xar()
    rows, budget = rows_of(model), SCHEDULE.budget(4)
    generate(model, LABELS, schedule=SCHEDULE, solver=Euler())
    assert len(rows) == sum(budget) + 3 and set(rows) == {3}


def test_the_unconditional_branch_of_the_first_cell_runs_for_its_cache_alone() -> None:
    model = tiny_xar().double()
    rows, budget = rows_of(model), SCHEDULE.budget(4)
    drawn = generate(model, LABELS, schedule=SCHEDULE, solver=Euler(), guidance=Guidance(3.0))
    assert rows == [3] * budget[0] + [6] * (sum(budget[1:]) + 3)
    expected = doubled_throughout(model, 3.0)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)


def doubled_throughout(model: XAR, guidance_scale: float) -> Tensor:
    """Samples with both branches evaluated at every step of every cell."""
    noise, budget = PhiloxNoise(0, torch.arange(3)), SCHEDULE.budget(4)
    with torch.inference_mode():
        state: XARState = model.begin(LABELS, 4, Guidance(guidance_scale), noise, 3)
        for k in range(4):
            proposal = model.propose(state, k)
            x = noise.normal(k, (4, 2), 1, torch.float64)[0]
            for i in range(budget[k]):
                t = 1 - i / budget[k]
                time = model.time_embed(torch.trunc(1000 * torch.tensor(t, dtype=torch.float32)))
                rows = x.repeat(2, 1, 1)
                v = model.velocity(rows, state.class_embedding + time, state.tables[k], model.cell(k), state.caches)
                x = x - combine(v[:3], v[3:], 1 + (guidance_scale - 1) * k / 3) / budget[k]
            state = model.accept(state, proposal, x)
        return model.finish(state)


def test_cells_are_drawn_in_raster_order() -> None:
    model, drawn = tiny_xar(), []

    class Keep(Observer):
        def accepted(self, record: StageRecord, tokens: Tensor) -> None:
            drawn.append(tokens)

    latents = generate(model, LABELS, schedule=SCHEDULE, solver=Euler(), observers=[Keep()])
    for k, tokens in enumerate(drawn):
        top, left = 2 * (k // 2), 2 * (k % 2)
        assert torch.equal(latents[:, :, top : top + 2, left : left + 2].flatten(2).mT, tokens)


def test_latents_return_from_the_order_of_cells() -> None:
    model, latents = tiny_xar(), torch.randn(2, 2, 4, 4)
    assert torch.equal(model.from_cells(model.to_cells(latents)), latents)


def test_cells_that_do_not_fill_the_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_size 4 is not divisible by cells_per_side 3"):
        tiny_xar(cells_per_side=3)


def test_a_single_cell_is_guided() -> None:
    model = tiny_xar(cells_per_side=1)
    plain, guided = (
        generate(model, torch.tensor([0, 1]), schedule=Linear(3, 2), solver=Euler(), guidance=Guidance(scale))
        for scale in (1.0, 9.0)
    )
    assert (plain - guided).abs().max() > 1e-2
