"""Schedules that decide their steps while they draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from disa_framework import SamplingConfig, StageRecord, generate
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.history import Signals
from disa_framework.schedules import Adaptive, Constant, StepSchedule
from disa_framework.schedules.adaptive import Signal
from disa_framework.search import fit_adaptive
from disa_framework.search.adaptation import Records
from disa_framework.solvers import DDPM, Euler, Spaced
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny_flow import tiny_flowar, tiny_xar

SOLVER = DDPM(Spaced(clip=950))


def drawn(schedule: StepSchedule, seed: int = 1, batch_size: int = 300) -> Records:
    seen = Records()
    generate(MixtureAR(), None, SamplingConfig(schedule, SOLVER), batch_size=batch_size, seed=seed, observers=[seen])
    return seen


def fitted(limit: float, batch_size: int = 300, **options: Any) -> Adaptive:
    return fit_adaptive(MixtureAR(), limit, None, SamplingConfig(solver=SOLVER), batch_size=batch_size, **options)


@pytest.mark.parametrize("signal", ["error", "variance", "straightness"])
def test_a_fitted_threshold_spends_the_limit_on_other_noise_too(signal: Signal) -> None:
    schedule = fitted(300, signal=signal)
    assert 0.97 * 300 < sum(drawn(schedule, seed=0).budget) <= 300
    assert abs(sum(drawn(schedule).budget) - 300) < 0.05 * 300


def test_early_stages_of_the_mixture_get_more_steps() -> None:
    budget = drawn(fitted(300)).budget
    assert min(budget[:3]) > 1.3 * max(budget[8:])


@pytest.mark.parametrize("model", [tiny_flowar(), tiny_xar()], ids=["FlowAR", "xAR"])
def test_models_that_keep_something_between_stages_adapt(model: ARDiffusionModel) -> None:
    labels, limit, sampling, seen = torch.arange(4) % 3, 8 * model.max_stages, SamplingConfig(solver=Euler()), Records()
    schedule = fit_adaptive(model, limit, labels, sampling)
    generate(model, labels, replace(sampling, schedule=schedule), observers=[seen])
    assert 0.7 * limit < sum(seen.budget) <= limit


def test_the_cost_may_be_in_any_unit() -> None:
    schedule = fitted(2.0, batch_size=100, cost=lambda budget: 0.5 + 0.01 * sum(budget))
    assert 140 < sum(drawn(schedule, seed=0, batch_size=100).budget) <= 150


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ValueError, match="costs at most 30: the cheapest costs 34"):
        fitted(30, batch_size=10)  # 4 steps, then 2 at 15 stages
    with pytest.raises(ValueError, match="needs at least 2"):
        fit_adaptive(MixtureAR(), 30, sampling=SamplingConfig(num_stages=1))


def record(steps: int = 10, **signals: float) -> StageRecord:
    values = {"straightness": 1.0, "variance": 0.0, "error": 0.0, **signals}
    return StageRecord(0, steps, steps, 1, Signals(**{name: torch.tensor(value) for name, value in values.items()}))


def test_steps_follow_the_level_within_their_bounds() -> None:
    schedule = Adaptive(threshold=4.0, signal="variance", low=3, high=40, first=7)
    budget = schedule.budget(3)
    assert budget == (7, 40, 40)
    assert schedule.at(0, budget) == 7
    taken = [schedule.at(1, budget, [record(variance=v)]) for v in (0.0, 0.001, 0.25, 1.0, 4.0, 100.0, float("inf"))]
    assert taken == [3, 3, 10, 20, 40, 40, 40]
    assert Adaptive(4.0, "error").level(record(steps=10, error=0.2)) == pytest.approx(2.0)
    assert Adaptive(4.0, "straightness").level(record(straightness=0.75)) == pytest.approx(0.25)


def test_the_last_stage_alone_decides() -> None:
    schedule = Adaptive(1.0, "variance")
    history = [record(variance=9.0), record(variance=0.25)]
    assert schedule.at(2, schedule.budget(3), history) == schedule.at(2, schedule.budget(3), history[1:]) == 50


def test_signals_are_taken_only_for_who_reads_them() -> None:
    assert all(seen.signals is None for seen in drawn(Constant(3), batch_size=4).records)
    assert all(seen.signals is not None for seen in drawn(Adaptive(1.0), batch_size=4).records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold > 0"),
        ({"threshold": 1.0, "signal": "entropy"}, "one of error, variance, straightness, got 'entropy'"),
        ({"threshold": 1.0, "low": 5, "high": 4}, "low <= high"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptive(**options)
