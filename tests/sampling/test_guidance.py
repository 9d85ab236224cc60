"""How strong guidance is, at which stage, and when; and what it makes of a head that knows nothing of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, SamplingConfig, guided
from disa_framework.sampling.guidance import combine
from disa_framework.solvers import (
    DDPM,
    DPMSolverPP,
    Heun,
    Nodes,
    Process,
    RectifiedFlow,
    SinglestepDPMSolverPP,
    Solver,
    Spaced,
    VPCosine,
)
from disa_framework.solvers.table import Step


@pytest.mark.parametrize(("scale", "active"), [(1.0, False), (0.0, True), (0.5, True), (3.0, True), (-1.0, True)])
def test_a_scale_other_than_1_is_active(scale: float, active: bool) -> None:
    assert Guidance(scale).active == Guidance(scale, "constant").active == Guidance(scale).acts(0.5) == active
    assert not Guidance().active and not Guidance(1.0, "constant", start=3.0).active and Guidance(start=3.0).active


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_a_linear_scale_grows_from_1_as_the_image_does_and_a_constant_one_stays(scale: float) -> None:
    assert [Guidance(scale).at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, (1 + scale) / 2, scale])
    assert [Guidance(scale, start=3.0).at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([3.0, (3 + scale) / 2, scale])
    assert [Guidance(scale, "constant").at(p) for p in (0.0, 0.5, 1.0)] == [scale] * 3


def test_it_acts_within_its_interval_both_ends_included() -> None:
    guidance = Guidance(2.0, interval=[0.2, 0.7])  # type: ignore[arg-type]
    assert guidance == Guidance(2.0, interval=(0.2, 0.7)) and hash(guidance)
    inside = {t: guidance.acts(t) for t in (0.0, 0.199, 0.2, 0.5, 0.7, 0.701, 1.0)}
    assert [t for t, acts in inside.items() if acts] == [0.2, 0.5, 0.7]
    single = Guidance(2.0, interval=(1.0, 1.0))
    assert single.acts(1.0) and not single.acts(0.999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: interval}, f"{name} must satisfy 0 <= low <= high <= 1")
          for name in ("interval", "stages")
          for interval in ((0.5,), (0.5, 0.4), (-0.1, 0.5), (0.0, 1.1), (math.nan, 1.0), (0.0, math.nan))),
        ({"schedule": "cosine"}, "'linear' or 'constant', got 'cosine'"),
        *(({"scale": scale}, "guidance scale must") for scale in (math.nan, math.inf, -math.inf)),
        *(({"reuse": period}, "reuse must be a whole number from 1") for period in (0, -2, 1.5, True, 10**7, None)),
    ],
)  # fmt: skip
def test_what_is_no_guidance_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**{"scale": 2.0, **options})


# eMIGM (arXiv 2503.07197) guides stages after which the share of stages that are left lies in [low, high). Ours is the
# share of those that are over, and has both ends: a stage that meets `high` is guided, too.
@pytest.mark.parametrize(
    ("low", "high", "num_stages", "stages"),
    [
        (0.1, 0.3, 16, range(11, 14)), (0.2, 0.4, 16, range(9, 12)), (0.15, 0.35, 16, range(10, 13)),
        (0.18, 0.6, 128, range(51, 104)), (0.05, 0.4, 128, range(76, 121)), (0.3, 0.7, 128, range(38, 89)),
        (0.25, 0.5, 64, range(32, 48)),
    ],
)  # fmt: skip
def test_it_acts_at_the_published_stages(low: float, high: float, num_stages: int, stages: range) -> None:
    guidance = Guidance(2.0, stages=(1 - high, 1 - low))
    acting = {stage for stage in range(num_stages) if guidance.acts_at(stage, num_stages)}
    assert acting == {*stages} | {stage for stage in range(num_stages) if 1 - (stage + 1) / num_stages == high}


def test_guidance_at_a_stage_is_all_or_none_and_keys_are_kept_until_the_last_one() -> None:
    sampling = SamplingConfig(num_stages=5, guidance=Guidance(2.0, stages=(0.4, 0.6)))
    assert [sampling.guidance_at(stage).scale for stage in range(5)] == [1.0, 2.0, 2.0, 1.0, 1.0]
    assert [sampling.branches_from(stage) for stage in range(5)] == [2, 2, 2, 1, 1]
    assert replace(sampling, guidance=Guidance(2.0, stages=(0.41, 0.59))).branches_from(0) == 1


def test_the_combination_goes_from_unconditional_through_conditional_and_beyond() -> None:
    cond, uncond = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    assert combine(cond, uncond, 0.0).tolist() == [1.0, 1.0]
    assert combine(cond, uncond, 1.0).tolist() == [3.0, -1.0]
    assert combine(cond, uncond, 2.0).tolist() == [5.0, -3.0]


def test_a_rising_scale_begins_with_none_and_ends_whole_and_a_single_stage_is_the_last() -> None:
    guidance = Guidance(3.0)
    assert [guidance.rising(stage, 3) for stage in range(3)] == pytest.approx([1.0, 2.0, 3.0])
    assert guidance.rising(0, 1) == 3.0
    assert [Guidance(3.0, "constant").rising(stage, 2) for stage in range(2)] == [3.0, 3.0]


# --- a guided head ----------------------------------------------------------------------------------------

B, n, D = 3, 2, 4
SHIFT = torch.tensor([1.0, 5.0]).repeat_interleave(B)[:, None, None]
"""What tells the branches apart: conditional rows first."""


class Head:
    """`weight x + time + shift`, and a variance value if asked for; knows with how many rows it was called."""

    def __init__(self, process: Process, weight: float = 0.1) -> None:
        self.process, self.weight = process, weight
        self.rows: list[int] = []
        self.embedded = 0

    def __call__(self, x: Tensor, time: Any) -> Tensor:
        self.rows.append(len(x))
        out = self.weight * x + time + SHIFT[: len(x)].to(x.dtype)
        return torch.cat((out, 0.01 * out), dim=-1) if self.process.learns_variance else out

    def embed(self, nodes: Nodes) -> Tensor:
        self.embedded += 1
        return 1e-3 * nodes.on(torch.device("cpu"))

    def step(self, guidance: Guidance, nodes: Nodes) -> Step:
        return guided(self, self.embed, self.process, guidance, guidance.scale)(nodes)


def test_the_output_is_guided_and_the_variance_value_is_the_conditional_branchs() -> None:
    head = Head(VPCosine(learns_variance=True))
    x = torch.randn(B, n, D, generator=torch.Generator().manual_seed(0))
    out, value = head.step(Guidance(3.0), head.process.nodes([900, 500]))(x, 1).chunk(2, dim=-1)
    cond, null = 0.1 * x + 0.5 + 1, 0.1 * x + 0.5 + 5
    torch.testing.assert_close(out, null + 3 * (cond - null))
    torch.testing.assert_close(value, 0.01 * cond)


@pytest.mark.parametrize(
    ("guidance", "rows"),
    [
        (Guidance(2.0), [6, 6, 6, 6]),
        (Guidance(2.0, interval=(0.9, 0.95)), [6, 3, 3, 3]),
        (Guidance(2.0, interval=(0.0, 0.5)), [3, 3, 6, 6]),
        (Guidance(2.0, interval=(0.99, 1.0)), [3, 3, 3, 3]),
        (Guidance(1.0), [3, 3, 3, 3]),
        (Guidance(2.0, reuse=2), [6, 3, 6, 3]),
        (Guidance(2.0, reuse=3), [6, 3, 3, 6]),
        (Guidance(2.0, reuse=9), [6, 3, 3, 3]),
        (Guidance(2.0, interval=(0.3, 0.7), reuse=2), [3, 6, 3, 3]),
        (Guidance(1.0, reuse=2), [3, 3, 3, 3]),
    ],
    ids=str,
)
def test_both_branches_are_evaluated_where_it_acts_and_times_are_embedded_once(
    guidance: Guidance, rows: list[int]
) -> None:
    head = Head(VPCosine())
    nodes = DDPM(Spaced(clip=950)).table(head.process, 4).nodes  # times 950, 666, 333 and 0
    step = head.step(guidance, nodes)
    assert all(step(torch.zeros(B, n, D), i).shape == (B, n, D) for i in range(4))
    assert head.rows == rows and head.embedded == 1


def test_the_scale_is_not_rounded_to_the_precision_of_the_head() -> None:
    head = Head(RectifiedFlow(), weight=0.0)
    out = head.step(Guidance(2.7), head.process.nodes([0.0]))(torch.zeros(B, n, D, dtype=torch.bfloat16), 0)
    assert out.flatten().tolist() == pytest.approx([5 + 2.7 * (1 - 5)] * out.numel(), rel=1e-6)


class Bent(Head):
    """A head whose branches differ by what depends on tokens and time."""

    def __call__(self, x: Tensor, time: Any) -> Tensor:
        return super().__call__(x * SHIFT[: len(x)], time).sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("solver", "process"),
    [
        (DDPM(), VPCosine(learns_variance=True)), (DPMSolverPP(eta=0.5), VPCosine()),
        (SinglestepDPMSolverPP(), VPCosine()), (Heun(), RectifiedFlow()),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_guidance_added_last_is_added_again(solver: Solver, process: Process, dtype: torch.dtype) -> None:
    head, guidance, table = Bent(process), Guidance(3.0, interval=(0.0, 0.9), reuse=2), solver.table(process, 5)
    noise = torch.randn(table.draws, B, n, D, generator=torch.Generator().manual_seed(0))
    times, added, seen = head.embed(table.nodes), torch.zeros(B, n, D), 0

    def plainly(x: Tensor, i: int) -> Tensor:
        nonlocal added, seen
        if process.unit_time(table.nodes.times[i]) > 0.9:
            return head(x, times[i])
        cond, null = head(torch.cat((x, x)), times[i]).float().chunk(2)
        if seen % 2 == 0:
            added = 2.0 * (cond - null)[..., :D]
        seen += 1
        return torch.cat((cond[..., :D] + added, cond[..., D:]), dim=-1)

    drawn = table.run(lambda nodes: head.step(guidance, nodes), lambda *_: noise, dtype)
    expected = table.run(lambda nodes: plainly, lambda *_: noise, dtype)
    torch.testing.assert_close(drawn, expected)
    exact = table.run(lambda nodes: head.step(replace(guidance, reuse=1), nodes), lambda *_: noise, dtype)
    assert not torch.allclose(drawn, exact, atol=0.01) and seen > 2
