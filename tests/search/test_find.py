"""The whole pipeline, called from Python."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from disa_framework import Lazy, SamplingConfig
from disa_framework.measure.cost import CostModel
from disa_framework.metrics.quality import Quality
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant
from disa_framework.search import Calibration, Found, Limit, Meter, Plan, Profile, Space, Stages, find, open_storage
from disa_framework.solvers import DDIM, Euler
from disa_framework.toy.exact import SlicedWasserstein
from disa_framework.toy.mixture import MixtureAR
from examples.sequence import SequenceAR
from tests.models.tiny import filled, tiny_mar
from tests.search.small import CPU, LABELS, STAGES, mixture_module, per_stage

CALIBRATION = Calibration((1, 2, 4, 8, 16), other_steps=4)
PLAN = Plan(
    trials=6, rungs=(32, 96), seeds=2, finalists=2, batch_size=16, space=Space(Stages(STAGES, 1, 20)),
    calibration=CALIBRATION, profile_samples=100, trainer=CPU,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def searched(limit: Limit, folder: Path | None = None, steps: int = 12, **options: Any) -> Found:
    """By the plan with other options, over so many steps at each stage."""
    module, plan = mixture_module(Constant(steps)), replace(PLAN, **options)
    return find(module, limit, LABELS[:3], SlicedWasserstein(16), plan, folder)


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_a_study_finds_what_to_draw_with_and_leaves_nothing_where_there_is_no_folder(tmp_path: Path) -> None:
    found, kept = searched(Limit.evaluations(24)), searched(Limit.speedup(2.0, "evaluations"), tmp_path)
    assert (found.sampling, found.rows, found.folder) == (kept.sampling, kept.rows, None)
    assert kept.cost <= 24 and kept.unit == "evaluations" and kept.folder == tmp_path
    assert kept.rows[0].sampling == kept.sampling and kept.rows[-1].name == "baseline"
    assert all(len(row.distances) == 2 for row in kept.rows) and kept.notes == ("6 trials: 6 whole",)
    assert SamplingConfig.load(tmp_path / "best.yaml") == kept.sampling
    assert [row["start"] for row in trials(tmp_path)[:3]] == ["Calibrated", "Learned", "Constant"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".yaml", ".html", ".csv", ".db", ".safetensors", ""}
    assert all((tmp_path / row["picture"]).is_file() for row in trials(tmp_path))


def test_a_search_goes_on_and_measures_no_cost_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "disa_framework")
    first = searched(Limit.speedup(2), tmp_path, 50, trials=3)
    cost, said = next(tmp_path.glob("cost-*.json")).read_bytes(), caplog.text
    assert "% off, in the median over budgets not fitted to" in said
    assert first.timed is not None and first.timed.within
    assert first.timed.latencies[-1] / first.timed.latencies[0] >= 2
    assert [row.latency for row in first.rows] == [*first.timed.latencies]  # timed once
    before = trials(tmp_path)
    caplog.clear()
    searched(Limit.speedup(2), tmp_path, 50, trials=5)
    after = trials(tmp_path)  # those over the limit are listed too, and timing decides how many there are
    assert after[: len(before)] == before and len(after) >= len(before) + 2
    assert next(tmp_path.glob("cost-*.json")).read_bytes() == cost and "not fitted to" not in caplog.text


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"plan": replace(PLAN, rungs=(16, 96))}, "rungs"),
        ({"plan": replace(PLAN, space=Space(Stages(2, 1, 20)))}, "space"),
        ({"module": mixture_module(Constant(11))}, "sampling.schedule.init_args.steps"),
        ({"condition": LABELS[:2]}, ""),  # in turn it is the same
        ({"metric": SlicedWasserstein(17)}, "metric.projections"),
        ({"limit": Limit.evaluations(25)}, "limit.most"),
    ],
)
def test_a_study_is_gone_on_with_by_the_same_search_alone(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    plan = replace(PLAN, trials=1, seeds=1, calibration=None)
    asked: dict[str, Any] = {
        "module": mixture_module(), "limit": Limit.evaluations(24), "condition": LABELS[:3],
        "metric": SlicedWasserstein(16), "plan": plan, "folder": tmp_path,
    }  # fmt: skip
    find(**asked)
    if "plan" in changed:
        changed = {"plan": replace(changed["plan"], trials=1, seeds=1, calibration=None)}
    if not named:
        find(**{**asked, **changed})
        return
    with pytest.raises(ValueError, match=rf"other settings \({named} differ\)"):
        find(**{**asked, **changed})


def test_a_winner_that_takes_too_long_is_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_cost(module: ARDiffusionModule, condition: object, batch_size: int) -> CostModel:
        zeros, head = (0.0,) * STAGES, (1e-5,) * STAGES
        return CostModel(0.0, zeros, head, module.model.process, module.sampling.solver, batch_size=batch_size)

    shares = iter([1.2, 0.9])  # of the limit: what the winner takes, when it is timed first and when it is shorter

    def latencies(meter: Meter, samplings: Sequence[SamplingConfig]) -> list[float]:
        return [4e-4 * next(shares), *[2e-3] * (len(samplings) - 1)]

    monkeypatch.setattr("disa_framework.search.direct.measure_cost", measure_cost)
    monkeypatch.setattr(Meter, "latencies", latencies)
    found = searched(Limit.seconds(4e-4), tmp_path, calibration=None)
    # Forty steps were to fit. A fifth and a little more had to go.
    assert 28 <= sum(found.sampling.budget) <= 40 / 1.2 and found.rows[0].name.endswith("shortened")
    assert "takes 0.36 ms a sample, within the limit of 0.4" in str(found.timed)
    assert str(found.timed) in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("method", ["calibrate", "learn", "adapt"])
def test_a_schedule_is_found_without_trials(method: Any, tmp_path: Path) -> None:
    found = searched(Limit.evaluations(40), tmp_path, method=method, batch_size=96)
    assert found.sampling.schedule.adapts == (method == "adapt") and not found.rows
    assert SamplingConfig.load(tmp_path / "best.yaml") == found.sampling
    assert not (tmp_path / "study.db").exists()
    if method != "adapt":
        assert 37 < found.cost <= 40 and found.sampling.budget[0] > found.sampling.budget[3]


@pytest.mark.parametrize("method", ["calibrate", "adapt"])
def test_what_is_found_without_trials_is_as_fast_as_asked(method: Any) -> None:
    timed = searched(Limit.speedup(1.5), None, 50, method=method, batch_size=96).timed
    assert timed is not None and timed.latencies[1] / timed.latencies[0] >= 1.5


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_calibration_is_as_precise_where_drawing_is_not(precision: str, tmp_path: Path) -> None:
    module = ARDiffusionModule(tiny_mar(), SamplingConfig(Constant(8), num_stages=4))
    plan = replace(PLAN, method="calibrate", profile_samples=6, trainer={**CPU, "precision": precision})
    found = find(module, Limit.speedup(1.2), LABELS[:3], None, plan, tmp_path)
    profile = Profile.load(next(tmp_path.glob("profile-*")))
    assert profile.shifts.dtype == torch.float32 and found.timed is not None
    assert not torch.equal(profile.shifts, profile.shifts.bfloat16().float())


def test_a_study_begins_without_what_cannot_be_calibrated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "disa_framework")
    searched(Limit.evaluations(6), calibration=Calibration((2, 4)), trials=1)
    for name in ("calibrated", "learned"):
        assert f"beginning without a {name} schedule: no budget costs at most 6" in caplog.text


def test_starts_are_given_by_name(tmp_path: Path) -> None:
    base = mixture_module().sampling
    mine = per_stage(base, 9, 7, 4)
    searched(Limit.evaluations(24), tmp_path, starts={"mine": mine}, calibration=None, trials=1)
    assert [(row["start"], row["budget"]) for row in trials(tmp_path)] == [("mine (given)", "9 7 4")]


def test_a_front_has_the_best_for_every_cost(tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front/99.yaml").touch()  # of a front that was longer
    found = searched(Limit("evaluations"), tmp_path, method="pareto", trials=20)
    costs = [point.cost for point in found.front]
    distances = [point.distance for point in found.front if point.distance is not None]
    assert costs == sorted(set(costs)) and distances == sorted(set(distances), reverse=True) and len(costs) > 2
    written = sorted((tmp_path / "front").iterdir())
    assert [SamplingConfig.load(path) for path in written] == [point.sampling for point in found.front]
    assert found.sampling == found.front[-1].sampling
    assert (tmp_path / "report.html").exists() and not (tmp_path / "best.yaml").exists()


def test_the_cheapest_of_a_quality_is_found(tmp_path: Path) -> None:
    near, far = (
        searched(Limit.quality(worse, "evaluations"), folder, 20, trials=24, rungs=(400,))
        for worse, folder in ((0.6, tmp_path), (3.0, None))
    )
    winner, baseline = near.rows
    assert near.cost < baseline.cost == 80 and winner.mean < 2 * baseline.mean  # so few samples leave some to chance
    assert far.cost < near.cost and far.rows[0].sampling == far.sampling
    assert SamplingConfig.load(tmp_path / "best.yaml") == near.sampling and (tmp_path / "report.html").exists()
    assert "the baseline's" in near.notes[-1]


def test_a_quality_begins_with_each_solver_and_number_of_stages_at_less_than_the_baselines_cost(tmp_path: Path) -> None:
    space = Space(Stages(STAGES, 1, 20), num_stages=(2, STAGES), solver=(DDIM(),))
    searched(Limit.quality(9.0, "evaluations"), tmp_path, trials=12, rungs=(32,), space=space)
    begun = trials(tmp_path)
    assert [row["budget"] for row in begun if row["start"].startswith("Constant")] == [
        "4 4 4 4", "8 8", "4 4 4 4", "8 8", "1 1 1 1", "2 2", "1 1 1 1", "2 2"
    ]  # fmt: skip
    assert any(row["start"].startswith("Learned") for row in begun)


def test_a_quality_that_nothing_cheaper_has_leaves_the_baseline() -> None:
    found = searched(Limit.quality(-0.9, "evaluations"), trials=3, rungs=(100,))
    assert found.sampling == found.rows[-1].sampling and found.cost == 48


@pytest.mark.parametrize("method", ["study", "calibrate", "learn"])
def test_without_a_limit_nothing_is_drawn_and_the_front_is_predicted(method: str, tmp_path: Path) -> None:
    found = searched(Limit("evaluations"), tmp_path, 12, method=method)
    costs = [point.cost for point in found.front]
    assert costs == sorted(set(costs)) and costs[-1] <= 48 and len(costs) > 3
    assert all(point.distance is None for point in found.front) and "study" in found.notes[0]
    written = sorted((tmp_path / "front").iterdir())
    assert [SamplingConfig.load(path) for path in written] == [point.sampling for point in found.front]
    assert not (tmp_path / "study.db").exists()


def test_a_kept_profile_answers_another_limit_without_drawing_more_than_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, propose = list[int](), MixtureAR.propose

    def counted(model: MixtureAR, state: Any, stage: int) -> Any:
        stages.append(stage)
        return propose(model, state, stage)

    monkeypatch.setattr(MixtureAR, "propose", counted)
    first = searched(Limit.evaluations(30), tmp_path, method="calibrate")
    drawn = len(stages)
    second = searched(Limit.evaluations(18), tmp_path, method="calibrate")
    assert second.cost <= 18 < first.cost <= 30
    assert drawn > 2 * STAGES and len(stages) == drawn + STAGES  # which sees that the module can be drawn with


def test_another_worker_that_ends_later_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("disa_framework.search.find"), "another_reports", lambda *_: True)
    found = searched(Limit.evaluations(24), tmp_path, calibration=None, trials=3)
    assert found.sampling.budget == (6,) * STAGES or found.cost <= 24
    assert "last one" in found.notes[-1] and not (tmp_path / "best.yaml").exists() and found.folder is None


def test_profiles_and_costs_are_those_of_the_cache_and_the_batch(tmp_path: Path) -> None:
    plan = replace(PLAN, method="calibrate", calibration=Calibration((1, 4), other_steps=2), profile_samples=6)

    def search(cache: Lazy | None, batch_size: int = 3) -> None:
        sampling = SamplingConfig(Constant(8), num_stages=4, cache=cache)
        module = ARDiffusionModule(tiny_mar(), sampling)
        find(module, Limit.speedup(1.2), LABELS[:3], None, replace(plan, batch_size=batch_size), tmp_path)

    for cache in (None, Lazy(refresh=4, start=1, share=0.0)):
        search(cache)
        search(cache)
    profiles = [Profile.load(path) for path in tmp_path.glob("profile-*.safetensors")]
    assert len(profiles) == len([*tmp_path.glob("cost-*.json")]) == 2
    assert not profiles[0].shifts.equal(profiles[1].shifts)
    search(None, batch_size=4)
    assert (len([*tmp_path.glob("profile-*")]), len([*tmp_path.glob("cost-*")])) == (2, 3)


@pytest.mark.parametrize(
    ("limit", "options", "message"),
    [
        (Limit.quality(0.1), {"method": "calibrate"}, "not the method calibrate"),
        (Limit.evaluations(3), {}, "a limit of 3 evaluations per sample: the fastest takes 4"),
        (Limit.seconds(1e-9), {}, "a limit of 1e-09 seconds per sample: the fastest takes (0.0|[1-9][.0-9]*e-0)"),
        (Limit.evaluations(9), {"rungs": (5, 5)}, r"from 1 on that rise, got \[5, 5\]"),
        (Limit.evaluations(9), {"storage": "nosuch://x"}, "the storage nosuch://x"),
        (Limit.evaluations(9), {"space": Space(num_stages=(4, 40))}, "must lie in 1 … 4 for this model, got 40"),
        (Limit("evaluations"), {"method": "pareto", "space": Space(num_stages=(0,))}, "num_stages must .* got 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(limit: Limit, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        searched(limit, **options)


def test_plans_and_requests_are_checked() -> None:
    with pytest.raises(ValueError, match=r"method must be one of study, .*, got 'guess'"):
        Plan(method="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trials must be a whole number from 1 .* got 0"):
        Plan(trials=0)
    with pytest.raises(ValueError, match="measures samples: give a metric"):
        find(mixture_module(), Limit.evaluations(24), LABELS)
    with pytest.raises(ValueError, match="labels must lie in"):
        find(mixture_module(), Limit.evaluations(24), LABELS + 9, SlicedWasserstein(16), PLAN)


class Size(Quality):
    """How far values are from 1 in the mean square."""

    def metric(self, module: ARDiffusionModule, condition: Any) -> Metric:
        return MeanMetric()

    def update(self, metric: Metric, images: Tensor) -> None:
        metric.update((images.square() - 1).abs().flatten(1).mean(dim=1))


@pytest.mark.parametrize(
    ("method", "unit"), [("study", "evaluations"), ("calibrate", "seconds"), ("adapt", "evaluations")]
)
def test_sequences_of_any_length_with_a_condition_per_token_are_searched(method: Any, unit: Any) -> None:
    model = filled(SequenceAR(length=6, channels=2, num_phones=5), 0.2, torch.Generator().manual_seed(0))
    asked = {"phones": torch.arange(18).view(3, 6) % 5, "length": torch.tensor([2, 4, 3])}  # none is as long as may be
    module = ARDiffusionModule(model, SamplingConfig(Constant(30), Euler()))
    found = find(module, Limit.speedup(1.5, unit), asked, Size(), replace(PLAN, method=method, trials=4))
    assert len(found.sampling.budget) == 6 and (found.timed is not None) == (unit == "seconds")
    assert module.drawing(found.sampling).draw(asked, torch.arange(3)).shape == (3, 6, 2)


def test_a_storage_of_ones_own_is_taken(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/mine.db", (30, 90))
    searched(Limit.evaluations(24), tmp_path / "a", storage=storage, study_name="mine", trials=2, calibration=None)
    assert len(optuna.load_study(study_name="mine", storage=storage).trials) >= 2
    assert not (tmp_path / "a/study.db").exists()
