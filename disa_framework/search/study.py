"""A study that can be killed, goes on, and is shared: an Optuna study of step schedules.

Its storage says all there is to know. A trial names the process that works on it, so that one whose process is
gone is noticed and done again. The sampler is made anew for each trial, from the seed and the number of trials
that there are: a study that was killed does not repeat itself.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from disa_framework.files import differing
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.search.objective import MOST_STEPS, Costs, Objective
from disa_framework.search.space import Setting

Progress = Callable[[Study, FrozenTrial], None]
Start = StepSchedule | Setting

AGAIN = 2
"""Times that a finalist is drawn again."""

_TOKEN = uuid.uuid4().hex
_UNSIGNED = timedelta(minutes=1)  # how long a trial may run before it names its process
_PATIENCE = 10.0
_OVER_LIMIT = 20  # times as many trials as there should be may be over the limit
_UNPRUNED = 5
_DECIDES_STEPS = ("start", "steps", "steps_of")
_REUSE = 3  # every so many trials, one takes over steps; see `search`


def search(
    objective: Objective,
    trials: int = 40,
    *,
    starts: Mapping[str, Start] | None = None,
    storage: str | None = None,
    name: str = "disa",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    callbacks: Sequence[Progress] = (),
) -> Study:
    """Runs a study, or goes on with it.

    Where more is chosen than a schedule, every third trial after the starts takes the steps of the best so far and
    chooses the rest anew: steps of a start, which need not lie in the space, get what the space offers besides.

    Args:
        objective: what a trial is.
        trials: how many there are to be in all, of all workers and all runs. Those over the limit are not drawn
            and do not count.
        starts: what to begin with, by name: schedules, or settings of which schedule and number of stages count; they
            need not lie in the space.
        storage: as of `open_storage`; `None` keeps the study in memory.
        name: of the study within its storage.
        settings: what decides what trials find. A study that was begun with others is not gone on with.
        seed: of what the sampler chooses.
        callbacks: are told of each trial that ends.

    Raises:
        ValueError: if no schedule meets the limit, or the study has other settings.
    """
    objective.check()
    study = _open(objective, storage, name, dict(settings or {}), starts or {})

    def take_turn(trial: Trial) -> float | tuple[float, float]:
        worker = {"host": socket.gethostname(), "pid": os.getpid(), "begun": _begun(os.getpid()), "token": _TOKEN}
        trial.set_user_attr("worker", worker)
        if len(counted(study, before=trial.number)) >= trials:
            raise RuntimeError("another worker began the last trial at the same moment")
        return objective(trial)

    while _goes_on(study, trials):
        _reuse_steps(study, objective)
        # Also after a restart, the sampler does not repeat itself.
        study.sampler = TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))
        study.optimize(take_turn, n_trials=1, catch=(Exception,), callbacks=list(callbacks))
    return study


def over_limit(trial: FrozenTrial) -> bool:
    """Whether a trial costs too much, and was not drawn."""
    return any(value > 0 for value in trial.constraints.values())


def counted(study: Study, before: int = sys.maxsize) -> list[FrozenTrial]:
    """Trials that were drawn, are being drawn, or went wrong, with numbers below `before`."""
    begun = [t for t in study.get_trials(deepcopy=False) if t.number < before and t.state != TrialState.WAITING]
    # One that failed without an error was killed, or was one too many.
    return [t for t in begun if not over_limit(t) and (t.state != TrialState.FAIL or "error" in t.user_attrs)]


def busy(study: Study) -> int:
    """How many trials other workers on this machine are at."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    workers = [trial.user_attrs.get("worker", {}) for trial in running if not _is_abandoned(trial)]
    return sum(worker.get("host") == socket.gethostname() and worker["token"] != _TOKEN for worker in workers)


def ranked(study: Study) -> list[FrozenTrial]:
    """Whole trials within the limit, each setting once, the best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    within = sorted((t for t in complete if not over_limit(t)), key=lambda t: t.values)
    best: dict[str, FrozenTrial] = {}
    for trial in within:
        best.setdefault(trial.user_attrs["setting"], trial)
    return list(best.values())


def choose(
    study: Study, objective: Objective, finalists: int = 5, progress: Callable[[], object] = lambda: None
) -> FrozenTrial:
    """The trial that is best on average when the best few are drawn with other noise, too: some are there by luck.

    Args:
        finalists: how many are drawn again; 1 takes the study at its word.
        progress: called when one has been measured with a seed.

    Raises:
        ValueError: if no trial was drawn to its end.
    """
    check_drawn(study)
    best, seed = ranked(study)[:finalists], objective.meter.module.seed
    if len(best) == 1:
        return best[0]

    def distance(trial: FrozenTrial) -> float:
        setting, seeds = objective.setting(trial), range(seed - AGAIN, seed)  # neither trials nor the comparison have
        again = [measured(study, objective, setting, other, progress) for other in seeds]
        return statistics.mean([trial.values[0], *again])

    return min(best, key=distance)


def check_drawn(study: Study) -> None:
    """Raises a ValueError that says why, if no trial was drawn to its end."""
    if not ranked(study):
        errors = [t.user_attrs["error"] for t in study.get_trials(deepcopy=False) if "error" in t.user_attrs]
        raise ValueError(f"no trial was drawn to its end; {len(errors)} failed{f': {errors[0]}' if errors else ''}")


def measured(
    study: Study, objective: Objective, setting: Setting, seed: int, progress: Callable[[], object]
) -> float:
    """The distance of a setting, which the study keeps; `progress` is called when it is known."""
    name = f"{setting.key} with seed {seed}"
    if name not in study.user_attrs:
        study.set_user_attr(name, objective.meter.measure(setting, objective.rungs[-1], seed))
    progress()
    return study.user_attrs[name]


def fitted_ramps(
    costs: Costs, base: Setting, limit: float, falls: Sequence[float] = (1.7, 3.0, 5.0, 10.0)
) -> dict[str, StepSchedule]:
    """The hand-made schedules with as many steps as a limit allows, by name; those that meet it.

    Args:
        costs: of settings.
        base: what is drawn with besides.
        limit: greatest cost.
        falls: by what factors ramps fall from the first stage to the last; published ones fall by 10.
    """
    members: dict[str, Callable[[int], StepSchedule]] = {"Constant": Constant}
    for ramp in (Linear, Cosine, TwoStage):
        members |= {f"{ramp.__name__} {fall:g}:1": partial(_falling, ramp, fall) for fall in falls}
    largest = {name: _largest(costs, base, limit, member) for name, member in members.items()}
    return {name: schedule for name, schedule in largest.items() if schedule is not None}


def fitted_constants(costs: Costs, base: Setting, limit: float, num_stages: Sequence[int]) -> dict[str, Setting]:
    """Constant schedules of other numbers of stages than the base's, with as many steps as a limit allows, by name."""
    found = {}
    for count in num_stages:
        other = replace(base, num_stages=count)
        if count != base.num_stages and (constant := _largest(costs, other, limit, Constant)):
            found[f"Constant ({count} stages)"] = replace(other, schedule=constant)
    return found


def open_storage(storage: str) -> BaseStorage:
    """The storage behind a database URL (`sqlite:///study.db`), or in a journal file (`study.log`).

    Raises:
        ValueError: if it cannot be opened.
    """
    try:
        if "://" in storage:
            return _open_database(storage)
        path = Path(storage.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: Any = JournalFileOpenLock(str(path)) if sys.platform == "win32" else _FileLock(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except Exception as error:  # each database has its own
        raise ValueError(
            f"cannot open the storage {storage}: {str(error).splitlines()[0]}; give a file, such as study.log, "
            "or a URL, such as sqlite:///study.db"
        ) from error


class _FileLock:
    """Lets one process at a time write. It is free again at once when its holder is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.flock")

    def acquire(self) -> bool:
        import fcntl

        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()


def _open_database(url: str) -> RDBStorage:
    if url.startswith("sqlite"):
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Of workers on other machines nothing else tells that they are gone.
        return RDBStorage(url, heartbeat_interval=60, grace_period=300, heartbeat_stale_trial_callback=_retry)


def _open(
    objective: Objective, storage: str | None, name: str, settings: dict[str, Any], starts: Mapping[str, Start]
) -> Study:
    options: dict[str, Any] = {
        "storage": open_storage(storage) if storage else None,
        "study_name": name,
        "pruner": MedianPruner(n_startup_trials=_UNPRUNED),
    }
    try:
        study = optuna.create_study(**options, directions=["minimize"] * (2 if objective.pareto else 1))
        study.set_user_attr("settings", settings)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
        _await_starts(study)
        known = study.user_attrs.get("settings", settings)
        if names := differing(known, settings):
            raise ValueError(
                f"the study {name!r} in {storage} was begun with other settings ({names} differ): choose "
                "another storage or study name"
            ) from None
    _enqueue(study, objective, starts)
    return study


def _await_starts(study: Study) -> None:
    """Waits for the worker that began a study, if it is just doing so."""
    deadline = time.monotonic() + _PATIENCE
    while not study.user_attrs.get("begun") and time.monotonic() < deadline:
        time.sleep(0.1)


def _enqueue(study: Study, objective: Objective, starts: Mapping[str, Start]) -> None:
    """Has the starts done that nobody has done or is to do."""
    lost = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.FAIL and "error" not in t.user_attrs]
    known = {t.user_attrs.get("start") for t in study.get_trials(deepcopy=False) if t not in lost}
    for name, start in starts.items():
        if name not in known:
            setting = start if isinstance(start, Setting) else replace(objective.base, schedule=start)
            # The sampler learns from them as from their nearest neighbours in the space.
            nearest = objective.space.encode(setting, objective.base)
            study.enqueue_trial(nearest, {"start": name, "steps": setting.budget})
    study.set_user_attr("begun", True)


def _reuse_steps(study: Study, objective: Objective) -> None:
    """Has the best steps so far drawn with the rest chosen anew, if there is more to choose and it is time to."""
    trials = study.get_trials(deepcopy=False)
    waiting, begun = any(t.state == TrialState.WAITING for t in trials), len(trials)
    if waiting or begun % _REUSE or not objective.space.chooses_more:
        return
    best = sorted(study.best_trials, key=lambda t: t.values) if objective.pareto else ranked(study)[:1]
    if best:
        trial = best[begun // _REUSE % len(best)]
        origin = trial.user_attrs.get("steps_of") or trial.user_attrs.get("start") or str(trial.number)
        setting = objective.setting(trial)
        study.enqueue_trial(objective.space.encode_steps(setting), {"steps": setting.budget, "steps_of": origin})


def _goes_on(study: Study, trials: int) -> bool:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_abandoned(trial):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):  # another worker was quicker
                continue
            _retry(study, trial)
    too_many = sum(map(over_limit, study.get_trials(deepcopy=False))) >= _OVER_LIMIT * trials
    return len(counted(study)) < trials and not too_many


def _is_abandoned(trial: FrozenTrial) -> bool:
    """Whether a running trial's process, if it was one of this machine, is gone."""
    worker = trial.user_attrs.get("worker")
    if worker is None:
        began = trial.datetime_start
        return began is not None and datetime.now() - began > _UNSIGNED
    if worker["host"] != socket.gethostname() or worker["token"] == _TOKEN:
        return False
    if worker["pid"] == os.getpid() or not _is_alive(worker["pid"]):
        return True
    begun = worker.get("begun")
    return begun is not None and begun != _begun(worker["pid"])  # its number may be another process's by now


def _begun(pid: int) -> str | None:
    """When a process began, as Linux counts, and since which start of the machine; `None` if nothing tells."""
    try:
        # The name before the closing bracket may be anything; the 22nd field is the time.
        time_of_start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {time_of_start}"
    except (OSError, IndexError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _retry(study: Study, trial: FrozenTrial) -> None:
    """Has a trial done again."""
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    known = trial.user_attrs
    study.enqueue_trial(params, {name: known[name] for name in _DECIDES_STEPS if name in known})


def _falling(ramp: Callable[[int, int], StepSchedule], fall: float, early: int) -> StepSchedule:
    return ramp(early, max(1, round(early / fall)))


def _largest(
    costs: Costs, base: Setting, limit: float, member: Callable[[int], StepSchedule]
) -> StepSchedule | None:
    found = None
    for steps in range(1, MOST_STEPS + 1):
        try:
            cost = costs(replace(base, schedule=member(steps)))
        except ValueError:  # some grids have no such number of steps
            continue
        if cost > limit:
            break
        found = member(steps)
    return found
