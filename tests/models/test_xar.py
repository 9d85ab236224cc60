"""xAR's own claims: its cache, how often it is evaluated, its order of cells."""

from __future__ import annotations

import pytest
import torch

from disa_framework import Guidance
from disa_framework.models import XAR
from disa_framework.models.xar import TrainingDraws, XARState
from disa_framework.schedules import Linear
from disa_framework.solvers import Nodes
from disa_framework.testing.models import StageLog
from tests.models.tiny import begin, draw
from tests.models.tiny_flow import tiny_xar

LABELS = torch.tensor([2, 0, 1])
SCHEDULE = Linear(6, 3)


def test_a_cell_over_a_cache_equals_one_pass_over_all_cells() -> None:
    model = tiny_xar()
    cells = [torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    with torch.inference_mode():
        state: XARState = begin(model, LABELS)
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
    draw(model, LABELS, schedule=SCHEDULE)
    assert len(rows) == sum(budget) + 3 and set(rows) == {3}


def test_the_unconditional_branch_of_the_first_cell_runs_for_its_cache_alone() -> None:
    model = tiny_xar()
    rows, budget = rows_of(model), SCHEDULE.budget(4)
    draw(model, LABELS, schedule=SCHEDULE, guidance=Guidance(3.0))
    assert rows == [3] * budget[0] + [6] * (sum(budget[1:]) + 3)


def test_the_unconditional_branch_runs_until_no_later_cell_is_guided() -> None:
    model = tiny_xar()
    rows, budget = rows_of(model), SCHEDULE.budget(4)
    draw(model, LABELS, schedule=SCHEDULE, guidance=Guidance(3.0, "constant", stages=(0.4, 0.6)))  # the second cell
    cells = [[3] * budget[0], [6] + [6] * budget[1], [3] + [3] * budget[2], [3] + [3] * budget[3]]
    assert rows == [row for cell in cells for row in cell]


def test_cells_are_drawn_in_raster_order() -> None:
    seen = StageLog()
    latents = draw(tiny_xar(), LABELS, observers=[seen])
    for k, tokens in enumerate(seen.tokens):
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
    plain, guided = (draw(model, LABELS, guidance=Guidance(scale)) for scale in (1.0, 9.0))
    assert (plain - guided).abs().max() > 1e-2
