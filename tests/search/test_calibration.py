"""Shared paths of noise, profiles, and what calibration finds where the truth is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, NoiseSource
from disa_framework.models import MixtureAR
from disa_framework.noise import PhiloxNoise
from disa_framework.schedules import Linear
from disa_framework.search.calibration import Profile, calibrate, measure_profile
from disa_framework.search.coupling import SharedPath
from disa_framework.solvers import DDIM, DDPM, Cosine, Euler, EulerMaruyama, Heun, LinearFlow, Process, Solver, Spaced
from tests.models.tiny_flow import tiny_flowar, tiny_xar

SOLVER = DDPM(Spaced(clip=950))
INDICES = torch.arange(400)


def path(solver: Solver = SOLVER, process: Process | None = None, fine: int = 80) -> SharedPath:
    return SharedPath(PhiloxNoise(3, INDICES), solver, process or Cosine(), fine)


@pytest.mark.parametrize(
    ("solver", "process"), [(SOLVER, Cosine()), (EulerMaruyama(), LinearFlow())], ids=["DDPM", "Euler-Maruyama"]
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
    draws = SOLVER.table(Cosine(), 80).draws
    assert torch.equal(path().of(80).normal(1, (2, 3), draws), PhiloxNoise(3, INDICES).normal(1, (2, 3), draws))


def test_runs_of_a_shared_path_end_near_each_other() -> None:
    model = MixtureAR(num_tokens=1, num_components=1)
    source = PhiloxNoise(3, INDICES)
    state = model.begin(None, 1, guidance=Guidance(), noise=source, batch_size=400)
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
    model = MixtureAR(seed=1)
    profile = measure_profile(model, solver=SOLVER, menu=(2, 5, 10, 20), batch_size=300, other_steps=4, stride=5)
    assert len(profile.errors) == 16 and all(len(row) == 4 for row in profile.errors)
    assert all(a >= b for row in profile.errors for a, b in pairwise(row))
    assert profile.errors[0][0] > 10 * profile.errors[10][0]


def test_what_calibration_finds_fits_the_limit_and_falls() -> None:
    schedule = calibrate(
        MixtureAR(seed=2), limit=150, solver=SOLVER, menu=(2, 5, 10, 20, 40), batch_size=300, other_steps=4, stride=5
    )
    budget = schedule.budget(16)
    assert sum(budget) <= 150 and budget[0] == max(budget)
    assert sum(budget[:4]) > 1.2 * sum(Linear(16, 3).budget(16)[:4])


@pytest.mark.parametrize("solver", [Euler(), Heun(), EulerMaruyama()], ids=["Euler", "Heun", "Euler-Maruyama"])
def test_models_with_caches_are_calibrated(solver: Solver) -> None:
    for model in (tiny_flowar(), tiny_xar()):
        labels = torch.arange(6) % 3
        options = {"solver": solver, "menu": (2, 4), "other_steps": 2}
        profile = measure_profile(model, labels, **options)  # type: ignore[arg-type]
        assert torch.equal(profile.shifts, measure_profile(model, labels, **options).shifts)  # type: ignore[arg-type]
        assert all(row[0] >= row[1] > 0 for row in profile.errors)


def test_a_profile_is_kept(tmp_path: Path) -> None:
    profile = Profile((2, 4), torch.tensor([[[0.75, -0.25], [-0.5, 0.0]], [[0.125, 0.125], [0.0625, 0.0625]]]))
    assert profile.errors == [[0.5, 0.25], [0.125, 0.0625]]
    profile.save(tmp_path / "profile.safetensors")
    kept = Profile.load(tmp_path / "profile.safetensors")
    assert kept.menu == profile.menu and torch.equal(kept.shifts, profile.shifts)
    assert kept.schedule(6).budget(2) == (4, 2)
    with pytest.raises(ValueError, match="the cheapest feasible cost is 4"):
        profile.schedule(3)
    (tmp_path / "other.safetensors").write_text("[]")
    with pytest.raises(ValueError, match=r"other.safetensors is no profile of a calibration"):
        Profile.load(tmp_path / "other.safetensors")


def test_a_deterministic_solver_shares_its_start() -> None:
    assert torch.equal(path(DDIM(Spaced())).of(5).normal(0, (2, 1), 1), PhiloxNoise(3, INDICES).normal(0, (2, 1), 1))
