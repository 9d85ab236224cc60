"""DDIM, DDPM and DPM-Solver agree with the schedulers of diffusers, on the same times and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Grid,
    Leading,
    Linspace,
    Nodes,
    Process,
    Solver,
    Spaced,
    Strided,
    UniPC,
    VPCosine,
)
from disa_framework.solvers.table import Step

# What diffusers says of its own future, and numpy of diffusers'.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROCESS = VPCosine()
SHAPE = (4, 3, 2)  # B, n, D


@dataclass(frozen=True)
class StopsAtZero(Grid):
    """`Spaced`, ending at timestep 0 as it is: where DPM-Solver ends in diffusers, unlike DPM-Solver++."""

    def nodes(self, process: Process, steps: int) -> Nodes:
        nodes = Spaced(950).nodes(process, steps + 1)
        return nodes.take(range(len(nodes) - 1))


def head(x: Tensor, t: float) -> Tensor:
    """A small network of random weights."""
    generator = torch.Generator().manual_seed(2)
    into, out = torch.randn(3, 16, generator=generator), torch.randn(16, 2, generator=generator)
    time = torch.full_like(x[..., :1], t / 1000)
    return torch.tanh(torch.cat((x, time), dim=-1) @ into) @ out / 4


def noises(count: int) -> Tensor:
    """Initial noise, then that of each step."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(count)])


def ours(solver: Solver, steps: int, process: Process = PROCESS) -> Tensor:
    def denoise(nodes: Nodes) -> Step:
        return lambda x, i: head(x, nodes.times[i])

    return solver.sample(denoise, process, steps, lambda draws, dtype: noises(draws).to(dtype))


def scheduler_of(kind: Any, **options: Any) -> Any:
    """A scheduler for our betas."""
    scheduler = kind(trained_betas=list(PROCESS.betas), **options)
    # Its own are cumulated in float32, which costs 2e-5 over 50 steps.
    scheduler.alphas_cumprod = torch.tensor(PROCESS.alphas_cumprod, dtype=torch.float64)
    return scheduler


def theirs(scheduler: Any, times: tuple[float, ...], **options: Any) -> Tensor:
    x = noises(1)[0]
    for t in times:
        x = scheduler.step(head(x, t), int(t), x, **options).prev_sample
    return x


def times_of(solver: Solver, steps: int) -> tuple[float, ...]:
    return solver.table(PROCESS, steps).nodes.times


def assert_agree(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddim_agrees(steps: int) -> None:
    solver = DDIM(Strided(clip=None))
    scheduler = scheduler_of(DDIMScheduler, clip_sample=False)
    # Only integer strides: the scheduler takes the next time to lie 1000 / steps further on.
    scheduler.set_timesteps(steps)
    assert tuple(scheduler.timesteps.tolist()) == times_of(solver, steps)
    assert_agree(ours(solver, steps), theirs(scheduler, times_of(solver, steps)))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [5, 25, 50])
def test_ddpm_agrees(steps: int, variance: Any) -> None:
    solver = DDPM(variance=variance)
    scheduler = scheduler_of(DDPMScheduler, clip_sample=False, variance_type=f"fixed_{variance}")
    times = times_of(solver, steps)
    scheduler.set_timesteps(timesteps=[int(t) for t in times])
    generator = torch.Generator().manual_seed(0)
    torch.randn(SHAPE, generator=generator)  # the initial noise
    assert_agree(ours(solver, steps), theirs(scheduler, times, generator=generator))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [2, 12, 25, 64, 1000])
def test_leading_times_are_those_of_diffusers(steps: int, offset: int) -> None:
    if steps == 1000 and offset:
        return
    scheduler = scheduler_of(DDPMScheduler, clip_sample=False, timestep_spacing="leading", steps_offset=offset)
    scheduler.set_timesteps(steps)
    solver = DDPM(Leading(offset), variance="small")
    times = times_of(solver, steps)
    assert tuple(scheduler.timesteps.tolist()) == times
    if steps < 100:
        generator = torch.Generator().manual_seed(0)
        torch.randn(SHAPE, generator=generator)  # the initial noise
        assert_agree(ours(solver, steps), theirs(scheduler, times, generator=generator))


@pytest.mark.parametrize("steps", [2, 5, 10, 25, 50])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("kind", "grid", "name", "end"),
    [(DPMSolverPP, Spaced(950), "dpmsolver++", "zero"), (DPMSolver, StopsAtZero(), "dpmsolver", "sigma_min")],
    ids=["dpmsolver++", "dpmsolver"],
)
def test_dpm_solver_agrees(kind: Any, grid: Grid, name: str, end: str, order: int, steps: int) -> None:
    solver = kind(order, grid)
    scheduler = scheduler_of(
        DPMSolverMultistepScheduler, algorithm_type=name, solver_order=order, final_sigmas_type=end,
        lower_order_final=False,
    )  # fmt: skip
    times = times_of(solver, steps)
    scheduler.set_timesteps(timesteps=[int(t) for t in times])
    assert_agree(ours(solver, steps), theirs(scheduler, times))


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 25, 50])
def test_the_sde_form_of_dpm_solver_agrees(steps: int) -> None:
    solver = DPMSolverPP(2, Spaced(950), eta=1.0)
    scheduler = scheduler_of(
        DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type="zero",
        lower_order_final=False,
    )  # fmt: skip
    times = times_of(solver, steps)
    scheduler.set_timesteps(timesteps=[int(t) for t in times])
    generator = torch.Generator().manual_seed(0)
    torch.randn(SHAPE, generator=generator)  # the initial noise
    assert_agree(ours(solver, steps), theirs(scheduler, times, generator=generator))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 25, 50])
def test_unipc_agrees(steps: int) -> None:
    solver = UniPC(Spaced(950))
    scheduler = scheduler_of(UniPCMultistepScheduler, solver_order=2, solver_type="bh2", final_sigmas_type="zero")
    times = times_of(solver, steps)
    scheduler.set_timesteps(len(times))
    # It takes no times of ours, and its own lie elsewhere.
    bars = torch.tensor([PROCESS.alphas_cumprod[int(t)] for t in times], dtype=torch.float64)
    scheduler.timesteps = torch.tensor([int(t) for t in times])
    scheduler.sigmas = torch.cat((((1 - bars) / bars).sqrt(), torch.zeros(1, dtype=torch.float64)))
    assert_agree(ours(solver, steps), theirs(scheduler, times))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 14, 15, 20, 50])
def test_dpm_solver_agrees_where_the_head_predicts_v(steps: int) -> None:
    # VibeVoice's scheduler as it is published, with betas and times of its own.
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    scheduler: Any = DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(steps)
    times = tuple(map(float, scheduler.timesteps))
    solver, process = DPMSolverPP(grid=Linspace()), VPCosine(predicts="v")
    assert solver.table(process, steps).nodes.times == times
    assert_agree(ours(solver, steps, process), theirs(scheduler, times))


def test_even_steps_are_those_of_diffusers() -> None:
    scheduler: Any = DPMSolverMultistepScheduler()
    for steps in range(1, 1000):
        scheduler.set_timesteps(steps)
        assert Linspace().nodes(PROCESS, steps).times[:-1] == tuple(scheduler.timesteps.tolist()), steps
