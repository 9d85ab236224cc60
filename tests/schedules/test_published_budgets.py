"""Budgets, and what they cost, are those of the published code, recorded in `step_schedule.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Process,
    RectifiedFlow,
    Solver,
    Spaced,
    Strided,
    VPCosine,
)  # fmt: skip

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("step_schedule.json").read_text())
RAMPS: dict[str, Callable[[int, int], StepSchedule]] = {"linear": Linear, "cosine": Cosine, "two-stage": TwoStage}
MAR = [entry for entry in RECORDED["mar"] if "strategy" in entry]
PLAIN = [entry for entry in RECORDED["mar"] if "sampler" in entry]


def schedule_of(entry: dict[str, Any]) -> StepSchedule:
    # The published `constant` stays at the lower count.
    if entry["strategy"] == "constant":
        return Constant(entry["lower"])
    return RAMPS[entry["strategy"]](entry["upper"], entry["lower"])


def evaluations(solver: Solver, process: Process, budget: Sequence[int]) -> list[int]:
    return [solver.evaluations(process, steps) for steps in budget]


def test_every_strategy_and_size_is_recorded() -> None:
    assert len(MAR) == 100 and len(PLAIN) == 5
    assert {entry["strategy"] for entry in MAR} == {*RAMPS, "constant"}


def test_budgets_of_mar_are_the_published_ones() -> None:
    for entry in MAR:
        assert list(schedule_of(entry).budget(entry["K"])) == entry["requested"], entry


def test_ramps_are_truncated_in_floating_point_as_published() -> None:
    # 7 / 10 * 90 is 62.999… there; exact arithmetic would say 63.
    assert Linear(100, 10).budget(11)[3] == 72


@pytest.mark.parametrize("family", ["flowar", "xar"])
def test_budgets_of_flowar_and_xar_are_the_linear_ones(family: str) -> None:
    for entry in RECORDED[family]:
        budget = Linear(entry["upper"], entry["lower"]).budget(entry["K"])
        assert list(budget) == entry["requested"], entry


@pytest.mark.parametrize(
    ("solver", "key"),
    [
        (DDPM(Spaced(clip=950)), "evals_disa"),
        (DDIM(Strided(clip=980)), "evals_ddim"),
        (DPMSolverPP(), "evals_dpm"),
    ],
    ids=["annealed DDPM", "DDIM", "DPM-Solver"],
)
@pytest.mark.filterwarnings("ignore:no integer stride")
def test_evaluations_of_mar_are_the_published_ones(solver: Solver, key: str) -> None:
    for entry in MAR:
        assert evaluations(solver, VPCosine(), entry["requested"]) == entry[key], entry


def test_the_plain_sampler_of_mar_evaluates_every_step() -> None:
    for entry in PLAIN:
        assert evaluations(DDPM(Spaced()), VPCosine(), [entry["upper"]]) == [entry["evals_every_step"]]


@pytest.mark.parametrize(
    ("solver", "key"),
    [(Euler(), "evals_euler"), (EulerMaruyama(), "evals_euler_maruyama")],
    ids=["Euler", "Euler-Maruyama"],
)
def test_evaluations_of_xar_are_the_published_ones(solver: Solver, key: str) -> None:
    for entry in RECORDED["xar"]:
        assert evaluations(solver, RectifiedFlow(), entry["requested"]) == entry[key], entry
