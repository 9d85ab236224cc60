"""What a study may choose: a schedule of some family, and on request guidance, solver, number of stages and cache.

Letters: `K` stages, `G` groups of stages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from optuna.trial import BaseTrial

from disa_framework.runtime.feature_cache import FeatureCache, Lazy
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import PerStage, PiecewiseLinear, StepSchedule
from disa_framework.solvers import Solver

_GRID = 17  # values of a shape that are tried to make a schedule like another

Bounds = tuple[int, int]
Reals = tuple[float, float]


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
    """A family of schedules. Subclass as a frozen dataclass, and implement `ranges`, `build` and `describe`."""

    @property
    @abstractmethod
    def ranges(self) -> dict[str, Range]:
        """Of the parameters, by name."""

    @abstractmethod
    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        """The member with these parameters."""

    @abstractmethod
    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        """Parameters of the member that is most like a schedule; they may be out of their ranges."""

    def __post_init__(self) -> None:
        """Raises a ValueError for bounds that are none."""
        _ = self.ranges

    @property
    def least(self) -> int:
        """Steps that no stage may fall below."""
        return int(min(bounds.low for bounds in self.ranges.values() if bounds.whole))

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


@dataclass(frozen=True)
class Parametric(ScheduleSpace):
    """Schedules of one class with the fields `early` and `late`, such as `Linear`, `Cosine`, `TwoStage`, `Power`.

    Args:
        schedule: the class.
        early, late: least and most steps of the first and the last stage.
        shape: bounds of further fields; those that are not named keep their default. `Power` has `exponent`,
            `Logistic` has `midpoint` and `steepness`.
    """

    schedule: type[StepSchedule]
    early: Bounds = (1, 100)
    late: Bounds = (1, 100)
    shape: Mapping[str, Reals] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {part.name for part in fields(self.schedule)}  # type: ignore[arg-type]
        if unknown := self.ranges.keys() - known:
            raise ValueError(f"{self.schedule.__name__} has no {' or '.join(sorted(unknown))}")

    @property
    def ranges(self) -> dict[str, Range]:
        shape = {name: Range(*bounds, whole=False) for name, bounds in self.shape.items()}
        return {"early": Range(*self.early), "late": Range(*self.late), **shape}

    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        return self.schedule(**values)

    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        if isinstance(schedule, self.schedule):
            return {name: getattr(schedule, name) for name in self.ranges}
        budget = schedule.budget(num_stages)
        ends: dict[str, float] = {"early": budget[0], "late": budget[-1]}

        def distance(values: dict[str, float]) -> float:
            return sum(abs(a - b) for a, b in zip(self.schedule(**values).budget(num_stages), budget, strict=True))

        return min(({**ends, **shape} for shape in self._shapes()), key=distance)

    def cheapest(self, num_stages: int) -> StepSchedule:
        ends: dict[str, float] = {"early": self.early[0], "late": self.late[0]}
        members = [self.build({**ends, **shape}, num_stages) for shape in self._shapes()]
        return min(members, key=lambda member: sum(member.budget(num_stages)))

    def _shapes(self) -> Iterator[dict[str, float]]:
        for values in product(*(self.ranges[name].grid() for name in self.shape)):
            yield dict(zip(self.shape, values, strict=True))


@dataclass(frozen=True)
class Knots(ScheduleSpace):
    """`PiecewiseLinear` with evenly spaced knots.

    Args:
        count: of the knots, at least 2.
        low, high: least and most steps at a knot.
    """

    count: int = 4
    low: int = 1
    high: int = 100

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"a line needs at least 2 knots, got {self.count}")
        super().__post_init__()

    @property
    def ranges(self) -> dict[str, Range]:
        return {f"knot_{i}": Range(self.low, self.high) for i in range(self.count)}

    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        return PiecewiseLinear(tuple((u, values[name]) for u, name in self._places()))

    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        if not isinstance(schedule, PiecewiseLinear):
            last = max(num_stages - 1, 1)
            schedule = PiecewiseLinear(tuple((k / last, t) for k, t in enumerate(schedule.budget(num_stages))))
        return {name: schedule.value(u) for u, name in self._places()}

    def _places(self) -> list[tuple[float, str]]:
        return [(i / (self.count - 1), name) for i, name in enumerate(self.ranges)]


@dataclass(frozen=True)
class Stages(ScheduleSpace):
    """`PerStage` tables: neighbouring stages form groups of about one size, and a group has one step count.

    Args:
        groups: `G`; as many as there are stages leave every stage free.
        low, high: least and most steps of a stage.
        monotone: whether steps may only fall from group to group.
    """

    groups: int = 8
    low: int = 1
    high: int = 100
    monotone: bool = False

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"stages form at least 1 group, got {self.groups}")
        super().__post_init__()

    @property
    def ranges(self) -> dict[str, Range]:
        return {f"steps_{g}": Range(self.low, self.high) for g in range(self.groups)}

    def build(self, values: Mapping[str, float], num_stages: int) -> StepSchedule:
        steps = [int(values[name]) for name in self.ranges]
        if self.monotone:
            steps.sort(reverse=True)
        return PerStage(tuple(steps[group] for group in self._groups(num_stages)))

    def describe(self, schedule: StepSchedule, num_stages: int) -> dict[str, float]:
        members: list[list[int]] = [[] for _ in range(self.groups)]
        for group, steps in zip(self._groups(num_stages), schedule.budget(num_stages), strict=True):
            members[group].append(steps)
        # With fewer stages than groups some are empty: any value will do.
        means = [sum(steps) / len(steps) if steps else self.low for steps in members]
        return dict(zip(self.ranges, means, strict=True))

    def _groups(self, num_stages: int) -> list[int]:
        """`[K]`, the group of each stage."""
        return [k * self.groups // num_stages for k in range(num_stages)]


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

    schedule: ScheduleSpace = Knots()
    fill: bool = True
    guidance: Reals | None = None
    solvers: Sequence[Solver] = ()
    temperature: Reals | None = None
    num_stages: tuple[int, ...] = ()
    refresh: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "solvers", tuple(self.solvers))
        if self.temperature and not self.temperature[0] > 0:
            raise ValueError(f"temperatures must be above 0, got {self.temperature[0]:g}")

    @property
    def chooses_more(self) -> bool:
        """Whether anything is chosen beside steps and number of stages."""
        return bool(self.guidance or self.solvers or self.temperature or self.refresh)

    def check(self, base: SamplingConfig) -> None:
        """Raises a ValueError for what cannot be chosen; `base` has the rest."""
        if self.temperature and not any(map(_has_temperature, self._solvers(base))):
            raise ValueError("none of the solvers has a temperature: give DDPM or EulerMaruyama, or leave it out")

    def suggest(self, trial: BaseTrial, base: SamplingConfig) -> SamplingConfig:
        """What a trial asks for; `base` has the rest."""
        stages, solver, guidance, cache = base.stages, base.solver, base.guidance, base.cache
        if self.num_stages:
            stages = trial.suggest_categorical("num_stages", self.num_stages)
        if self.solvers:
            named = {repr(offered): offered for offered in self._solvers(base)}
            solver = named[trial.suggest_categorical("solver", list(named))]
        if self.temperature and _has_temperature(solver):
            solver = _at(Range(*self.temperature, whole=False).suggest(trial, "temperature"), solver)
        if self.guidance:
            scale = Range(*self.guidance, whole=False).suggest(trial, "guidance")
            guidance = replace(guidance, scale=scale)
        if self.refresh:
            cache = _every(trial.suggest_categorical("refresh", self.refresh), cache)
        return SamplingConfig(self.schedule.suggest(trial, stages), solver, stages, guidance, cache)

    def encode(self, sampling: SamplingConfig, base: SamplingConfig) -> dict[str, Any]:
        """Parameters of the choice that is most like a config; `base` has what is not chosen."""
        values, offered = self.encode_steps(sampling), self._solvers(base)
        if self.solvers:
            values["solver"] = repr(sampling.solver if sampling.solver in offered else base.solver)
        if self.temperature and (temperature := getattr(sampling.solver, "temperature", None)):
            values["temperature"] = Range(*self.temperature, whole=False).nearest(temperature)
        if self.guidance:
            values["guidance"] = Range(*self.guidance, whole=False).nearest(sampling.guidance.scale)
        if self.refresh:
            period = sampling.cache.refresh if isinstance(sampling.cache, Lazy) else 1
            values["refresh"] = min(self.refresh, key=lambda other: abs(other - period))
        return values

    def encode_steps(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Those of schedule and number of stages alone."""
        values: dict[str, Any] = self.schedule.encode(sampling.schedule, sampling.stages)
        if self.num_stages:
            values["num_stages"] = min(self.num_stages, key=lambda count: abs(count - sampling.stages))
        return values

    def cheapest(self, base: SamplingConfig) -> list[SamplingConfig]:
        """Configs among which the cheapest of all is."""
        return [
            SamplingConfig(self.schedule.cheapest(count), solver, count, replace(base.guidance, scale=scale), cache)
            for count in self.num_stages or (base.stages,)
            for solver in self._solvers(base)
            for scale in self.guidance or (base.guidance.scale,)
            for cache in ([_every(period, base.cache) for period in self.refresh] or [base.cache])
        ]

    def _solvers(self, base: SamplingConfig) -> list[Solver]:
        """All that may be drawn with."""
        return list(dict.fromkeys((base.solver, *self.solvers)))


def _every(period: int, base: FeatureCache | None) -> FeatureCache | None:
    """A cache of this period, otherwise like another."""
    return replace(base if isinstance(base, Lazy) else Lazy(), refresh=period) if period > 1 else None


def _at(temperature: float, solver: Any) -> Solver:
    """The solver with another temperature."""
    return replace(solver, temperature=temperature)


def _has_temperature(solver: Solver) -> bool:
    return hasattr(solver, "temperature")
