"""Shared paths of noise, profiles, and what calibration finds where the truth is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Lazy, NoiseSource, PhiloxNoise, SamplingConfig
from disa_framework.measure.cost import CostModel
from disa_framework.models import ARDiffusionModel
from disa_framework.schedules import Linear, PerStage
from disa_framework.search.calibration import Calibration, Profile, measure_profile
from disa_framework.search.coupling import SharedPath
from disa_framework.solvers import (
    DDIM,
    DDPM,
    Components,
    Euler,
    EulerMaruyama,
    Heun,
    Process,
    RectifiedFlow,
    Solver,
    Spaced,
    VPCosine,
)
from disa_framework.toy.mixture import MixtureAR, MixtureState
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar

SOLVER = DDPM(Spaced(clip=950))
SAMPLING = SamplingConfig(solver=SOLVER)
LABELS = torch.arange(6) % 3
INDICES = torch.arange(400)


def path(solver: Solver = SOLVER, process: Process | None = None, fine: int = 80) -> SharedPath:
    return SharedPath(PhiloxNoise(3, INDICES), solver, process or VPCosine(), fine)


@pytest.mark.parametrize(
    ("solver", "process"), [(SOLVER, VPCosine()), (EulerMaruyama(), RectifiedFlow())], ids=["DDPM", "Euler-Maruyama"]
)
@pytest.mark.parametrize("steps", [1, 2, 5, 33, 40])
def test_increments_of_a_path_are_independent_standard_normals(solver: Solver, process: Process, steps: int) -> None:
    draws = solver.table(process, steps).draws
    noise = path(solver, process).of(steps).normal(0, (50, 1), draws)[..., 0].flatten(1)  # [draws, 400 * 50]
    assert noise.shape == (draws, 20_000)
    assert noise.mean(dim=1).abs().max() < 0.04
    covariance = noise @ noise.T / noise.shape[1]
    assert (covariance - torch.eye(draws)).abs().max() < 0.05


def test_a_run_as_fine_as_the_path_has_the_noise_of_its_source() -> None:
    draws = SOLVER.table(VPCosine(), 80).draws
    assert torch.equal(path().of(80).normal(1, (2, 3), draws), PhiloxNoise(3, INDICES).normal(1, (2, 3), draws))
    start = PhiloxNoise(3, INDICES).normal(0, (2, 1), 1)
    assert torch.equal(path(DDIM(Spaced())).of(5).normal(0, (2, 1), 1), start)  # which is all a deterministic one has


def test_runs_of_a_shared_path_end_near_each_other() -> None:
    model = MixtureAR(num_tokens=1, num_components=1)
    source = PhiloxNoise(3, INDICES)
    state = model.begin(None, model.settle(SAMPLING), source)
    denoise = model.propose(state, 0).denoise

    def tokens(noise: NoiseSource, steps: int) -> Tensor:
        return SOLVER.sample(denoise, model.process, steps, lambda draws, dtype: noise.normal(0, (1, 1), draws, dtype))

    with torch.inference_mode():
        fine = tokens(source, 80)
        shared, apart = ((tokens(noise, 20) - fine).square().mean() for noise in (path().of(20), source))
    assert shared < 0.2 * apart


def test_a_path_that_is_too_coarse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a run of .* steps has no room for 60: give it at least 120"):
        path(fine=50).of(60)


def test_a_profile_knows_which_stages_decide() -> None:
    calibration = Calibration((2, 5, 10, 20, 40), other_steps=4, stride=5)
    profile = measure_profile(MixtureAR(seed=2), None, SAMPLING, calibration, batch_size=300)
    assert len(profile.errors) == 16 and all(len(row) == 5 for row in profile.errors)
    assert all(a >= b for row in profile.errors for a, b in pairwise(row))
    assert profile.errors[0][0] > 10 * profile.errors[10][0]
    budget = profile.schedule(150).budget(16)
    assert sum(budget) <= 150 and budget[0] == max(budget)
    assert sum(budget[:4]) > 1.2 * sum(Linear(16, 3).budget(16)[:4])


@pytest.mark.parametrize("solver", [Euler(), Heun(), EulerMaruyama()], ids=["Euler", "Heun", "Euler-Maruyama"])
@pytest.mark.parametrize("model", [tiny_flowar(), tiny_xar()], ids=["FlowAR", "xAR"])
def test_models_that_keep_something_between_stages_are_calibrated(model: ARDiffusionModel, solver: Solver) -> None:
    first, second = (
        measure_profile(model, LABELS, SamplingConfig(solver=solver), Calibration((2, 4), other_steps=2))
        for _ in range(2)
    )
    assert torch.equal(first.shifts, second.shifts)
    assert all(row[0] >= row[1] > 0 for row in first.errors)


def test_components_of_a_mixture_head_are_calibrated_as_steps_are() -> None:
    model, sampling = tiny_mar(components=5), SamplingConfig(solver=Components())
    profile = measure_profile(model, LABELS, sampling, Calibration((1, 2, 5), other_steps=3))
    assert all(row[0] >= row[1] >= row[2] == 0 for row in profile.errors) and profile.errors[0][0] > 0
    assert sum(profile.schedule(8).budget(4)) == 8


def test_a_profile_is_that_of_the_cache_it_is_measured_with() -> None:
    model, calibration = tiny_mar(), Calibration((2, 4), other_steps=2)
    plain, cached = (
        measure_profile(model, LABELS, SamplingConfig(num_stages=4, cache=cache), calibration)
        for cache in (None, Lazy(refresh=4, share=0.0, start=1))
    )
    assert not torch.equal(plain.shifts, cached.shifts)


def test_stages_that_no_sample_comes_to_shift_nothing() -> None:
    class Short(MixtureAR):
        """Is at its end after half of its stages."""

        def finished(self, state: MixtureState) -> Tensor:
            return (state.tokens != 0).sum(dim=1) >= 8

    profile = measure_profile(Short(), None, SAMPLING, Calibration((2, 5), other_steps=4, stride=3), batch_size=50)
    assert all(row[0] > 0 for row in profile.errors[:8]) and not profile.shifts[9:].any()


def test_a_profile_is_kept(tmp_path: Path) -> None:
    profile = Profile((2, 4), torch.tensor([[[0.75, -0.25], [0.5, 0.0]], [[0.125, 0.125], [0.0625, 0.0625]]]))
    assert profile.errors == [[0.5, 0.25], [0.125, 0.0625]]
    profile.save(tmp_path / "profile.safetensors")
    kept = Profile.load(tmp_path / "profile.safetensors")
    assert kept.menu == profile.menu and torch.equal(kept.shifts, profile.shifts)
    (tmp_path / "other.safetensors").write_text("[]")
    with pytest.raises(ValueError, match=r"other.safetensors is no profile of a calibration"):
        Profile.load(tmp_path / "other.safetensors")


def test_a_limit_may_be_in_steps_evaluations_or_seconds() -> None:
    profile = Profile((2, 4), torch.tensor([[[0.75, -0.25], [0.5, 0.0]], [[0.125, 0.125], [0.0625, 0.0625]]]))
    counted = CostModel(0.0, (0.0, 0.0), (1.0, 1.0), VPCosine(), DDIM(), unit="evaluations")
    timed = CostModel(2.0, (1.0, 1.0), (0.25, 0.5), VPCosine(), DDIM())
    assert profile.schedule(6) == profile.schedule(6, counted) == profile.schedule(6.0, timed) == PerStage((4, 2))
    with pytest.raises(ValueError, match="the cheapest feasible cost is 4"):
        profile.schedule(3)


@pytest.mark.parametrize("options", [{"menu": (4, 2)}, {"menu": ()}, {"menu": (0, 2)}, {"stride": 0}])
def test_what_is_no_calibration_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must rise|needs 1 to|from 1 on|from 1 to"):
        Calibration(**options)
