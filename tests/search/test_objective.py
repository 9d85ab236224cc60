from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from optuna import Study
from optuna.trial import FixedTrial, TrialState

from disa_framework import generate
from disa_framework.data import DigitsData
from disa_framework.generation import Observer
from disa_framework.guidance import Guidance
from disa_framework.metrics import DigitsFeatures, to_uint8
from disa_framework.metrics.fid import fid, reference_statistics, save_statistics
from disa_framework.models import Identity, MixtureAR
from disa_framework.models.base import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, PerStage
from disa_framework.search.cost import CostModel, analytic_cost
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs, Objective, filled
from disa_framework.search.quality import FID, ProjectedMixture, SlicedWasserstein
from disa_framework.search.space import Setting, Stages
from disa_framework.solvers import DDPM
from tests.models.tiny import tiny_mar
from tests.search.small import STAGES, Faulty, mixture_meter, mixture_module, mixture_objective

# What Lightning says of PyTorch's data structures.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec.*is deprecated")


class Counter(Observer):
    """Samples that were begun."""

    def __init__(self) -> None:
        self.samples = 0

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self.samples += batch_size


def counting(objective: Objective) -> Counter:
    counter = Counter()
    objective.meter.module.observers = [counter]
    return counter


def try_out(objective: Objective, *params: dict[str, Any], study: Study | None = None) -> Study:
    """A study of these parameters."""
    study = study or optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for values in params:
        study.enqueue_trial(values)
    study.optimize(objective, n_trials=len(params), catch=(Exception,))
    return study


def steps(*counts: int) -> dict[str, int]:
    return {f"steps_{i}": count for i, count in enumerate(counts)}


def test_a_trial_over_the_limit_is_decided_without_drawing() -> None:
    objective = mixture_objective(limit=20, fill=False)
    counter = counting(objective)
    within, over = try_out(objective, steps(8, 6, 4, 2), steps(8, 6, 4, 3)).trials
    assert counter.samples == 96
    assert (within.state, over.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert within.constraints == {"cost": 0} and over.constraints["cost"] == pytest.approx(1 / 20)
    assert tuple(over.user_attrs["budget"]) == (8, 6, 4, 3) and over.user_attrs["cost"] == 21
    assert over.intermediate_values == {}


def test_rungs_go_on_where_the_last_one_ended() -> None:
    objective = mixture_objective(rungs=(20, 50, 96))  # none but the last ends with a batch
    counter = counting(objective)
    trial = try_out(objective, steps(9, 5, 4, 2)).trials[0]
    assert list(trial.intermediate_values) == [20, 50, 96]
    assert counter.samples == 20 + (50 - 16) + (96 - 48)
    whole = mixture_meter().measure(objective.setting(trial), 96)
    assert trial.value == trial.intermediate_values[96] == pytest.approx(whole, rel=1e-6)


def test_a_poor_trial_is_stopped_early() -> None:
    objective = mixture_objective()
    counter = counting(objective)
    good, poor = try_out(objective, steps(12, 6, 4, 2), steps(1, 1, 2, 20)).trials
    assert (good.state, poor.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert counter.samples == 96 + 32 and poor.constraints["cost"] <= 0


def test_a_setting_is_drawn_once() -> None:
    objective = mixture_objective()
    counter = counting(objective)
    first, second = try_out(objective, steps(12, 6, 4, 2), steps(12, 6, 4, 2)).trials
    assert counter.samples == 96
    assert first.value == second.value and first.intermediate_values == second.intermediate_values


def test_an_error_fails_its_trial_alone_and_is_recorded() -> None:
    objective = mixture_objective(limit=48, also={"solvers": [DDPM(), Faulty()]})
    faulty = {**steps(9, 9, 9, 9), "solver": repr(Faulty())}
    trials = try_out(objective, faulty, {**faulty, "solver": repr(DDPM())}).trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs["error"] == "ArithmeticError: the sampler broke down"
    assert trials[0].constraints["cost"] == 0  # before it failed
    assert objective.meter.module.solver == DDPM() and objective.meter.module.seed == 0


def test_a_drawn_trial_stays_what_it_was_when_costs_are_measured_anew() -> None:
    objective = mixture_objective(limit=24)
    trial = try_out(objective, steps(5, 8, 6, 5)).trials[0]
    drawn = objective.setting(trial).budget
    dearer = Costs(objective.meter.module, lambda module: replace(analytic_cost(module), head=(1.25,) * STAGES))
    again = Objective(objective.meter, dearer, objective.space, 24, objective.rungs)
    assert again.setting(trial).budget == drawn == tuple(trial.user_attrs["budget"])
    fresh = again.setting(FixedTrial(steps(5, 8, 6, 5)))
    assert sum(fresh.budget) < sum(drawn)


def test_caching_is_not_chosen_where_it_cannot_pay() -> None:
    with pytest.raises(ValueError, match="feature caching is for masked models"):
        mixture_objective(also={"refresh": [1, 2]}).check()
    objective = mixture_objective(also={"refresh": [1, 2]})
    objective.meter.module.model = tiny_mar()
    with pytest.raises(ValueError, match="caching saves time, not evaluations"):
        objective.check()


def test_an_impossible_limit_names_the_fastest_that_is_possible() -> None:
    objective = mixture_objective(limit=7, space=Stages(2, low=2))
    with pytest.raises(ValueError, match="a limit of 7 evaluations per image: the fastest takes 8"):
        objective.check()
    mixture_objective(limit=8, space=Stages(2, low=2)).check()


def test_steps_are_multiplied_to_make_the_most_of_the_limit() -> None:
    base = Setting.of(mixture_module())
    costs = Costs(mixture_module(), analytic_cost)
    for limit in range(8, 60):
        for budget in ((1, 1, 1, 1), (50, 20, 3, 1), (3, 4, 5, 7), (1, 1, 30, 1)):
            setting = filled(replace(base, schedule=PerStage(budget)), costs, limit)
            found = setting.budget
            assert limit - STAGES < costs(setting) <= limit
            order = sorted(range(STAGES), key=lambda k: budget[k])
            assert list(order) == sorted(order, key=lambda k: found[k])
    assert filled(base, costs, 3).budget == (1,) * STAGES
    assert min(filled(replace(base, schedule=PerStage((50, 20, 3, 1))), costs, 30, least=2).budget) == 2


def test_with_two_objectives_cost_is_one_and_nothing_is_stopped() -> None:
    objective = mixture_objective(limit=None, pareto=True)
    study = try_out(
        objective, steps(9, 5, 4, 2), steps(1, 1, 1, 1), study=optuna.create_study(directions=["minimize"] * 2)
    )
    assert [trial.values[1] for trial in study.trials] == [20, 4]
    assert len(study.best_trials) == 2 and not study.trials[0].constraints


def test_costs_are_measured_once_for_all_that_shares_them() -> None:
    measured = []

    def measure(module: ARDiffusionModule) -> CostModel:
        measured.append((module.num_stages, module.guidance.scale))
        return analytic_cost(module)

    module = mixture_module()
    costs, base = Costs(module, measure), Setting.of(module)
    for guidance in (Guidance(), Guidance(2.0), Guidance(3.0)):
        for schedule in (Constant(3), Linear(9, 2)):
            costs(replace(base, schedule=schedule, guidance=guidance))
    assert costs(replace(base, schedule=Constant(3), solver=DDPM(temperature=0.5), num_stages=2)) == 6
    assert measured == [(4, 1.0), (4, 2.0), (2, 1.0)]


def test_fid_is_torchmetrics_fid_of_the_images(tmp_path: Any) -> None:
    model = tiny_mar(latent_size=8, num_classes=10)
    module = ARDiffusionModule(model, Constant(3), num_stages=4, seed=5)
    data, labels = DigitsData(), torch.arange(40) % 10
    direct = fid(DigitsFeatures())
    direct.update(data.reference_images(), real=True)
    images = generate(model, labels, schedule=Constant(3), solver=DDPM(), num_stages=4, seed=5)
    save_statistics(tmp_path / "digits.npz", *reference_statistics(direct))
    direct.update(to_uint8(images), real=False)
    for reference in (data, str(tmp_path / "digits.npz")):
        meter = Meter(module, FID(DigitsFeatures(), reference), labels, 16, {"accelerator": "cpu"})
        assert meter.measure(Setting.of(module), 40) == pytest.approx(direct.compute().item(), rel=1e-5)
    assert not any("metric" in name or "classifier" in name for name in module.state_dict())


def test_the_exact_distance_of_a_normal_is_that_to_its_quantiles() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    truth = ProjectedMixture(one[0], 3 * one, 2 * one, one)
    shares = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    points = 3 + 2 * torch.special.ndtri(shares)[:, None]
    assert truth.distance(points) < 1e-4
    assert truth.distance(points + 0.5) == pytest.approx(0.5, abs=1e-4)
    assert truth.distance(3 + (points - 3) * 2) == pytest.approx(2 * math.sqrt(2 / math.pi), abs=3e-3)  # E|N(0, 2)|


def test_the_distance_of_true_samples_vanishes_with_their_number() -> None:
    model = MixtureAR(num_classes=2)
    module = ARDiffusionModule(model, tokenizer=Identity(4.0))
    labels = torch.arange(16_000) % 2
    quality = SlicedWasserstein(64)
    found = []
    for count in (1000, 16_000):
        metric = quality.metric(module, labels)
        points = model.sample_exactly(count, torch.Generator().manual_seed(1), labels[:count])
        for part in points.split(700):
            quality.update(metric, module.tokenizer.decode(part))
        found.append(metric.compute().item())
    assert 2.5 < found[0] / found[1] < 6 and found[1] < 0.015  # one over the root of the number
    skewed = model.sample_exactly(16_000, torch.Generator().manual_seed(1), torch.zeros_like(labels))
    metric = quality.metric(module, labels)
    metric.update(module.tokenizer.decode(skewed))
    assert metric.compute() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture_objective(rungs=(50, 50)), r"must be above 0 and rise, got \[50, 50\]"),
        (lambda: mixture_objective(rungs=()), "must be above 0 and rise"),
        (lambda: FID(DigitsFeatures(), _NoReference()), "_NoReference has no reference_images: give an .npz"),
        (lambda: SlicedWasserstein().metric(ARDiffusionModule(tiny_mar()), None), "MAR does not know its exact dist"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class _NoReference(DigitsData):
    reference_images = property()


def test_a_distance_that_is_not_a_number_is_an_error() -> None:
    module = mixture_module()
    for buffer in module.model.buffers():
        buffer.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        mixture_meter(module).measure(Setting.of(module), 32)
