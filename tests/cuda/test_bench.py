"""Timing on a simulated CUDA device."""

from __future__ import annotations

import pytest
import torch

from disa_framework.bench.floor import Floor, Recorder
from disa_framework.bench.measure import Case, measure
from disa_framework.models.graphs import GraphRecorder
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant
from tests.cuda.simulation import simulated_cuda
from tests.models.tiny import tiny_mar


@pytest.mark.parametrize("graphs", [False, True])
def test_whole_parts_and_floor_are_timed(graphs: bool) -> None:
    with simulated_cuda():
        module = ARDiffusionModule(tiny_mar(), Constant(2), num_stages=2, graphs=graphs).requires_grad_(False)
        (timing,) = measure([Case("a", module.to("cuda:0"), torch.arange(2), 2)], repeats=2)
    assert len(timing.whole) == len(timing.floor) == 2 and min(timing.whole + timing.floor) > 0
    assert timing.parts["backbone"][0] > 0 and timing.parts["head"][0] > 0 and timing.peak_memory == 0


def test_floors_are_one_launch_each_and_share_their_memory() -> None:
    with simulated_cuda() as device:
        module = ARDiffusionModule(tiny_mar(), Constant(2), num_stages=2).requires_grad_(False).to("cuda:0")
        with Recorder(module.parameters()) as recorder:
            module.draw(torch.arange(2), torch.arange(2))
        graphs = GraphRecorder()
        floors = [Floor(recorder.calls, torch.device("cuda:0"), graphs) for _ in range(2)]
        before = device.launches
        for floor in floors:
            floor()
        assert len(recorder.calls) > 20 and device.launches == before + 2
