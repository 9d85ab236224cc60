"""A study that can be killed, goes on, and is shared: an Optuna study of sampling configs.

Its storage says all there is to know. Workers tell by a heartbeat that they live, and what a lost one was drawing is
drawn again. The sampler is made anew for each trial, from the seed and the number of trials that there
are: a study that was killed does not repeat itself.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from disa_framework.resuming import RunIdentity, differing
from disa_framework.sampling.config import SamplingConfig
from disa_framework.search.knapsack import undominated
from disa_framework.search.objective import WORKER, Objective, distance_of, over_limit, sampling_of
from disa_framework.search.storage import RETRIES, grace

Callback = Callable[[Study, FrozenTrial], None]

_UNSIGNED = timedelta(minutes=1)  # how long a trial may run before its worker signs it
_PATIENCE, _PAUSE = 10.0, 0.5
_OVER_LIMIT = 20  # times as many trials as there should be may be over the limit
_UNPRUNED = 5
_REUSE = 2  # every so many trials, one takes over steps; see `search`
_LESS = 0.85  # of its cost is aimed at next with the steps of what is good enough
_CHEAPEST = 4  # of those that nothing beats in both cost and distance, whose steps are taken over in turn


def search(
    objective: Objective,
    trials: int = 40,
    *,
    starts: Mapping[str, SamplingConfig] | None = None,
    storage: BaseStorage | None = None,
    name: str = "disa",
    identity: RunIdentity | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> Study:
    """Runs a study, or goes on with it.

    Where more is chosen than a schedule, every second trial after the starts takes the steps of the best so far and
    chooses the rest anew: steps of a start, which need not lie in the space, get what the space offers besides. Of a
    start's solver that the space does not offer, they keep it.

    Args:
        objective: what a trial is.
        trials: how many there are to be in all, of all workers and all runs. Those over the limit are not drawn
            and do not count.
        starts: what to begin with, by name; they need not lie in the space.
        storage: as `open_storage` opens it; `None` keeps the study in memory.
        name: of the study within its storage.
        identity: what decides what trials find. A study that was begun with another one is not gone on with.
        seed: of what the sampler chooses.
        callbacks: are told of each trial that ends.

    Raises:
        ValueError: if no schedule meets the limit, or the study has another identity.
        StorageError: if the storage fails.
    """
    objective.check()
    study, ended = _open(objective, storage, name, identity or {}, starts or {}), time.monotonic()
    while (more := _goes_on(study, trials)) or (_running(study) and time.monotonic() - ended < grace(storage)):
        if not more:  # what others are at may turn out to be lost
            time.sleep(_PAUSE)
            continue
        _take_turn(study, objective, trials, seed, callbacks)
        ended = time.monotonic()
    return study


def check_identity(storage: BaseStorage | None, name: str, identity: RunIdentity) -> None:
    """Raises a ValueError if the storage has a study of this name that was begun with another identity."""
    for known in [] if storage is None else storage.get_all_studies():
        if known.study_name == name and (names := differing(known.user_attrs.get("identity", identity), identity)):
            raise ValueError(
                f"the study {name!r} was begun with other settings ({names} differ): choose another storage or study "
                "name"
            )


def counted(study: Study, before: int = sys.maxsize) -> list[FrozenTrial]:
    """Trials that were drawn, are being drawn, or went wrong, with numbers below `before`."""
    begun = [t for t in study.get_trials(deepcopy=False) if t.number < before and t.state != TrialState.WAITING]
    # One that failed without an error lost its worker, or was one too many.
    return [t for t in begun if not over_limit(t) and (t.state != TrialState.FAIL or "error" in t.user_attrs)]


def another_reports(study: Study, storage: BaseStorage | None, since: datetime) -> bool:
    """Whether another worker says what was found: one that still draws, or that has ended the last trial since then.

    Without heartbeats nothing tells whether others live, so each worker says it when it is through.
    """
    if not grace(storage):
        return False
    ends = {trial.datetime_complete: trial for trial in counted(study) if trial.datetime_complete}
    last = max(ends, default=since)
    return bool(_running(study)) or (last > since and not _is_ours(ends[last]))


def ranked(study: Study) -> list[FrozenTrial]:
    """Whole trials within all limits, each config once, the best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    within = sorted(filter(_within, complete), key=lambda t: t.values)
    best: dict[str, FrozenTrial] = {}
    for trial in within:
        best.setdefault(trial.user_attrs["key"], trial)
    return list(best.values())


def _within(trial: FrozenTrial) -> bool:
    """Whether a trial keeps all limits."""
    return max(trial.constraints.values(), default=0.0) <= 0


def _open(
    objective: Objective,
    storage: BaseStorage | None,
    name: str,
    identity: RunIdentity,
    starts: Mapping[str, SamplingConfig],
) -> Study:
    pruner = MedianPruner(n_startup_trials=_UNPRUNED)
    options: dict[str, Any] = {"storage": storage, "study_name": name, "pruner": pruner}
    try:
        study = optuna.create_study(directions=["minimize"] * (2 if objective.pareto else 1), **options)
        study.set_user_attr("identity", identity)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
        deadline = time.monotonic() + _PATIENCE  # of the worker that is just beginning it, if one is
        while not study.user_attrs.get("begun") and time.monotonic() < deadline:
            time.sleep(0.1)
        check_identity(storage, name, identity)
    _enqueue(study, objective, starts)
    return study


def _enqueue(study: Study, objective: Objective, starts: Mapping[str, SamplingConfig]) -> None:
    """Has the starts done that nobody has done or is to do."""
    lost = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.FAIL and "error" not in t.user_attrs]
    known = {t.user_attrs.get("start") for t in study.get_trials(deepcopy=False) if t not in lost}
    for name, start in starts.items():
        if name not in known:
            # The sampler learns from them as from the trials most like them.
            study.enqueue_trial(objective.encode(start), {"start": name, "sampling": start.dump()})
    study.set_user_attr("begun", True)


def _reuse_steps(study: Study, objective: Objective) -> None:
    """Has good steps drawn with the rest chosen anew, if there is more to choose and it is time to."""
    trials = study.get_trials(deepcopy=False)
    waiting, begun = any(t.state == TrialState.WAITING for t in trials), len(trials)
    if waiting or begun % _REUSE or objective.space == objective.space.steps:
        return
    if good := _promising(study, objective):
        trial = good[begun // _REUSE % len(good)]
        origin = trial.user_attrs.get("steps_of") or trial.user_attrs.get("start") or str(trial.number)
        sampling = sampling_of(trial)
        nearest = objective.space.steps.encode(sampling, objective.base) | _aim(trial, objective)
        study.enqueue_trial(nearest, {"like": sampling.dump(), "steps_of": origin})


def _aim(trial: FrozenTrial, objective: Objective) -> dict[str, float]:
    """What is to cost less next, where that is what is looked for: a trial that is good enough."""
    if objective.worse is None:
        return {}
    share = _LESS if _within(trial) else 1.0
    return {"aim": objective.aim_at(share * trial.user_attrs["cost"])}


def _promising(study: Study, objective: Objective) -> list[FrozenTrial]:
    """Trials whose steps may be better with something else; one after the other is taken."""
    if objective.worse is None:
        return sorted(study.best_trials, key=lambda t: t.values) if objective.pareto else ranked(study)[:1]
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    costs_and_distances = {(t.value, distance_of(t)): t for t in whole}
    # Those above the distance, too: they were not stopped, so it is not by much.
    return [costs_and_distances[point] for point in undominated(costs_and_distances)][:_CHEAPEST]


def _goes_on(study: Study, trials: int) -> bool:
    """Whether there is another trial to begin; those that were lost are first made to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    for trial in filter(_is_unsigned, _running(study)):  # its worker has shown no heartbeat, either
        _repeat(study, trial)
    too_many = sum(map(over_limit, study.get_trials(deepcopy=False))) >= _OVER_LIMIT * trials
    return len(counted(study)) < trials and not too_many


def _take_turn(study: Study, objective: Objective, trials: int, seed: int, callbacks: Sequence[Callback]) -> None:
    """Draws another trial."""
    _reuse_steps(study, objective)
    # Also after a restart, the sampler does not repeat itself.
    study.sampler = TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))

    begun = -1

    def drawn(trial: Trial) -> float | tuple[float, float]:
        nonlocal begun
        begun = trial.number
        trial.set_user_attr("worker", (trial.number, WORKER))
        if len(counted(study, before=trial.number)) >= trials:
            return math.nan  # which fails: another worker began the last trial at the same moment
        return objective(trial)

    try:
        study.optimize(drawn, n_trials=1, callbacks=list(callbacks))
    except (AssertionError, ValueError) as error:  # of Optuna: the storage did not take how a trial ended
        if begun >= 0 and study.get_trials(deepcopy=False)[begun].state == TrialState.FAIL:
            return  # this worker showed no heartbeat for long, and its trial is another's now
        raise error.__context__ if isinstance(error, AssertionError) and error.__context__ else error from None
    except Exception:
        raise
    except BaseException:  # an interrupt, at which Optuna leaves a trial running
        for trial in filter(_is_ours, _running(study)):
            _repeat(study, trial)
        raise


def _repeat(study: Study, trial: FrozenTrial) -> None:
    """Fails a trial whose worker is lost, and has it drawn again."""
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(RETRIES)(study, trial)


def _running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _is_unsigned(trial: FrozenTrial) -> bool:
    """Whether a trial has been running for long, and no worker has signed it; a repeated one has an old signature."""
    began = trial.datetime_start
    signed = trial.user_attrs.get("worker", (None,))[0] == trial.number
    return not signed and began is not None and datetime.now() - began > _UNSIGNED


def _is_ours(trial: FrozenTrial) -> bool:
    return list(trial.user_attrs.get("worker", ())) == [trial.number, WORKER]
