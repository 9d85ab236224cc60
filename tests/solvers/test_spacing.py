"""Grids for any process: where their steps lie, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from disa_framework.solvers import (
    Fitted,
    Grid,
    Karras,
    Leading,
    LogitNormal,
    LogSNR,
    PowerTime,
    Process,
    RectifiedFlow,
    Shift,
    Staged,
    Sway,
    Times,
    Uniform,
    VPCosine,
)

PROCESSES = [VPCosine(), RectifiedFlow()]
GRIDS: list[Grid] = [
    LogSNR(), LogSNR(0.99, 0.02), Karras(), Karras(rho=3), PowerTime(), Shift(), Shift(shift=0.3),
    Shift(shift=2, least=0.004), Sway(), Sway(strength=1.5), LogitNormal(),
    LogitNormal(mean=-0.5, std=0.8), Times(((0.9,), (0.95, 0.6, 0.2, 0.01))),
]  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_grid_falls_from_noise_to_clean_tokens(grid: Grid, process: Process) -> None:
    for steps in range(1, 20):
        nodes = grid.nodes(process, steps)
        assert len(nodes) == steps + 1 and all(a > b for a, b in pairwise(nodes.times))
        assert nodes.sigmas[-1] == 0
        if isinstance(process, RectifiedFlow):
            assert nodes.times[0] == 1  # where tokens are noise and nothing else
        else:
            assert 900 <= nodes.times[0] <= 990
    with pytest.raises(ValueError, match="at least 1"):
        grid.nodes(process, 0)


@pytest.mark.parametrize("time", [0.0, 3.3, 5.0, 500.7, 949.0, 998.9])
def test_the_time_of_a_log_snr_is_found_again(time: float) -> None:
    process = VPCosine()
    assert process.time_at(process.log_snr(time)) == pytest.approx(time, abs=1e-8)
    flow = RectifiedFlow()
    assert flow.time_at(flow.log_snr(time / 1000 or 0.5)) == pytest.approx(time / 1000 or 0.5)
    assert flow.log_snr(1) == -math.inf == -flow.log_snr(0) and process.log_snr(-1) == math.inf


def log_snrs(grid: Grid, steps: int) -> list[float]:
    return [VPCosine().log_snr(time) for time in grid.nodes(VPCosine(), steps).times[:-1]]


def test_log_snr_is_even_and_karras_is_even_in_a_root_of_its_inverse() -> None:
    even, karras = log_snrs(LogSNR(), 9), [math.exp(-value / 7) for value in log_snrs(Karras(), 9)]
    for values in (even, karras):
        steps = [b - a for a, b in pairwise(values)]
        assert steps == pytest.approx([steps[0]] * 8)
    assert log_snrs(Karras(rho=1e6), 9) == pytest.approx(even, abs=1e-3)


def test_curves_have_their_closed_forms() -> None:
    flow = RectifiedFlow()
    assert PowerTime(exponent=2).nodes(flow, 4).times == pytest.approx([1, 9 / 16, 4 / 16, 1 / 16, 0])
    assert Shift(shift=3).nodes(flow, 2).times == pytest.approx([1, 3 / 4, 0])
    cosine = [1, math.cos(math.pi / 6), math.cos(math.pi / 3), 0]
    assert Sway().nodes(flow, 3).times == pytest.approx(cosine)
    assert LogitNormal().nodes(flow, 2).times == pytest.approx([1, 0.5, 0])
    assert Shift(shift=1, least=0.04).nodes(flow, 4) == Uniform(last=0.04).nodes(flow, 4)
    shifted = Shift(shift=2, least=0.1).nodes(flow, 3).times
    assert shifted == pytest.approx([1, 2 * (u := (1 + 1 / 19) / 2) / (1 + u), 0.1, 0])
    assert Shift(least=0.1).nodes(flow, 1).times == (1, 0)
    for neutral in (PowerTime(exponent=1), Shift(shift=1), Sway(strength=0)):
        assert neutral.nodes(flow, 5).times == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])


def test_explicit_times_are_taken_where_they_are_given_and_laid_along_elsewhere() -> None:
    grid = Times(((0.9, 0.3), (0.95, 0.5, 0.2, 0.02)))
    assert grid == Times(((0.95, 0.5, 0.2, 0.02), (0.9, 0.3)))
    assert grid.nodes(VPCosine(), 2).times == (900, 300, -1)
    assert grid.nodes(VPCosine(), 4).times == (950, 500, 200, 20, -1)
    three, seven = (grid.nodes(VPCosine(), steps).times for steps in (3, 7))
    assert three[0] == 950 and three[-2] == 20 and seven[0:7:2] == pytest.approx((950, 500, 200, 20))


NONSENSE: dict[str, Callable[[], object]] = {
    "first=0.005": lambda: LogSNR(0.005, 0.95),
    "last=-0.1": lambda: Karras(last=-0.1),
    "no noise at 0": lambda: LogSNR(last=0.0).nodes(RectifiedFlow(), 4),
    "rho": lambda: Karras(rho=0),
    "first must": lambda: PowerTime(1.0),
    "exponent": lambda: PowerTime(exponent=-1),
    "shift": lambda: Shift(shift=0),
    "least must": lambda: Shift(least=1.0),
    "offset must": lambda: Leading(-1),
    "with offset 1 do not fit": lambda: Leading(1).nodes(VPCosine(), 1000),
    "strength": lambda: Sway(strength=-2),
    "std": lambda: LogitNormal(std=0),
    "one row": lambda: Times(()),
    "each number": lambda: Times(((0.5,), (0.4,))),
    "fall": lambda: Times(((0.5, 0.5),)),
    "one table": lambda: Fitted(()),
    "four coefficients": lambda: Fitted((((0.5, 0.0, 1.0),),)),  # type: ignore[arg-type]
    "above 0": lambda: Fitted((((0.0, 0.0, 1.0, 0.0, 0.0),),)),
    "fitted for 2": lambda: Fitted((((0.9, 0, 1, 0, 0), (0.5, 0, 1, 0, 0)),)).table(VPCosine(), 1),
    "for each stage": lambda: Staged(()),
    "at.stage": lambda: Staged((Fitted((((0.9, 0, 1, 0, 0),),)),)).table(VPCosine(), 1),
}


@pytest.mark.parametrize("message", NONSENSE)
def test_options_that_make_no_sense_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NONSENSE[message]()


@pytest.mark.parametrize("grid", [LogSNR(0.9, 0.1), Karras(0.9, 0.1), LogSNR(0.995, 0.0)])
def test_a_grid_may_end_before_clean_tokens(grid: LogSNR | Karras) -> None:
    process, steps = VPCosine(), 5
    nodes = replace(grid, to_clean=False).nodes(process, steps)
    assert nodes == grid.nodes(process, steps + 1).take(range(steps + 1))
    assert nodes.times[0] == pytest.approx(1000 * grid.first) and nodes.times[-1] == pytest.approx(1000 * grid.last)
