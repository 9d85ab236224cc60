"""Times and coefficients are those of the published MAR code, recorded in `respacing.json`."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from disa_framework.solvers import Linspace, Spaced, Strided, UniformTime, VPCosine
from disa_framework.solvers.ddpm import posterior
from disa_framework.solvers.grid import spaced_timesteps, strided_timesteps

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("respacing.json").read_text())
CLIPS = [950, 1001]  # of the annealed sampler and, where it cuts nothing, of the plain one
PROCESS = VPCosine()


@pytest.mark.parametrize("clip", CLIPS)
def test_evenly_spaced_timesteps_are_the_published_ones(clip: int) -> None:
    recorded = RECORDED["retained"][f"clip_{clip}"]
    assert len(recorded) == 250
    for steps, times in recorded.items():
        assert list(spaced_timesteps(int(steps), 1000, clip)) == times, steps


def test_strided_timesteps_are_the_published_ones() -> None:
    recorded = RECORDED["ddim"]["clip_980"]
    assert len(recorded) == 100
    for steps, times in recorded.items():
        if times is None:
            with pytest.raises(ValueError, match="at least 2 steps"):
                strided_timesteps(int(steps), 1000, 980)
        else:
            assert list(strided_timesteps(int(steps), 1000, 980)) == times, steps


def test_the_grid_of_vibevoice_is_the_published_one() -> None:
    assert Linspace().nodes(PROCESS, 5).times == (999, 799, 599, 400, 200, -1)
    assert Linspace().nodes(PROCESS, 10).times[:6] == (999, 899, 799, 699, 599, 500)
    assert Linspace().nodes(PROCESS, 1).times == (999, -1)


@pytest.mark.parametrize("steps", [37, 41, 43, 45, 47, 49])
def test_a_count_without_a_stride_is_told(steps: int) -> None:
    with pytest.warns(UserWarning, match=f"no integer stride gives {steps} of 1000"):
        nodes = Strided().nodes(PROCESS, steps)
    assert len(nodes) == steps + 1


@pytest.mark.parametrize("clip", [None, 950])
def test_one_step_starts_from_noise(clip: int | None) -> None:
    # The published spacing keeps timestep 0 alone, where noise would pass for a finished token.
    assert Spaced(clip).nodes(PROCESS, 1).times == ((clip or 999), -1)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("steps", [5, 12, 25, 50, 100])
def test_tables_are_the_published_ones(steps: int, clip: int) -> None:
    recorded = RECORDED["tables"][f"clip_{clip}"][str(steps)]
    nodes = Spaced(clip if clip < 1000 else None).nodes(PROCESS, steps)
    bars = [PROCESS.alpha_bar(t) for t in nodes.times[::-1]]  # clean first
    found = [posterior(bar, prev) for prev, bar in pairwise(bars)]
    columns = {
        "betas": [p.beta for p in found],
        "alphas_cumprod": bars[1:],
        "posterior_mean_coef1": [p.clean for p in found],
        "posterior_mean_coef2": [p.state for p in found],
        "log_betas_max_log_variance": [math.log(p.beta) for p in found],
        # The last step's variance is 0, so its recorded logarithm is that of the step before.
        "posterior_log_variance_clipped": [math.log(p.variance or found[1].variance) for p in found],
    }
    assert columns.keys() == recorded.keys()
    for name, values in columns.items():
        # The recorded product has factors 1 - beta near 0, and with them the rounding of beta.
        rounding = 1e-15 if name == "alphas_cumprod" else 0.0
        assert values == pytest.approx(recorded[name], rel=1e-12, abs=rounding), name


def test_training_betas_are_the_published_ones() -> None:
    recorded = RECORDED["train"]
    count = recorded["num_timesteps"]
    assert (recorded["first"], recorded["last"]) == (0, count - 1)
    assert PROCESS.betas[:3] == pytest.approx(recorded["betas_first"], rel=1e-12, abs=0)
    assert PROCESS.betas[count - 3 : count] == pytest.approx(recorded["betas_last"], rel=1e-12, abs=0)


def test_a_cap_on_beta_changes_the_last_timesteps_alone() -> None:
    recorded = json.loads(Path(__file__).with_name("unipic_process.json").read_text())
    capped, timesteps = VPCosine(max_beta=recorded["max_beta"]), recorded["timesteps"]
    assert [capped.betas[t] for t in timesteps] == pytest.approx(recorded["betas"], rel=1e-12)
    assert [capped.alphas_cumprod[t] for t in timesteps] == pytest.approx(recorded["alphas_cumprod"], rel=1e-12)
    assert capped.betas[:991] == VPCosine().betas[:991] and set(capped.betas[991:]) == {0.2}
    with pytest.raises(ValueError, match="max_beta must lie between 0 and 1, got 1"):
        VPCosine(max_beta=1.0)


@pytest.mark.parametrize("steps", [3, 5, 12, 25, 50])
def test_the_grid_of_dpm_solver_is_the_published_one(steps: int) -> None:
    # Recorded in float32, whose 1 - alpha^2 cancels near the clean end.
    recorded = RECORDED["dpm"]["steps"][str(steps)]
    nodes = UniformTime().nodes(PROCESS, steps)
    log_snr = [math.log(alpha / sigma) for alpha, sigma in zip(nodes.alphas, nodes.sigmas, strict=True)]
    assert nodes.times[:-1] == pytest.approx(recorded["model_time_float32"], rel=1e-6, abs=0)
    log_alphas = [math.log(alpha) for alpha in nodes.alphas]
    assert log_alphas == pytest.approx(recorded["log_alpha"], rel=1e-6, abs=1e-7)
    assert nodes.sigmas == pytest.approx(recorded["sigma"], abs=1e-5)
    assert log_snr == pytest.approx(recorded["lam"], abs=1e-3)


def test_the_discrete_log_alphas_of_dpm_solver_are_the_published_ones() -> None:
    recorded = RECORDED["dpm"]
    logs = [0.5 * math.log(bar) for bar in PROCESS.alphas_cumprod[: recorded["total_N"]]]
    assert logs[:3] == pytest.approx(recorded["log_alpha_array_first"], rel=1e-6, abs=0)
    assert logs[-3:] == pytest.approx(recorded["log_alpha_array_last"], rel=1e-6, abs=0)


def test_a_clip_above_the_last_timestep_cuts_nothing() -> None:
    process = VPCosine(timesteps=500)
    for steps in (1, 2, 7):
        assert Spaced(clip=950).nodes(process, steps) == Spaced().nodes(process, steps)
