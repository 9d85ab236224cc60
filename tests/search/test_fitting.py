"""Fitted solvers end where many steps end, and are kept, written and read as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, PerStage
from disa_framework.search import Fitting, Limit, Plan, find, fit_solver
from disa_framework.solvers import (
    DPMSolverPP,
    Fitted,
    Grid,
    Karras,
    LogSNR,
    PowerTime,
    Process,
    RectifiedFlow,
    Solver,
    Staged,
    VPCosine,
)
from disa_framework.toy.exact import ProjectedMixture
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar
from tests.search.small import CPU

FINE, PLAIN = DPMSolverPP(2, LogSNR(0.98, 0.002)), Guidance()
LABELS = torch.arange(256) % 2
PROCESSES = pytest.mark.parametrize("process", [VPCosine(), RectifiedFlow()], ids=str)


def mixture(process: Process | None = None, **options: Any) -> MixtureAR:
    return MixtureAR(**{"num_tokens": 4, "num_components": 4, "num_classes": 2, "process": process, **options})


def fit(model: MixtureAR, steps: tuple[int, ...], condition: Tensor | None = LABELS, **options: Any) -> Solver:
    fitting = Fitting(steps, reference=FINE, reference_steps=60, **options)
    return fit_solver(model, condition, SamplingConfig(num_stages=4), fitting, batch_size=64)


def missed(model: MixtureAR, solver: Solver, steps: int, guidance: Guidance = PLAIN) -> float:
    """Root mean square of what samples are off those of many steps, drawn from noise that no fit has seen."""
    labels = torch.arange(400) % 2 if model.num_classes > 1 else None
    config = SamplingConfig(Constant(steps), solver, 4, guidance)
    many = replace(config, solver=FINE, schedule=Constant(60))
    few, fine = (generate(model, labels, s, seed=5, batch_size=400) for s in (config, many))
    return (few - fine).square().mean().sqrt().item()


@PROCESSES
def test_tokens_of_a_gaussian_need_one_evaluation(process: Process) -> None:
    model = mixture(process, num_components=1, num_classes=1)
    assert missed(model, fit(model, (1,), None), 1) < 0.01
    assert missed(model, DPMSolverPP(2, LogSNR()), 1) > 0.1


@PROCESSES
def test_fitted_tables_come_nearer_to_many_steps_than_any_grid(process: Process) -> None:
    model = mixture(process)
    grids: list[Grid] = [LogSNR(), LogSNR(0.98, 0.02), Karras(), PowerTime()]
    best = min(missed(model, DPMSolverPP(2, grid), 3) for grid in grids)
    shared, staged = (missed(model, fit(model, (3,), shared=shared), 3) for shared in (True, False))
    assert shared < best / 2 and staged < best / 3


@PROCESSES
def test_found_times_draw_a_distribution_nearer_to_the_exact_one_than_any_grid(process: Process) -> None:
    model, asked = MixtureAR(seed=1, process=process), SamplingConfig(Constant(4), num_stages=8)
    exact = ProjectedMixture.of(model)

    def distance(solver: Solver) -> float:
        return exact.distance(generate(model, None, replace(asked, solver=solver), seed=5, batch_size=4000).flatten(1))

    fitting = Fitting((4,), coefficients=False, reference=FINE, reference_steps=60)
    found = fit_solver(model, None, asked, fitting, batch_size=256)
    grids: list[Grid] = [LogSNR(), LogSNR(0.98, 0.02), Karras(), PowerTime()]
    assert distance(found) < min(distance(DPMSolverPP(2, grid)) for grid in grids)


def test_stages_have_their_own_tables_unless_they_share_them() -> None:
    staged, shared = fit(mixture(), (1, 2)), fit(mixture(), (1, 2), shared=True)
    assert isinstance(staged, Staged) and staged.num_stages == 4 and isinstance(shared, Fitted)
    assert fit(mixture(), (1, 2)) == staged
    config = SamplingConfig(PerStage((2, 2, 1, 1)), staged, 4)
    assert config.evaluations(VPCosine()) == 6
    with pytest.raises(ValueError, match="for 4 stages, got num_stages=3"):
        replace(config, num_stages=3)


def test_guidance_is_fitted_too() -> None:
    model, guidance = mixture(), Guidance(2.0, "constant")
    asked = SamplingConfig(num_stages=4, guidance=guidance)
    fitting = Fitting((2,), reference=FINE, reference_steps=60)
    guided, plain = fit_solver(model, LABELS, asked, fitting), fit(model, (2,))
    assert missed(model, guided, 2, guidance) < missed(model, plain, 2, guidance)


def test_what_guidance_adds_is_not_reused_while_a_solver_is_fitted() -> None:
    fitting, exact = Fitting((2,), reference=FINE, reference_steps=6, iterations=1), Guidance(3.0, "constant")
    found = [
        fit_solver(mixture(), LABELS[:8], SamplingConfig(num_stages=4, guidance=guidance), fitting)
        for guidance in (exact, replace(exact, reuse=2))
    ]
    assert found[0] == found[1]


def test_a_config_with_fitted_tables_is_written_and_read(tmp_path: Path) -> None:
    config = SamplingConfig(Constant(2), replace(fit(mixture(), (1, 2)), temperature=0.9), 4)  # type: ignore[type-var]
    config.save(tmp_path / "found.yaml")
    read = SamplingConfig.load(tmp_path / "found.yaml")
    assert read == config and hash(read) == hash(config)
    first, second = (generate(mixture(), LABELS, sampling, seed=1) for sampling in (config, read))
    assert torch.equal(first, second)


def test_temperature_is_a_factor_of_the_noise_that_tokens_begin_as() -> None:
    model = mixture(num_components=1, num_classes=1)
    solver: Any = fit(model, (1,), None)
    spread = [
        generate(model, None, SamplingConfig(Constant(1), replace(solver, temperature=t), 4), seed=2, batch_size=4000)
        .std(dim=0)[..., 0]
        .item()
        for t in (1.0, 0.5)
    ]
    assert spread[1] == pytest.approx(spread[0] / 2, rel=0.02)


def test_a_search_by_fitting_meets_its_limit_and_answers_another_one_from_what_it_kept(tmp_path: Path) -> None:
    module = ARDiffusionModule(mixture(), SamplingConfig(Constant(12), FINE, 4))
    fitting = Fitting((1, 2, 3), reference=FINE, reference_steps=40)
    plan = Plan("fit", fitting=fitting, profile_samples=64, batch_size=16, trainer=CPU)
    before: dict[str, int] = {}
    for limit in (9, 6):
        found = find(module, Limit.evaluations(limit), LABELS, None, plan, tmp_path)
        assert found.cost <= limit and found.sampling.evaluations(VPCosine()) <= limit
        assert SamplingConfig.load(tmp_path / "best.yaml") == found.sampling
        kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("[ps][or]*-*")}
        assert len(kept) == 2 and (limit == 9 or kept == before)
        before = kept


def test_what_cannot_be_fitted_is_refused() -> None:
    for steps in ((), (2, 1), (0, 1)):
        with pytest.raises(ValueError, match=r"rise from 1|needs 1 to"):
            Fitting(steps)
    with pytest.raises(ValueError, match="float32"):
        fit_solver(tiny_mar().bfloat16(), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must lie in"):
        fit(mixture(), (1,), torch.tensor([5]))
