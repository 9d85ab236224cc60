"""What a study may choose: a schedule of some family, and on request guidance, solver and number of stages.

Letters: `K` stages, `G` groups of stages.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from optuna.trial import BaseTrial

from disa_framework.guidance import Guidance
from disa_framework.models.lazy import Lazy
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Budget, PerStage, PiecewiseLinear, StepSchedule
from disa_framework.solvers import Solver

_GRID = 17  # values of a shape that are tried to make a schedule like another


@dataclass(frozen=True)
class Setting:
    """What images are drawn with.

    Attributes:
        schedule, solver, guidance, num_stages, cache: as of `ARDiffusionModule`.
    """

    schedule: StepSchedule
    solver: Solver
    guidance: Guidance
    num_stages: int
    cache: Lazy | None = None

    @classmethod
    def of(cls, module: ARDiffusionModule) -> Setting:
        """That of a module."""
        return cls(module.schedule, module.solver, module.guidance, module.num_stages, module.cache)

    @property
    def budget(self) -> Budget:
        return self.schedule.budget(self.num_stages)

    @property
    def key(self) -> str:
        """The same for settings that draw the same images."""
        steps = repr(self.schedule) if self.schedule.reads_signals else self.budget
        text = json.dumps([steps, repr(self.solver), repr(self.guidance), *([repr(self.cache)] if self.cache else [])])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @contextmanager
    def applied(self, module: ARDiffusionModule) -> Iterator[ARDiffusionModule]:
        """The module with this setting, for a while."""
        before = vars(Setting.of(module))
        _assign(module, vars(self))
        try:
            yield module
        finally:
            _assign(module, before)


def _assign(module: ARDiffusionModule, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(module, name, value)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; on a log scale where they are counts, or positive and a factor of 10 apart."""

    low: float
    high: float
    whole: bool = True

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.whole and not (self.low >= 1 and self.low % 1 == self.high % 1 == 0)):
            kind = "whole numbers from 1" if self.whole else "numbers"
            raise ValueError(f"bounds must be {kind}, the lower one first, got {self.low:g} and {self.high:g}")

    def suggest(self, trial: BaseTrial, name: str) -> float:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=True)
        return trial.suggest_float(name, self.low, self.high, log=0 < 10 * self.low <= self.high)

    def nearest(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(inside) if self.whole else inside

    def grid(self) -> list[float]:
        """Evenly spaced values."""
        return [self.low + (self.high - self.low) * i / (_GRID - 1) for i in range(_GRID)]


class ScheduleSpace(ABC):
    """A family of schedules. Subclass, give `ranges`, and implement `build` and `describe`.

    Attributes:
        ranges: of the parameters, by name.
    """

    ranges: Mapping[str, Range]

    @property
    def least(self) -> int:
        """Steps that no stage may fall below."""
        return int(min(bounds.low for bounds in self.ranges.values() if bounds.whole))

    @abstractmethod
    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        """The member with these parameters."""

    @abstractmethod
    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        """Parameters of the member that is most like a schedule; they may be out of their ranges."""

    def suggest(self, trial: BaseTrial, num_stages: int) -> StepSchedule:
        """The member that a trial asks for."""
        return self.build({name: bounds.suggest(trial, name) for name, bounds in self.ranges.items()}, num_stages)

    def encode(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        """Parameters of the member most like a schedule, which need not be a member itself."""
        values = self.describe(schedule, num_stages)
        return {name: bounds.nearest(values[name]) for name, bounds in self.ranges.items()}

    def cheapest(self, num_stages: int) -> StepSchedule:
        """The member with the fewest steps."""
        return self.build({name: bounds.low for name, bounds in self.ranges.items()}, num_stages)


class Parametric(ScheduleSpace):
    """Schedules of one class with the arguments `early` and `late`, such as `Linear`, `Cosine`, `TwoStage`, `Power`.

    Args:
        schedule: the class.
        early, late: least and most steps of the first and the last stage.
        shape: bounds of further arguments; those that are not named keep their default. `Power` has `exponent`,
            `Logistic` has `midpoint` and `steepness`.
    """

    def __init__(
        self,
        schedule: type[StepSchedule],
        early: tuple[int, int] = (1, 100),
        late: tuple[int, int] = (1, 100),
        shape: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        self.schedule = schedule
        self.shape = {name: Range(*bounds, whole=False) for name, bounds in (shape or {}).items()}
        self.ranges = {"early": Range(*early), "late": Range(*late), **self.shape}
        if unknown := self.ranges.keys() - inspect.signature(schedule).parameters.keys():
            raise ValueError(f"{schedule.__name__} has no argument {' or '.join(sorted(unknown))}")

    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        return self.schedule(**values)

    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        if isinstance(schedule, self.schedule):
            return schedule.arguments
        budget = schedule.budget(num_stages)
        ends: dict[str, float] = {"early": budget[0], "late": budget[-1]}

        def distance(values: dict[str, float]) -> float:
            return sum(abs(a - b) for a, b in zip(self.schedule(**values).budget(num_stages), budget, strict=True))

        return min(({**ends, **shape} for shape in self._shapes()), key=distance)

    def cheapest(self, num_stages: int) -> StepSchedule:
        ends = {name: self.ranges[name].low for name in ("early", "late")}
        members = [self.build({**ends, **shape}, num_stages) for shape in self._shapes()]
        return min(members, key=lambda member: sum(member.budget(num_stages)))

    def _shapes(self) -> Iterator[dict[str, float]]:
        for values in product(*(bounds.grid() for bounds in self.shape.values())):
            yield dict(zip(self.shape, values, strict=True))


class Knots(ScheduleSpace):
    """`PiecewiseLinear` with evenly spaced knots.

    Args:
        count: of the knots, at least 2.
        low, high: least and most steps at a knot.
    """

    def __init__(self, count: int = 4, low: int = 1, high: int = 100) -> None:
        if count < 2:
            raise ValueError(f"a line needs at least 2 knots, got {count}")
        self.places = [i / (count - 1) for i in range(count)]
        self.ranges = {f"knot_{i}": Range(low, high) for i in range(count)}

    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        return PiecewiseLinear([(u, values[name]) for u, name in zip(self.places, self.ranges, strict=True)])

    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        if not isinstance(schedule, PiecewiseLinear):
            last = max(num_stages - 1, 1)
            schedule = PiecewiseLinear([(k / last, steps) for k, steps in enumerate(schedule.budget(num_stages))])
        return {name: schedule.value(u) for u, name in zip(self.places, self.ranges, strict=True)}


class Stages(ScheduleSpace):
    """`PerStage` tables: neighbouring stages form groups of about one size, and a group has one step count.

    Args:
        groups: `G`; as many as there are stages leave every stage free.
        low, high: least and most steps of a stage.
        monotone: whether steps may only fall from group to group.
    """

    def __init__(self, groups: int = 8, low: int = 1, high: int = 100, monotone: bool = False) -> None:
        if groups < 1:
            raise ValueError(f"stages form at least 1 group, got {groups}")
        self.monotone = monotone
        self.ranges = {f"steps_{g}": Range(low, high) for g in range(groups)}

    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        steps = [int(values[name]) for name in self.ranges]
        if self.monotone:
            steps.sort(reverse=True)
        return PerStage([steps[group] for group in self._groups(num_stages)])

    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        members: list[list[int]] = [[] for _ in self.ranges]
        for group, steps in zip(self._groups(num_stages), schedule.budget(num_stages), strict=True):
            members[group].append(steps)
        values: dict[str, float] = {}
        for name, steps_of_group in zip(self.ranges, members, strict=True):
            # With fewer stages than groups some are empty: any value will do.
            values[name] = sum(steps_of_group) / len(steps_of_group) if steps_of_group else self.ranges[name].low
        return values

    def _groups(self, num_stages: int) -> list[int]:
        """`[K]`, the group of each stage."""
        return [k * len(self.ranges) // num_stages for k in range(num_stages)]


@dataclass(frozen=True)
class Space:
    """All that a study chooses. What is not given here stays as it is.

    Args:
        schedule: family of the schedules.
        fill: whether steps are proportions, multiplied by whatever makes the most of the limit. Otherwise, and for
            Pareto fronts, they are counts: most of what is chosen costs too much or leaves some of the limit unused.
        guidance: least and greatest scale of guidance.
        solvers: to choose from, beside the one that there is; grid, clip and order are options of theirs.
        temperature: least and greatest factor on the noise of the steps, of solvers that draw any. Few steps lose
            variance, which a temperature above 1 gives back.
        num_stages: numbers of stages to choose from.
        refresh: periods of feature caching to choose from; 1 does without.
    """

    schedule: ScheduleSpace
    fill: bool = True
    guidance: tuple[float, float] | None = None
    solvers: Sequence[Solver] = ()
    temperature: tuple[float, float] | None = None
    num_stages: Sequence[int] = ()
    refresh: Sequence[int] = ()

    @property
    def chooses_more(self) -> bool:
        """Whether anything is chosen beside steps and number of stages."""
        return bool(self.guidance or self.solvers or self.temperature or self.refresh)

    def check(self, base: Setting) -> None:
        """Raises a ValueError for what cannot be chosen; `base` has the rest."""
        if self.temperature and not self.temperature[0] > 0:
            raise ValueError(f"temperatures must be above 0, got {self.temperature[0]:g}")
        if self.temperature and not any(map(_has_temperature, self._solvers(base))):
            raise ValueError("none of the solvers has a temperature: give DDPM or EulerMaruyama, or leave it out")

    def suggest(self, trial: BaseTrial, base: Setting) -> Setting:
        """What a trial asks for; `base` has the rest."""
        setting = base
        if self.num_stages:
            setting = replace(setting, num_stages=trial.suggest_categorical("num_stages", self.num_stages))
        if self.solvers:
            named = {repr(solver): solver for solver in self._solvers(base)}
            setting = replace(setting, solver=named[trial.suggest_categorical("solver", list(named))])
        if self.temperature and _has_temperature(setting.solver):
            temperature = Range(*self.temperature, whole=False).suggest(trial, "temperature")
            setting = replace(setting, solver=_at(temperature, setting.solver))
        if self.guidance:
            scale = Range(*self.guidance, whole=False).suggest(trial, "guidance")
            setting = replace(setting, guidance=replace(base.guidance, scale=scale))
        if self.refresh:
            period = trial.suggest_categorical("refresh", self.refresh)
            setting = replace(setting, cache=_every(period, base.cache))
        return replace(setting, schedule=self.schedule.suggest(trial, setting.num_stages))

    def encode(self, setting: Setting, base: Setting) -> dict[str, Any]:
        """Parameters of the choice that is most like a setting; `base` has what is not chosen."""
        values, offered = self.encode_steps(setting), self._solvers(base)
        if self.solvers:
            values["solver"] = repr(setting.solver if setting.solver in offered else base.solver)
        if self.temperature and (temperature := getattr(setting.solver, "temperature", None)):
            values["temperature"] = Range(*self.temperature, whole=False).nearest(temperature)
        if self.guidance:
            values["guidance"] = Range(*self.guidance, whole=False).nearest(setting.guidance.scale)
        if self.refresh:
            period = setting.cache.refresh if setting.cache else 1
            values["refresh"] = min(self.refresh, key=lambda other: abs(other - period))
        return values

    def encode_steps(self, setting: Setting) -> dict[str, Any]:
        """Those of schedule and number of stages alone."""
        values: dict[str, Any] = self.schedule.encode(setting.schedule, setting.num_stages)
        if self.num_stages:
            values["num_stages"] = min(self.num_stages, key=lambda count: abs(count - setting.num_stages))
        return values

    def cheapest(self, base: Setting) -> list[Setting]:
        """Settings among which the cheapest of all is."""
        scales = self.guidance or (base.guidance.scale,)
        return [
            Setting(self.schedule.cheapest(count), solver, replace(base.guidance, scale=scale), count, cache)
            for count in self.num_stages or (base.num_stages,)
            for solver in self._solvers(base)
            for scale in scales
            for cache in ([_every(period, base.cache) for period in self.refresh] or [base.cache])
        ]

    def _solvers(self, base: Setting) -> list[Solver]:
        """All that may be drawn with."""
        return list(dict.fromkeys((base.solver, *self.solvers)))


def _every(period: int, base: Lazy | None) -> Lazy | None:
    """A cache of this period, otherwise like another."""
    return replace(base or Lazy(), refresh=period) if period > 1 else None


def _at(temperature: float, solver: Any) -> Solver:
    """The solver with another temperature."""
    return replace(solver, temperature=temperature)


def _has_temperature(solver: Solver) -> bool:
    return hasattr(solver, "temperature")
