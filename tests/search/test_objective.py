"""What a trial is, and the meter that draws for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna import Study
from optuna.trial import TrialState

from disa_framework import Observer, SamplingConfig, generate
from disa_framework.callbacks.sample_writers import pictured, png
from disa_framework.measure.cost import analytic_cost
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Adaptive, Constant, Linear
from disa_framework.search.folder import Folder
from disa_framework.search.limits import Costs
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Objective, distance_of, key_of, sampling_of
from disa_framework.search.space import Space, Stages
from disa_framework.search.study import ranked
from disa_framework.solvers import DDIM, DDPM
from tests.models.tiny import tiny_mar
from tests.search.small import CPU, LABELS, STAGES, Faulty, mixture_meter, mixture_module, mixture_objective, per_stage


class Counted(Observer):
    """Samples that were begun by anyone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples, draw = 0, ARDiffusionModule.draw

        def watched(module: Any, condition: Any, indices: Any, observers: Sequence[Observer] = ()) -> torch.Tensor:
            return draw(module, condition, indices, [self, *observers])

        monkeypatch.setattr(ARDiffusionModule, "draw", watched)

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self.samples += batch_size


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def try_out(objective: Objective, *params: dict[str, Any], study: Study | None = None) -> Study:
    """A study of these parameters."""
    study = study or optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for values in params:
        study.enqueue_trial(values)
    study.optimize(objective, n_trials=len(params), catch=(Exception,))
    return study


def steps(*counts: int) -> dict[str, int]:
    return {f"steps_{i}": count for i, count in enumerate(counts)}


def test_configs_have_one_key_if_they_draw_the_same() -> None:
    base = mixture_module(Linear(4, 1)).sampling
    assert key_of(base) == key_of(per_stage(base, 4, 3, 2, 1))
    others = [replace(base, solver=DDIM()), replace(base, schedule=Constant(3)), per_stage(base, 4, 3, 1, 2)]
    others += [replace(base, schedule=Adaptive(threshold, low=1, high=4)) for threshold in (1.0, 2.0)]
    assert len({key_of(sampling) for sampling in (base, *others)}) == 6


def test_a_trial_over_the_limit_is_decided_without_drawing(drawn: Counted) -> None:
    objective, study = mixture_objective(limit=20), optuna.create_study()
    for start in (per_stage(objective.base, 8, 6, 4, 2), per_stage(objective.base, 8, 6, 4, 3)):
        study.enqueue_trial({}, {"sampling": start.dump()})
    study.optimize(objective, n_trials=2)
    within, over = study.trials
    assert drawn.samples == 96
    assert (within.state, over.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert within.constraints == {"cost": 0} and over.constraints["cost"] == pytest.approx(1 / 20)
    assert sampling_of(over).budget == (8, 6, 4, 3) and over.user_attrs["cost"] == 21
    assert over.intermediate_values == {}


def test_rungs_go_on_where_the_last_one_ended(drawn: Counted) -> None:
    trial = try_out(mixture_objective(rungs=(20, 50, 96)), steps(9, 5, 4, 2)).trials[0]  # only the last ends a batch
    assert list(trial.intermediate_values) == [20, 50, 96]
    assert drawn.samples == 20 + (50 - 16) + (96 - 48)
    whole = mixture_meter().measure(sampling_of(trial), 96)
    assert trial.value == trial.intermediate_values[96] == pytest.approx(whole, rel=1e-6)


def test_a_poor_trial_is_stopped_early(drawn: Counted) -> None:
    good, poor = try_out(mixture_objective(), steps(12, 6, 4, 2), steps(1, 1, 2, 20)).trials
    assert (good.state, poor.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert drawn.samples == 96 + 32 and poor.constraints["cost"] <= 0


def test_a_config_is_drawn_once(drawn: Counted) -> None:
    first, second = try_out(mixture_objective(), steps(12, 6, 4, 2), steps(12, 6, 4, 2)).trials
    assert drawn.samples == 96
    assert first.value == second.value and first.intermediate_values == second.intermediate_values


def test_a_trial_keeps_a_picture_of_what_it_has_drawn_anyway(drawn: Counted, tmp_path: Path) -> None:
    objective, same = mixture_objective(limit=None, folder=Folder(tmp_path)), steps(3, 2, 2, 1)
    first, again, other = try_out(objective, same, same, steps(5, 1, 1, 1)).trials
    assert drawn.samples == 2 * 96 and "picture" not in again.user_attrs
    for trial in (first, other):
        samples = objective.meter.module.drawing(sampling_of(trial)).draw(LABELS[:16], torch.arange(16))
        kept = tmp_path / trial.user_attrs["picture"]
        assert kept.name == f"{trial.number:03}.png" and kept.read_bytes() == png(pictured(samples))


def test_an_error_fails_its_trial_alone_and_is_recorded() -> None:
    objective = mixture_objective(limit=48, also={"solver": (DDPM(), Faulty())})
    faulty = {**steps(9, 9, 9, 9), "solver": repr(Faulty())}
    trials = try_out(objective, faulty, {**faulty, "solver": repr(DDPM())}).trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs["error"] == "ArithmeticError: the sampler broke down"
    assert trials[0].constraints["cost"] == 0  # before it failed


def test_caching_is_not_chosen_where_it_cannot_pay() -> None:
    with pytest.raises(ValueError, match="caches no features"):
        mixture_objective(also={"refresh": (1, 2)}).check()
    module = ARDiffusionModule(tiny_mar(), SamplingConfig(num_stages=2))
    costs = Costs(module, analytic_cost)
    for space in (Space(Stages(2), refresh=(1, 2)), Space(Stages(2), reuse=(1, 2))):
        with pytest.raises(ValueError, match="save time, not evaluations"):
            Objective(Meter(module, None, LABELS, 16, CPU), costs, space, 24, (96,)).check()


def test_an_impossible_limit_names_the_fastest_that_is_possible() -> None:
    with pytest.raises(ValueError, match="a limit of 7 evaluations per sample: the fastest takes 8"):
        mixture_objective(limit=7, space=Stages(2, low=2)).check()
    mixture_objective(limit=8, space=Stages(2, low=2)).check()


def test_with_two_objectives_cost_is_one_and_nothing_is_stopped() -> None:
    objective, study = mixture_objective(limit=None, pareto=True), optuna.create_study(directions=["minimize"] * 2)
    try_out(objective, steps(9, 5, 4, 2), steps(1, 1, 1, 1), study=study)
    assert [trial.values[1] for trial in study.trials] == [20, 4]
    assert len(study.best_trials) == 2 and not study.trials[0].constraints


def test_with_a_quality_the_cost_is_made_small_and_what_is_far_off_is_stopped(drawn: Counted) -> None:
    objective, study = mixture_objective(limit=48, worse=1.0), optuna.create_study()
    aims = [{"aim": aim, **steps(5, 5, 5, 5)} for aim in (44, 4)]
    near, far = try_out(objective, *aims, study=study).trials
    assert (near.state, near.value) == (TrialState.COMPLETE, near.user_attrs["cost"])
    assert sampling_of(near).budget == (11,) * STAGES and near.user_attrs["cost"] == 44
    assert far.state == TrialState.PRUNED and list(far.intermediate_values) == [32]
    baseline = {rung: objective.meter.measure(objective.base, rung) for rung in objective.rungs}
    assert near.constraints["distance"] == pytest.approx(near.intermediate_values[96] - 2 * baseline[96])
    assert far.constraints["distance"] == pytest.approx(far.intermediate_values[32] - 2 * baseline[32])
    assert ranked(study) == [near] and distance_of(far) == far.intermediate_values[32]
    before = drawn.samples
    try_out(objective, {"aim": 24, **steps(9, 3, 3, 3)}, study=study)
    assert drawn.samples - before <= 96  # the baseline is not drawn again


def test_what_is_encoded_for_a_quality_is_decoded_to_a_like_budget() -> None:
    objective = mixture_objective(limit=48, worse=0.1)
    start = per_stage(objective.base, 8, 4, 2, 2)
    (trial,) = try_out(objective, objective.encode(start)).trials
    assert sampling_of(trial).budget == start.budget
    assert objective.encode(per_stage(objective.base, 50, 50, 50, 50))["aim"] == 48


@pytest.mark.parametrize("rungs", [(50, 50), (), (50, 200)])
def test_rungs_rise_and_have_a_condition(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be above 0 and rise|a condition of as many, got one of 96"):
        mixture_objective(rungs=rungs)


def test_a_distance_that_is_not_a_number_is_an_error() -> None:
    module = mixture_module()
    for buffer in module.model.buffers():
        buffer.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        mixture_meter(module).measure(module.sampling, 32)


def test_a_meter_draws_what_generate_draws_whatever_it_drew_before() -> None:
    meter = mixture_meter()
    quality, base = meter.quality, meter.module.sampling
    assert quality is not None
    for sampling, seed in ((base, 0), (per_stage(base, 9, 2, 1), 5), (base, 5)):
        metric = quality.metric(meter.module, LABELS)
        latents = generate(meter.module.model, LABELS[:60], sampling, seed=seed)
        quality.update(metric, meter.module.tokenizer.decode(latents))
        assert meter.measure(sampling, 60, seed) == pytest.approx(metric.compute().item(), rel=1e-5)
    assert (meter.module.sampling, meter.module.seed, base.stages) == (base, 0, STAGES)
