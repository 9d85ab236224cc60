"""Singlestep DPM-Solver++ has the rows of eMIGM's published sampler, recorded in float64 in `emigm_solver.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from disa_framework.solvers import Grid, Halves, Nodes, Process, RectifiedFlow, SinglestepDPMSolverPP, VPCosine
from disa_framework.solvers.singlestep import update_orders
from disa_framework.solvers.table import Row, Step

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("emigm_solver.json").read_text())


@dataclass(frozen=True)
class Published(Grid):
    """Evenly in the log-SNR between the published ends."""

    def nodes(self, process: Process, steps: int) -> Nodes:
        first, last = RECORDED["lambda"]
        return process.nodes([process.time_at(first + (last - first) * i / steps) for i in range(steps + 1)])


@pytest.mark.parametrize("steps", [int(steps) for steps in RECORDED["solver"]])
def test_updates_are_the_published_ones(steps: int) -> None:
    recorded = RECORDED["solver"][str(steps)]
    table = SinglestepDPMSolverPP(3, Published()).table(VPCosine(), steps)
    assert [*update_orders(steps, 3)] == recorded["orders"]
    # eMIGM keeps 996 of its 1000 timesteps, and tells its head a time that is stretched over all of them.
    nodes = zip(table.nodes.times, table.nodes.alphas, table.nodes.sigmas, strict=True)
    for (time, alpha, sigma), (head_time, *factors) in zip(nodes, recorded["t"], strict=True):
        assert (alpha, sigma) == pytest.approx(factors, rel=1e-6) and time / 996 * 1000 == pytest.approx(
            head_time, abs=1e-3
        )
    rows = iter(table.rows)
    for update in recorded["rows"]:
        for got, want in zip(from_start([next(rows) for _ in update]), update, strict=True):
            assert got == pytest.approx(want, rel=1e-6, abs=1e-9)


def from_start(rows: list[Row]) -> list[list[float]]:
    """Factors of an update's start and of its clean tokens so far, in the state after each of its rows."""
    states, state = [], [1.0]
    for j, row in enumerate(rows):
        state = [row.A * value for value in state] + [row.B]
        for back, factor in ((1, row.C), (2, row.D)):
            if factor:
                state[1 + j - back] += factor
        states.append(state)
    return states


@pytest.mark.parametrize("steps", [0, -3])
def test_less_than_one_step_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        update_orders(steps, 3)


def test_a_grid_may_have_less_steps_than_asked_for() -> None:
    solver, flow, clean = SinglestepDPMSolverPP(grid=Halves()), RectifiedFlow(), torch.tensor([[[0.3, -2.0]]])

    def denoise(nodes: Nodes) -> Step:
        return lambda x, i: (x - clean) / nodes.times[i]  # the velocity of a known token

    def normal(draws: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(draws, 1, 1, 2, dtype=dtype)

    for steps in range(1, 12):
        assert 1 <= solver.evaluations(flow, steps) <= steps
        drawn = solver.sample(denoise, flow, steps, normal, torch.float32)
        torch.testing.assert_close(drawn, clean)
