"""Studies that go on, are shared, and survive that their workers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from disa_framework.schedules import Constant, Linear
from disa_framework.search import study as studies
from disa_framework.search.finalists import choose
from disa_framework.search.objective import WORKER, Objective, key_of, over_limit, sampling_of
from disa_framework.search.space import Stages
from disa_framework.search.storage import StorageError, open_storage
from disa_framework.search.study import another_reports, counted, ranked, search
from disa_framework.solvers import DDPM
from tests.search.small import STAGES, Faulty, mixture_module, mixture_objective, per_stage

ROOT = Path(__file__).parents[2]
BASE = mixture_module().sampling
STARTS = {"Constant": replace(BASE, schedule=Constant(6)), "ours": per_stage(BASE, 12, 6, 4, 2)}
HEARTBEAT = (1, 2)


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def facts(study: Study) -> list[tuple[Any, ...]]:
    return [(t.state, t.values, t.params, sampling_of(t)) for t in study.trials]


def database(path: Path) -> str:
    return str(path / "study.db")


def test_a_study_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    at_once = search(mixture_objective(), 12, starts=STARTS, seed=3)
    for trials in (3, 3, 12):
        opened = open_storage(database(tmp_path))
        parts = search(mixture_objective(), trials, starts=STARTS, seed=3, storage=opened)
        assert len(parts.trials) == trials
    assert facts(parts) == facts(at_once)
    assert [t.user_attrs.get("start") for t in parts.trials[:3]] == ["Constant", "ours", None]
    assert len({str(t.params) for t in parts.trials}) == 12


def test_a_trial_that_is_interrupted_is_drawn_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(BaseException):
        """As a signal raises it in a command."""

    def interrupt(*args: object) -> None:
        raise Interrupted

    search(mixture_objective(), 3, starts=STARTS, storage=open_storage(database(tmp_path)))
    objective = mixture_objective()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(objective.meter, "measure", interrupt)
        search(objective, 8, starts=STARTS, storage=open_storage(database(tmp_path)))
    began = time.monotonic()
    study = search(mixture_objective(), 4, starts=STARTS, storage=open_storage(database(tmp_path)))
    assert time.monotonic() - began < 5  # without waiting for heartbeats
    lost, again = study.trials[3:]
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE) and again.params == lost.params


def test_starts_are_drawn_as_they_are_also_if_the_space_lacks_them() -> None:
    others = {f"{count} stages": per_stage(BASE, *[24 // count] * count) for count in (2, 3)}
    starts = {**STARTS, **others, "warm": replace(STARTS["ours"], solver=DDPM(temperature=1.2))}
    objective = mixture_objective(space=Stages(2), also={"num_stages": (2, 3, 4)})
    study = search(objective, 5, starts=starts)
    assert [sampling_of(trial) for trial in study.trials] == [*starts.values()]
    assert study.trials[1].params == {"steps_0": 9, "steps_1": 3, "num_stages": 4}
    assert [trial.params["num_stages"] for trial in study.trials[2:4]] == [2, 3]
    assert len(search(objective, 6, starts=starts).trials[5].params) == 3


@pytest.mark.parametrize("options", [{"limit": 24}, {"limit": None, "pareto": True}], ids=["one", "two objectives"])
def test_the_best_steps_are_drawn_again_with_the_rest_chosen_anew(options: dict[str, Any], tmp_path: Path) -> None:
    objective = mixture_objective(space=Stages(2), also={"temperature": (1.05, 1.3)}, **options)
    at_once = search(objective, 12, starts=STARTS, seed=1)
    reused = [t for t in at_once.trials if "steps_of" in t.user_attrs]
    assert [t.number for t in reused] == [2, 4, 6, 8, 10]
    for trial in reused:
        before = [t for t in at_once.trials[: trial.number] if t.state == TrialState.COMPLETE]
        origin, sampling = trial.user_attrs["steps_of"], sampling_of(trial)
        first = next(t for t in before if origin in (t.user_attrs.get("start"), str(t.number)))
        assert sampling_of(first).budget == sampling.budget
        assert sampling.solver == DDPM(temperature=trial.params["temperature"]) != objective.base.solver
        assert objective.pareto or sampling.budget == sampling_of(min(before, key=lambda t: t.values)).budget
    assert len({t.params["temperature"] for t in reused}) == 5
    for trials in (4, 12):
        parts = search(objective, trials, starts=STARTS, seed=1, storage=open_storage(database(tmp_path)))
    assert facts(parts) == facts(at_once)


def test_for_a_quality_the_steps_of_the_cheapest_are_drawn_again_with_another_cost() -> None:
    also = {"temperature": (1.05, 1.3)}
    study = search(mixture_objective(limit=48, worse=2.0, also=also), 13, starts=STARTS, seed=1)
    reused = [t for t in study.trials if "steps_of" in t.user_attrs]
    assert reused and len({t.user_attrs["cost"] for t in reused}) > 1
    assert all(t.user_attrs["cost"] <= t.params["aim"] for t in study.trials if "start" not in t.user_attrs)


def test_steps_that_are_over_the_limit_with_the_rest_do_not_use_the_study_up(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = mixture_objective(also={"temperature": (1.05, 1.3)})

    def cost(_: Any, sampling: Any) -> int:
        return sum(sampling.budget) * (7 if sampling.solver.temperature > 1.15 else 1)  # even one step a stage is dear

    monkeypatch.setattr(type(objective.costs), "__call__", cost)
    study = search(objective, 8, starts=STARTS)
    assert len(counted(study)) == 8 and any(over_limit(t) for t in study.trials if "steps_of" in t.user_attrs)


def test_where_a_schedule_is_all_that_is_chosen_steps_are_not_drawn_again() -> None:
    study = search(mixture_objective(also={"num_stages": (3, 4)}), 8, starts=STARTS)
    assert not any("steps_of" in t.user_attrs for t in study.trials)


def test_new_starts_are_tried_when_a_study_goes_on(tmp_path: Path) -> None:
    storage, late = open_storage(database(tmp_path)), replace(BASE, schedule=Linear(9, 1))
    search(mixture_objective(), 3, starts=STARTS, storage=storage)
    study = search(mixture_objective(), 4, starts={**STARTS, "late": late}, storage=storage)
    assert [t.user_attrs.get("start") for t in study.trials] == ["Constant", "ours", None, "late"]


def test_what_is_over_the_limit_does_not_count_but_ends_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    study = search(mixture_objective(14, Stages(STAGES, 4, 20), also={"num_stages": (3, 4)}), 4)
    assert len(counted(study)) == 4 == sum(not over_limit(t) for t in study.trials) < len(study.trials)
    assert all(t.user_attrs["cost"] <= 14 for t in ranked(study))
    hopeless = mixture_objective(limit=3)
    monkeypatch.setattr(hopeless, "check", lambda: None)
    assert len(search(hopeless, 2).trials) == 40


def test_a_failing_sampler_does_not_end_the_study() -> None:
    objective = mixture_objective(limit=48, also={"solver": (DDPM(), Faulty(most=9))})
    study = search(objective, 12, starts=STARTS)
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert len(counted(study)) == len(study.trials) == 12
    assert failed and {t.user_attrs["error"] for t in failed} == {"ArithmeticError: the sampler broke down"}
    assert all(repr(Faulty(most=9)) == t.params["solver"] for t in failed) and ranked(study)


def test_a_worker_that_was_taken_for_lost_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, evaluate = mixture_objective(), Objective.__call__

    def stalled(self: Objective, trial: Trial) -> Any:
        value = evaluate(self, trial)
        if trial.number == 2:  # as another worker does that sees no heartbeat
            trial.study.tell(trial.number, state=TrialState.FAIL)
        return value

    monkeypatch.setattr(Objective, "__call__", stalled)
    study = search(objective, 5, starts=STARTS)
    assert [t.number for t in study.trials if t.state == TrialState.FAIL] == [2] and len(counted(study)) == 5


def test_a_storage_that_fails_ends_a_study_which_goes_on_when_that_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    search(mixture_objective(), 2, starts=STARTS, storage=open_storage(str(path)))

    def move(study: Study, trial: FrozenTrial) -> None:
        path.rename(tmp_path / "moved.db")

    with pytest.raises(StorageError, match=f"the storage {path} fails: "):
        search(mixture_objective(), 9, starts=STARTS, storage=open_storage(str(path)), callbacks=[move])
    study = search(mixture_objective(), 5, starts=STARTS, storage=open_storage(str(tmp_path / "moved.db")))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5


def test_a_study_without_a_whole_trial_says_why() -> None:
    broken = mixture_objective(limit=48, module=mixture_module(solver=Faulty(most=1)))
    starts = {
        "Constant": replace(broken.base, schedule=Constant(6)),
        "Linear": replace(broken.base, schedule=Linear(9, 2)),
    }
    with pytest.raises(ValueError, match="drawn to its end; 2 failed: ArithmeticError: the sampler broke down"):
        choose(search(broken, 2, starts=starts), broken)


def test_the_best_come_first_and_each_once() -> None:
    study = search(mixture_objective(), 8, starts={**STARTS, "again": per_stage(BASE, 12, 6, 4, 2)})
    best = ranked(study)
    assert [t.values for t in best] == sorted(t.values for t in best) and best[0].value == study.best_value
    assert len({key_of(sampling_of(t)) for t in best}) == len(best)


def test_the_winner_is_the_best_on_average_when_the_best_few_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = mixture_objective()
    study = search(objective, 10, starts=STARTS)
    finalists, told = ranked(study)[:4], list[tuple[int, int]]()
    winner = choose(study, objective, 4, lambda done, total: told.append((done, total)))
    again = [[objective.meter.measure(sampling_of(t), 96, seed) for seed in (-2, -1)] for t in finalists]
    means = {t.number: t.values[0] + sum(others) for t, others in zip(finalists, again, strict=True)}
    assert winner.number == min(means, key=means.__getitem__) and told == [(i, 8) for i in range(1, 9)]
    assert winner.number != finalists[0].number  # which was lucky
    monkeypatch.setattr(objective.meter, "measure", None)
    assert choose(study, objective, 4).number == winner.number  # the study remembers
    assert choose(study, objective, 1).number == finalists[0].number


def test_a_study_with_another_identity_is_not_gone_on_with(tmp_path: Path) -> None:
    identity, storage = {"limit": 24, "rungs": (32, 96), "model": "a"}, open_storage(database(tmp_path))
    search(mixture_objective(), 1, storage=storage, identity=identity)
    search(mixture_objective(), 2, storage=storage, identity=identity)
    with pytest.raises(ValueError, match=r"begun with other settings \(model, rungs differ\): choose another"):
        search(mixture_objective(), 2, storage=storage, identity={**identity, "rungs": (32,), "model": "b"})
    search(mixture_objective(), 2, storage=storage, identity={"limit": 12}, name="another")


WORKER_PROGRAM = """
import random, sys, time
from disa_framework.search.meter import Meter
from disa_framework.search.storage import StorageError, open_storage
from disa_framework.search.study import search
from tests.search.small import mixture_objective
from tests.search.test_study import HEARTBEAT, STARTS

class Slow(Meter):
    def measure(self, *args):
        time.sleep(float(sys.argv[3]) * (0.5 + random.random()))
        return super().measure(*args)

objective = mixture_objective()
objective.meter.__class__ = Slow
search(objective, int(sys.argv[2]), starts=STARTS, storage=open_storage(sys.argv[1], HEARTBEAT))
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[int, float], subprocess.Popen[bytes]]]:
    """Begins a process that works on the study of the folder's database."""
    begun = []

    def begin(trials: int, pause: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-c", WORKER_PROGRAM, database(tmp_path), str(trials), str(pause)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def wait_for(folder: Path, ready: Callable[[list[FrozenTrial]], bool]) -> list[FrozenTrial]:
    """The trials of a study in a database, once they are as wanted."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        trials = trials_in(open_storage(database(folder))) if (folder / "study.db").exists() else []
        if trials and ready(trials):
            return trials
        time.sleep(0.1)
    raise TimeoutError


def trials_in(storage: BaseStorage) -> list[FrozenTrial]:
    names = [study.study_name for study in optuna.get_all_study_summaries(storage)]
    return optuna.load_study(study_name=names[0], storage=storage).trials if names else []


def test_workers_begun_together_share_a_study_and_a_killed_one_loses_nothing(
    worker: Callable[[int, float], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    workers = [worker(14, 0.5) for _ in range(3)]
    wait_for(
        tmp_path, lambda trials: [t.state for t in trials if "cost" in t.user_attrs].count(TrialState.RUNNING) == 3
    )
    workers[0].send_signal(signal.SIGKILL)  # in the midst of a trial, as it waits while drawing
    assert [process.wait(timeout=300) for process in workers] == [-signal.SIGKILL, 0, 0]

    study = search(mixture_objective(), 14, starts=STARTS, storage=open_storage(database(tmp_path), HEARTBEAT))
    lost = [t for t in study.trials if t.state == TrialState.FAIL and "error" not in t.user_attrs]
    again = [t for t in study.trials if "failed_trial" in t.system_attrs]
    assert len(counted(study)) == 14 and all(t.state.is_finished() for t in study.trials)
    assert 1 <= len(again) <= len(lost)  # beside it, there may be one that two began as the last
    assert sampling_of(again[0]) == sampling_of(study.trials[again[0].system_attrs["failed_trial"]])
    assert sorted(t.user_attrs["start"] for t in counted(study) if "start" in t.user_attrs) == ["Constant", "ours"]


def test_a_trial_is_left_alone_while_its_worker_lives_and_drawn_again_when_that_is_killed(
    worker: Callable[[int, float], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    killed = worker(2, 20.0)
    before = wait_for(tmp_path, lambda trials: "cost" in trials[0].user_attrs)[0]
    storage = open_storage(database(tmp_path), HEARTBEAT)
    at, other = search(mixture_objective(), 2, starts=STARTS, storage=storage).trials
    assert at == before and (at.state, other.state) == (TrialState.RUNNING, TrialState.COMPLETE)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    lost, unchanged, again = search(mixture_objective(), 2, starts=STARTS, storage=storage).trials
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == lost.params and again.user_attrs["worker"] == [2, WORKER] and unchanged == other


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_no_worker_has_signed_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(database(tmp_path), HEARTBEAT)
    study = search(mixture_objective(), 2, starts=STARTS, storage=storage)
    study.ask()  # its worker was killed at once
    monkeypatch.setattr(studies, "_UNSIGNED", timedelta(seconds=0.5))
    again = search(mixture_objective(), 3, starts=STARTS, storage=storage)
    assert [t.state for t in again.trials][2] == TrialState.FAIL and len(counted(again)) == 3


def test_the_worker_that_ended_last_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, storage = datetime.now(), open_storage(database(tmp_path), HEARTBEAT)
    study = search(mixture_objective(), 1, starts=STARTS, storage=storage)
    assert not another_reports(study, storage, before)
    monkeypatch.setattr(studies, "WORKER", "another")
    assert another_reports(study, storage, before) and not another_reports(study, None, before)
    assert not another_reports(study, storage, datetime.now())  # and was killed before it said so
