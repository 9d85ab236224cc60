"""What a trial of a study is: a sampling config, its cost, and the quality of ever more samples drawn with it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from optuna import Study, TrialPruned
from optuna.trial import FrozenTrial, Trial, TrialState

from disa_framework import values
from disa_framework.files import write_atomically
from disa_framework.resuming import fingerprint
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import PerStage
from disa_framework.search.folder import Folder
from disa_framework.search.limits import Costs, filled
from disa_framework.search.meter import Meter
from disa_framework.search.space import Space
from disa_framework.search.storage import StorageError

RUNGS = (500, 1000, 2000)
_PICTURES = 1000  # of a study, at most
_DOUBT = 1.1  # a distance may be so many times what is allowed before a trial is stopped: more samples may be kinder

WORKER = uuid.uuid4().hex
"""Tells this process from all others."""


def key_of(sampling: SamplingConfig) -> str:
    """The same for configs that draw the same samples."""
    if not sampling.schedule.adapts:
        sampling = replace(sampling, schedule=PerStage(sampling.budget))
    return fingerprint(sampling.dump())


def sampling_of(trial: FrozenTrial | Trial) -> SamplingConfig:
    """What a trial draws with, or was drawn with, whatever costs have been measured since."""
    return values.load(SamplingConfig, trial.user_attrs["sampling"])


def over_limit(trial: FrozenTrial) -> bool:
    """Whether a trial costs too much, and was not drawn."""
    return trial.constraints.get("cost", 0.0) > 0


def distance_of(trial: FrozenTrial) -> float | None:
    """What a trial measured with the most samples it drew, if any."""
    reported = trial.intermediate_values
    if reported:
        return reported[max(reported)]
    return trial.values[0] if trial.values else None


class Objective:
    """Called with a trial, gives its distance; with `pareto`, its distance and its cost; with `worse`, its cost.

    Every trial has the user attributes `worker` (its own number, and the `WORKER` that draws it), `sampling` (what it
    is drawn with), `key` and `cost`; those that began with a given config have `start`, those that took over the steps
    of a config `like` (that config) and `steps_of`, and those that went wrong `error`. Those that drew images have
    `picture`, the path in the folder of a PNG of the first, which come from the same noise in all trials.

    Args:
        meter: draws and measures.
        costs: of configs.
        space: what is chosen.
        limit: greatest cost. What costs more is not drawn.
        rungs: numbers of samples after which poor trials are stopped; the last is that of a whole trial.
        pareto: whether distance and cost are two objectives. Trials are then not stopped before their end.
        worse: makes the cost small, where the distance is at most this share above the baseline's.
        folder: for pictures of what was drawn.

    Raises:
        ValueError: for rungs that do not rise.
    """

    def __init__(
        self,
        meter: Meter,
        costs: Costs,
        space: Space,
        limit: float | None = None,
        rungs: Sequence[int] = RUNGS,
        pareto: bool = False,
        worse: float | None = None,
        folder: Folder | None = None,
    ) -> None:
        self.meter, self.costs, self.space, self.limit, self.pareto = meter, costs, space, limit, pareto
        self.worse, self.rungs, self.folder = worse, tuple(rungs[-1:] if pareto else rungs), folder or Folder(None)
        self.base = costs.base
        meter.check(self.rungs)

    def check(self) -> None:
        """Raises a ValueError for what cannot be chosen, and one that names the cheapest cost if that is too much."""
        cheapest = [self.meter.module.model.settle(sampling) for sampling in self.space.cheapest(self.base)]
        if (self.space.refresh or self.space.reuse) and self.costs.unit != "seconds":
            raise ValueError(
                "caching and reuse save time, not evaluations: choose refresh and reuse of the space under a limit in "
                "seconds"
            )
        if self.limit is None:
            return
        cheapest.sort(key=lambda sampling: sum(sampling.budget))
        if not any(self.costs(sampling) <= self.limit for sampling in cheapest):  # may measure a cost model for each
            raise ValueError(
                f"no schedule of this space meets a limit of {self.limit:.6g} {self.costs.unit} per sample: "
                f"the fastest takes {min(map(self.costs, cheapest)):.6g}"
            )

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        try:
            return self._evaluate(trial)
        except (TrialPruned, StorageError):
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            return math.nan  # which fails

    def encode(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Parameters of the trial that is most like a config."""
        aim = {} if self.worse is None else {"aim": self.aim_at(self.costs(sampling))}
        return self.space.encode(sampling, self.base) | aim

    def aim_at(self, cost: float) -> float:
        """The nearest cost that a trial may aim at."""
        return min(max(cost, self._aims[0]), self._aims[1])

    @cached_property
    def _aims(self) -> tuple[float, float]:
        """Least and greatest cost that a trial may aim at."""
        assert self.limit is not None
        return min(self.limit, *map(self.costs, self.space.steps.cheapest(self.base))), self.limit

    def _chosen(self, trial: Trial) -> SamplingConfig:
        chosen = self.space.suggest(trial, self.base)
        most = self.limit if self.worse is None else trial.suggest_float("aim", *self._aims, log=True)
        if "sampling" in trial.user_attrs:  # a start, or a trial whose worker was lost
            return sampling_of(trial)
        if like := trial.user_attrs.get("like"):
            chosen = self.space.with_steps(chosen, values.load(SamplingConfig, like), self.base)
        if most is None or self.pareto:
            return chosen
        return filled(chosen, self.costs, most, self.space.schedule.low)

    def _evaluate(self, trial: Trial) -> float | tuple[float, float]:
        sampling = self._chosen(trial)
        key, cost = key_of(sampling), self.costs(sampling)
        if self.limit is not None and "cost" not in trial.user_attrs:  # as a repeated one has, and its constraint
            # Before anything can end the trial: one without a constraint passes for feasible.
            trial.set_constraint("cost", cost / self.limit - 1)
        for name, value in {"sampling": sampling.dump(), "key": key, "cost": cost}.items():
            trial.set_user_attr(name, value)
        if self.limit is not None and cost > self.limit:
            raise TrialPruned
        allowed, known, value = self._allowed(trial.study), self._measured(trial, key), math.inf
        for rung in self.rungs:
            value = known[rung] if rung in known else self._measure(trial, sampling, rung)
            if not self.pareto:
                trial.report(value, rung)
            last = rung == self.rungs[-1]
            stops = not last and (value > _DOUBT * allowed[rung] if allowed else trial.should_prune())
            if allowed and (stops or last):
                trial.set_constraint("distance", value - allowed[rung])
            if stops:
                raise TrialPruned
        if self.pareto:
            return value, cost
        return cost if allowed else value

    def _measure(self, trial: Trial, sampling: SamplingConfig, rung: int) -> float:
        """The distance, and a picture of what was drawn for it, if there is none yet."""
        value, place = self.meter.measure(sampling, rung), f"trials/{trial.number:03}.png"
        if trial.number < _PICTURES and "picture" not in trial.user_attrs:
            path, picture = self.folder.place(place), self.meter.measured_picture()
            if path and picture:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, picture)
                trial.set_user_attr("picture", place)
        return value

    def _allowed(self, study: Study) -> dict[int, float]:
        """Greatest distances, by number of samples, if there are any: the baseline's are measured once in a study."""
        if self.worse is None:
            return {}
        allowed = {}
        for rung in self.rungs:
            name = f"baseline with {rung} samples"
            if name not in study.user_attrs:
                study.set_user_attr(name, self.meter.measure(self.base, rung))
            allowed[rung] = (1 + self.worse) * study.user_attrs[name]
        return allowed

    def _measured(self, trial: Trial, key: str) -> dict[int, float]:
        """What earlier trials found for the same samples, by their number."""
        known: dict[int, float] = {}
        for earlier in trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if earlier.user_attrs.get("key") == key:
                known |= earlier.intermediate_values
                if self.pareto and earlier.values:  # of several objectives nothing else is kept
                    known[self.rungs[-1]] = earlier.values[0]
        return known
