from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from disa_framework.sampling.generation import sample_stage
from disa_framework.sampling.guidance import Guidance
from disa_framework.sampling.history import Signals, Trajectory
from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Nodes,
    Process,
    RectifiedFlow,
    Solver,
    Spaced,
    Uniform,
    VPCosine,
)
from disa_framework.solvers.table import Denoiser, Step
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import begin, tiny_mar

FLOW = RectifiedFlow()


def to_a_point(point: Tensor, process: Process) -> Denoiser:
    """The exact head where every token is the same; Heun asks for what was noise when there is none left."""
    last: list[Tensor] = []

    def denoise(nodes: Nodes) -> Step:
        def step(x: Tensor, i: int) -> Tensor:
            alpha, sigma = nodes.alphas[i], nodes.sigmas[i]
            last.append((x - alpha * point) / sigma if sigma else last[-1])
            return process.target(point.expand_as(x), last[-1], alpha, sigma)

        return step

    return denoise


def drawn(denoise: Denoiser, process: Process, solver: Solver, steps: int, count: int = 64) -> tuple[Tensor, Signals]:
    normal = partial(PhiloxNoise(0, torch.arange(count)).normal, 0, (2, 3))
    trajectory = Trajectory(process)
    tokens = solver.sample(trajectory.watch(denoise), process, steps, normal)
    return tokens, trajectory.signals(tokens)


def one_gaussian(solver: Solver, steps: int, process: Process | None = None, count: int = 4000) -> Signals:
    """Of the first token, which is normal with a known variance of 0.06."""
    model, noise = MixtureAR(4, 1, process=process), PhiloxNoise(0, torch.arange(count))
    proposal = model.propose(begin(model, torch.zeros(count, dtype=torch.int64)), 0)
    trajectory = Trajectory(model.process)
    return trajectory.signals(sample_stage(model, proposal, 0, steps, solver, noise, trajectory))


@pytest.mark.parametrize(("process", "solver"), [(FLOW, Euler()), (FLOW, Heun()), (VPCosine(), DDIM(Spaced()))])
def test_the_way_to_a_point_is_straight_certain_and_without_error(process: Process, solver: Solver) -> None:
    point = torch.tensor([0.5, -1.0, 2.0])
    tokens, signals = drawn(to_a_point(point, process), process, solver, 8)
    assert torch.allclose(tokens, point.expand_as(tokens), atol=1e-4)
    assert signals.straightness == pytest.approx(1, abs=1e-4)
    assert signals.variance < 1e-8 and signals.error < 1e-4


def test_noise_on_the_way_bends_it() -> None:
    point = torch.tensor([0.5, -1.0, 2.0])
    straight, bent = (drawn(to_a_point(point, FLOW), FLOW, s, 16)[1].straightness for s in (Euler(), EulerMaruyama()))
    assert bent < straight - 0.05


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP()])
def test_the_variance_is_what_is_left_to_know(solver: Solver) -> None:
    assert one_gaussian(solver, 100).variance == pytest.approx(0.06, rel=0.1)


def test_the_error_falls_with_the_number_of_steps() -> None:
    process = RectifiedFlow()
    errors = [one_gaussian(Euler(Uniform()), steps, process).error for steps in (20, 40, 80)]
    for few, many in pairwise(errors):
        assert few / many == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), DPMSolverPP()])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.0)])
def test_watching_changes_nothing_of_what_is_drawn(solver: Solver, guidance: Guidance) -> None:
    model, noise = tiny_mar(), PhiloxNoise(3, torch.arange(5))
    with torch.inference_mode():
        proposal = model.propose(begin(model, torch.arange(5) % 3, guidance=guidance), 0)
        plain = sample_stage(model, proposal, 0, 6, solver, noise)
        trajectory = Trajectory(model.process)
        watched = sample_stage(model, proposal, 0, 6, solver, noise, trajectory)
        signals = trajectory.signals(watched)
    assert torch.equal(plain, watched)
    assert -1 <= signals.straightness <= 1 and signals.variance > 0 and signals.error.isfinite()


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_have_signals_too(steps: int) -> None:
    signals = one_gaussian(DDPM(), steps)
    assert all(value.isfinite() for value in (signals.straightness, signals.variance, signals.error))
