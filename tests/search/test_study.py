from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from disa_framework.schedules import Constant, Cosine, Linear, PerStage, TwoStage
from disa_framework.search.cost import analytic_cost
from disa_framework.search.objective import Costs
from disa_framework.search.space import Setting, Stages
from disa_framework.search.study import (
    busy,
    choose,
    counted,
    fitted_constants,
    fitted_ramps,
    open_storage,
    over_limit,
    ranked,
    search,
)
from disa_framework.solvers import DDPM
from tests.search.small import STAGES, Faulty, mixture_module, mixture_objective

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec.*is deprecated")

ROOT = Path(__file__).parents[2]
STARTS = {"Constant": Constant(6), "ours": PerStage([12, 6, 4, 2])}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def facts(study: Study) -> list[tuple[Any, ...]]:
    return [(t.state, t.values, t.params, t.user_attrs.get("budget")) for t in study.trials]


def file(path: Path) -> str:
    return str(path / "deep" / "study.log")


def url(path: Path) -> str:
    return f"sqlite:///{path}/study.db"


@pytest.mark.parametrize("storage", [file, url])
def test_a_study_goes_on_as_if_it_had_never_stopped(storage: Callable[[Path], str], tmp_path: Path) -> None:
    at_once = search(mixture_objective(), 12, starts=STARTS, seed=3)
    for trials in (3, 3, 12):
        parts = search(mixture_objective(), trials, starts=STARTS, seed=3, storage=storage(tmp_path))
        assert len(parts.trials) == trials
    assert facts(parts) == [(s, v, p, list(b)) for s, v, p, b in facts(at_once)]
    assert [t.user_attrs.get("start") for t in parts.trials[:3]] == ["Constant", "ours", None]
    assert len({str(t.params) for t in parts.trials}) == 12


def test_starts_are_drawn_as_they_are_also_if_the_space_lacks_them() -> None:
    objective = mixture_objective(space=Stages(2))
    study = search(objective, 2, starts=STARTS)
    assert [t.user_attrs["budget"] for t in study.trials] == [(6, 6, 6, 6), (12, 6, 4, 2)]
    assert study.trials[1].params == {"steps_0": 9, "steps_1": 3}
    assert objective.setting(study.trials[1]).budget == (12, 6, 4, 2)
    assert len(search(objective, 3, starts=STARTS).trials[2].params) == 2


def test_starts_may_have_other_numbers_of_stages() -> None:
    objective = mixture_objective(limit=24, also={"num_stages": [2, 3, 4]})
    constants = fitted_constants(objective.costs, objective.base, 24, [2, 3, 4])
    assert {name: start.budget for name, start in constants.items()} == {
        "Constant (2 stages)": (12, 12), "Constant (3 stages)": (8, 8, 8),
    }  # fmt: skip
    assert fitted_constants(objective.costs, objective.base, 1, [2]) == {}
    study = search(objective, 2, starts=constants)
    assert [objective.setting(trial).key for trial in study.trials] == [start.key for start in constants.values()]
    assert [trial.params["num_stages"] for trial in study.trials] == [2, 3]


@pytest.mark.parametrize("options", [{"limit": 24}, {"limit": None, "pareto": True}], ids=["one", "two objectives"])
def test_the_best_steps_are_drawn_again_with_the_rest_chosen_anew(options: dict[str, Any], tmp_path: Path) -> None:
    objective = mixture_objective(space=Stages(2), also={"temperature": (1.05, 1.3)}, **options)
    at_once = search(objective, 12, starts=STARTS, seed=1)
    reused = [t for t in at_once.trials if "steps_of" in t.user_attrs]
    assert [t.number for t in reused] == [3, 6, 9]
    for trial in reused:
        before = [t for t in at_once.trials[: trial.number] if t.state == TrialState.COMPLETE]
        origin, setting = trial.user_attrs["steps_of"], objective.setting(trial)
        first = next(t for t in before if origin in (t.user_attrs.get("start"), str(t.number)))
        assert first.user_attrs["budget"] == setting.budget == trial.user_attrs["budget"]
        assert setting.solver == DDPM(temperature=trial.params["temperature"]) != objective.base.solver
        assert objective.pareto or setting.budget == min(before, key=lambda t: t.values).user_attrs["budget"]
    assert len({t.params["temperature"] for t in reused}) == 3
    for trials in (4, 12):
        parts = search(objective, trials, starts=STARTS, seed=1, storage=file(tmp_path))
    assert facts(parts) == [(s, v, p, list(b)) for s, v, p, b in facts(at_once)]


def test_steps_that_are_over_the_limit_with_the_rest_do_not_use_the_study_up(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = mixture_objective(fill=False, also={"temperature": (1.05, 1.3)})
    base = objective.base.solver  # with any other solver, each step costs twice as much
    monkeypatch.setattr(objective, "costs", lambda setting: sum(setting.budget) * (1 if setting.solver == base else 2))
    study = search(objective, 8, starts=STARTS)
    assert len(counted(study)) == 8 and any(over_limit(t) for t in study.trials if "steps_of" in t.user_attrs)


def test_where_a_schedule_is_all_that_is_chosen_steps_are_not_drawn_again() -> None:
    study = search(mixture_objective(also={"num_stages": [3, 4]}), 8, starts=STARTS)
    assert not any("steps_of" in t.user_attrs for t in study.trials)


def test_new_starts_are_tried_when_a_study_goes_on(tmp_path: Path) -> None:
    search(mixture_objective(), 3, starts=STARTS, storage=file(tmp_path))
    study = search(mixture_objective(), 4, starts={**STARTS, "late": Linear(9, 1)}, storage=file(tmp_path))
    assert [t.user_attrs.get("start") for t in study.trials] == ["Constant", "ours", None, "late"]


def test_what_is_over_the_limit_does_not_count_but_ends_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    study = search(mixture_objective(limit=14, fill=False), 4)
    assert len(counted(study)) == 4 == sum(not over_limit(t) for t in study.trials) < len(study.trials)
    assert all(t.user_attrs["cost"] <= 14 for t in ranked(study))
    hopeless = mixture_objective(limit=3)
    monkeypatch.setattr(hopeless, "check", lambda: None)
    assert len(search(hopeless, 2).trials) == 40


def test_a_failing_sampler_does_not_end_the_study() -> None:
    objective = mixture_objective(limit=48, also={"solvers": [DDPM(), Faulty(most=9)]})
    study = search(objective, 12, starts=STARTS)
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert len(counted(study)) == len(study.trials) == 12
    assert failed and {t.user_attrs["error"] for t in failed} == {"ArithmeticError: the sampler broke down"}
    assert all(repr(Faulty(most=9)) == t.params["solver"] for t in failed) and ranked(study)


def test_the_best_come_first_and_each_once() -> None:
    study = search(mixture_objective(), 8, starts={**STARTS, "again": PerStage([12, 6, 4, 2])})
    best = ranked(study)
    assert [t.values for t in best] == sorted(t.values for t in best) and best[0].value == study.best_value
    assert len({t.user_attrs["setting"] for t in best}) == len(best)


def test_the_winner_is_the_best_on_average_when_the_best_few_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = mixture_objective()
    study = search(objective, 10, starts=STARTS)
    finalists, done = ranked(study)[:4], list[int]()
    winner = choose(study, objective, 4, lambda: done.append(1))
    again = [[objective.meter.measure(objective.setting(t), 96, seed) for seed in (-1, -2)] for t in finalists]
    means = {t.number: t.values[0] + sum(others) for t, others in zip(finalists, again, strict=True)}
    assert winner.number == min(means, key=means.__getitem__) and len(done) == 8
    assert winner.number != finalists[0].number  # which was lucky
    monkeypatch.setattr(objective.meter, "measure", None)
    assert choose(study, objective, 4).number == winner.number  # the study remembers
    assert choose(study, objective, 1).number == finalists[0].number


def test_a_study_with_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    settings = {"limit": 24, "rungs": (32, 96), "model": "a"}
    search(mixture_objective(), 1, storage=file(tmp_path), settings=settings)
    search(mixture_objective(), 2, storage=file(tmp_path), settings=settings)
    with pytest.raises(ValueError, match=r"other settings \(model, rungs differ\): choose another storage or study na"):
        search(mixture_objective(), 2, storage=file(tmp_path), settings={**settings, "rungs": (32,), "model": "b"})
    search(mixture_objective(), 2, storage=file(tmp_path), settings={"limit": 12}, name="another")


@pytest.mark.parametrize("storage", ["nosuch://host/db", "sqlite:////no/such/folder/study.db"])
def test_a_storage_that_cannot_be_opened_is_named(storage: str) -> None:
    with pytest.raises(ValueError, match=f"cannot open the storage {storage}: .*; give a file"):
        open_storage(storage)


def test_ramps_are_fitted_to_the_limit() -> None:
    module = mixture_module()
    base, costs = Setting.of(module), Costs(module, analytic_cost)
    ramps = fitted_ramps(costs, base, 30, falls=(5.0,))
    assert {name: str(ramp) for name, ramp in ramps.items()} == {
        "Constant": str(Constant(7)), "Linear 5:1": str(Linear(12, 2)), "Cosine 5:1": str(Cosine(12, 2)),
        "TwoStage 5:1": str(TwoStage(12, 2)),
    }  # fmt: skip
    larger = (Constant(8), Linear(13, 3), Cosine(13, 3), TwoStage(13, 3))
    for ramp, next_one in zip(ramps.values(), larger, strict=True):
        assert costs(replace(base, schedule=ramp)) <= 30 < costs(replace(base, schedule=next_one))
    assert fitted_ramps(costs, base, 3) == {}


WORKER = """
import sys, time
from disa_framework.search.meter import Meter
from disa_framework.search.study import search
from tests.search.small import mixture_objective
from tests.search.test_study import STARTS

class Slow(Meter):
    def measure(self, *args):
        time.sleep(float(sys.argv[3]))
        return super().measure(*args)

objective = mixture_objective()
objective.meter.__class__ = Slow
search(objective, int(sys.argv[2]), starts=STARTS, storage=sys.argv[1])
"""


def worker(storage: str, trials: int, pause: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", WORKER, storage, str(trials), str(pause)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(storage: str, ready: Callable[[list[FrozenTrial]], bool]) -> list[FrozenTrial]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if Path(storage).exists() and (studies := optuna.get_all_study_summaries(open_storage(storage))):
            trials = optuna.load_study(study_name=studies[0].study_name, storage=open_storage(storage)).trials
            if ready(trials):
                return trials
        time.sleep(0.05)
    raise TimeoutError


def test_a_killed_worker_loses_nothing_and_two_share_the_rest(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.log")
    killed = worker(storage, 20, 0.5)
    before = wait_for(storage, lambda trials: len(trials) == 4 and "cost" in trials[3].user_attrs)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert before[3].state == TrialState.RUNNING
    other = worker(storage, 20, 0.0)
    wait_for(storage, lambda trials: len(trials) > 4)
    study = search(mixture_objective(), 20, starts=STARTS, storage=storage)
    assert other.wait(timeout=300) == 0

    trials = study.get_trials()
    assert trials[:3] == before[:3]
    assert trials[3].state == TrialState.FAIL and "error" not in trials[3].user_attrs
    assert trials[4].params == before[3].params and trials[4] in counted(study)
    assert len(counted(study)) == 20 and busy(study) == 0
    assert [t.user_attrs.get("start") for t in trials][:5] == ["Constant", "ours", None, None, None]
    assert {t.user_attrs["worker"]["pid"] for t in trials[4:]} == {other.pid, os.getpid()}


def test_a_trial_whose_worker_lives_is_left_alone(tmp_path: Path) -> None:
    study = search(mixture_objective(), 2, storage=file(tmp_path))
    running = study.ask()
    running.set_user_attr("worker", {"host": os.uname().nodename, "pid": os.getppid(), "token": "other"})
    again = search(mixture_objective(), 4, storage=file(tmp_path))
    assert [t.state for t in again.trials][2] == TrialState.RUNNING and len(again.trials) == 4
    assert busy(again) == 1
    running.set_user_attr("worker", {"host": os.uname().nodename, "pid": os.getpid(), "token": "before a restart"})
    last = search(mixture_objective(), 4, storage=file(tmp_path))
    assert [t.state for t in last.trials][2] == TrialState.FAIL and len(counted(last)) == 4 == STAGES


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nothing tells when a process began")
def test_a_worker_whose_number_another_process_has_by_now_is_gone(tmp_path: Path) -> None:
    study = search(mixture_objective(), 2, storage=file(tmp_path))
    me = study.trials[0].user_attrs["worker"]
    running, other = study.ask(), {**me, "pid": os.getppid(), "token": "other"}
    running.set_user_attr("worker", other)  # which began when this process did
    assert busy(study) == 0
    running.set_user_attr("worker", {**other, "begun": None})
    assert busy(study) == 1
    again = search(mixture_objective(), 4, storage=file(tmp_path))
    assert [t.state for t in again.trials][2] == TrialState.RUNNING
