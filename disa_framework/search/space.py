"""What a study may choose: steps of a family of schedules, and on request other parts of a sampling config.

Letters: `K` stages, `G` groups of stages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from optuna.trial import BaseTrial

from disa_framework import values
from disa_framework.models.base import ARDiffusionModel
from disa_framework.runtime.feature_cache import Lazy
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.order import CheckerboardOrder, HaltonOrder, TokenOrder
from disa_framework.sampling.stage_sizes import ExponentialSizes, LinearSizes, StageSizes
from disa_framework.schedules import PerStage, PiecewiseLinear, StepSchedule
from disa_framework.schedules.base import step_count
from disa_framework.solvers import Density, DPMSolverPP, FlowMap, LogSNR, PowerTime, RectifiedFlow, Solver

_MOST = 1000  # counts that a schedule is made of


class ScheduleSpace(ABC):
    """A family of schedules, each made of a few step counts. Subclass as a frozen dataclass, and implement the rest.

    Attributes:
        low, high: least and most that a count may be.
        kind: what a count is called.
        fewest: counts that a member needs.
    """

    low: int
    high: int
    kind: ClassVar[str] = "steps"
    fewest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Raises a ValueError for bounds that are none, and for counts that are too few or too many."""
        if not self.fewest <= self.size <= _MOST:
            raise ValueError(f"{type(self).__name__} needs from {self.fewest} to {_MOST} counts, got {self.size}")
        if not step_count(self.low) <= step_count(self.high):
            raise ValueError(f"need low <= high, got {self.low} and {self.high}")

    @property
    @abstractmethod
    def size(self) -> int:
        """How many counts there are."""

    @abstractmethod
    def build(self, counts: Sequence[int], num_stages: int) -> StepSchedule:
        """The member that is made of these counts."""

    @abstractmethod
    def describe(self, schedule: StepSchedule, num_stages: int) -> Sequence[float]:
        """Counts of what is most like any schedule; they may be out of bounds, and no whole numbers."""

    @property
    def _names(self) -> list[str]:
        return [f"{self.kind}_{i}" for i in range(self.size)]

    def suggest(self, trial: BaseTrial, num_stages: int) -> StepSchedule:
        """The member that a trial asks for."""
        counts = [trial.suggest_int(name, self.low, self.high, log=True) for name in self._names]
        return self.build(counts, num_stages)

    def encode(self, schedule: StepSchedule, num_stages: int) -> dict[str, int]:
        """Parameters of the member most like a schedule, which need not be a member itself."""
        counts = self.describe(schedule, num_stages)
        inside = (round(min(max(count, self.low), self.high)) for count in counts)
        return dict(zip(self._names, inside, strict=True))

    def cheapest(self, num_stages: int) -> StepSchedule:
        """The member with the fewest steps."""
        return self.build([self.low] * self.size, num_stages)


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

    kind, fewest = "knot", 2

    @property
    def size(self) -> int:
        return self.count

    def build(self, counts: Sequence[int], num_stages: int) -> StepSchedule:
        return PiecewiseLinear(tuple(zip(self._places(), counts, strict=True)))

    def describe(self, schedule: StepSchedule, num_stages: int) -> Sequence[float]:
        if not isinstance(schedule, PiecewiseLinear):
            last = max(num_stages - 1, 1)
            schedule = PiecewiseLinear(tuple((k / last, t) for k, t in enumerate(schedule.budget(num_stages))))
        return [schedule.value(u) for u in self._places()]

    def _places(self) -> list[float]:
        return [i / (self.count - 1) for i in range(self.count)]


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

    @property
    def size(self) -> int:
        return self.groups

    def build(self, counts: Sequence[int], num_stages: int) -> StepSchedule:
        steps = sorted(counts, reverse=True) if self.monotone else counts
        return PerStage(tuple(steps[k * self.groups // num_stages] for k in range(num_stages)))

    def describe(self, schedule: StepSchedule, num_stages: int) -> Sequence[float]:
        members: list[list[int]] = [[] for _ in range(self.groups)]
        for k, steps in enumerate(schedule.budget(num_stages)):
            members[k * self.groups // num_stages].append(steps)
        # With fewer stages than groups some are empty: any value will do.
        return [sum(steps) / len(steps) if steps else self.low for steps in members]


class Range:
    """Numbers to choose from, whatever the one is that there is."""

    def __init__(self, own: float | None, low: float, high: float) -> None:
        self.values = (low, high)

    def suggest(self, trial: BaseTrial, name: str) -> float:
        return trial.suggest_float(name, *self.values)

    def encode(self, value: float) -> float:
        """The nearest of them."""
        return min(max(value, self.values[0]), self.values[1])


class Options:
    """Values to choose from beside the one that there is; all of them are whole numbers, or none."""

    def __init__(self, own: Any, *given: Any) -> None:
        self.values = tuple(dict.fromkeys((own, *given)))

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        labels = [self._label(value) for value in self.values]
        return self.values[labels.index(trial.suggest_categorical(name, labels))]

    def encode(self, value: Any) -> Any:
        """The label of the value; if it is not there, of the nearest number, or of the one that there is."""
        if value not in self.values:
            value = min(self.values, key=lambda v: abs(v - value)) if isinstance(value, int) else self.values[0]
        return self._label(value)

    def _label(self, value: Any) -> Any:
        return value if isinstance(value, int) else values.text(value)


class Lever(NamedTuple):
    """A part of a config that a study may choose; the space has a field of its name.

    Attributes:
        read: its value in a config.
        put: the config with another value.
        offers: `Range` where the field has a least and a greatest value, `Options` where it lists them.
        there: whether a config has such a part.
    """

    read: Callable[[SamplingConfig], Any]
    put: Callable[[SamplingConfig, Any], SamplingConfig]
    offers: type[Range] | type[Options] = Options
    there: Callable[[SamplingConfig], bool] = lambda base: True


def _with_temperature(base: SamplingConfig, temperature: float) -> SamplingConfig:
    solver: Any = base.solver
    return replace(base, solver=replace(solver, temperature=temperature))


def _guidance(part: str, offers: type[Range] | type[Options]) -> Lever:
    """That of a field of guidance."""
    return Lever(
        lambda base: getattr(base.guidance, part),
        lambda base, value: replace(base, guidance=replace(base.guidance, **{part: value})),
        offers,
    )


def _with_refresh(base: SamplingConfig, period: int) -> SamplingConfig:
    cache = base.cache if isinstance(base.cache, Lazy) else Lazy()
    return replace(base, cache=replace(cache, refresh=period) if period > 1 else None)


def _at_one(sampling: SamplingConfig) -> Solver:
    """The solver, at a temperature of 1 if it has one."""
    there = LEVERS["temperature"].there(sampling)
    return _with_temperature(sampling, 1.0).solver if there else sampling.solver


LEVERS = {
    "num_stages": Lever(lambda base: base.stages, lambda base, count: replace(base, num_stages=count)),
    "solver": Lever(lambda base: base.solver, lambda base, solver: replace(base, solver=solver)),
    "temperature": Lever(
        lambda base: getattr(base.solver, "temperature", 1.0),
        _with_temperature,
        Range,
        lambda base: hasattr(base.solver, "temperature"),
    ),
    "guidance": _guidance("scale", Range),
    "guided_stages": _guidance("stages", Options),
    "reuse": _guidance("reuse", Options),
    "refresh": Lever(lambda base: getattr(base.cache, "refresh", 1), _with_refresh),
    "order": Lever(lambda base: base.order, lambda base, order: replace(base, order=order)),
    "stage_sizes": Lever(lambda base: base.stage_sizes, lambda base, sizes: replace(base, stage_sizes=sizes)),
}
"""What may be chosen beside the schedule, in this order."""


@dataclass(frozen=True)
class Space:
    """All that a study chooses. What is not given here stays as it is.

    Args:
        schedule: family of the schedules. Under a limit steps are proportions, multiplied by whatever makes the most of
            it; for Pareto fronts they are counts.
        num_stages: numbers of stages to choose from.
        solver: solvers to choose from; grid, clip and order are options of theirs.
        temperature: least and greatest factor on the noise of the steps, of solvers that draw any. Few steps lose
            variance, which a temperature above 1 gives back.
        guidance: least and greatest scale of guidance.
        guided_stages: intervals of the stages to choose from, between which guidance acts.
        reuse: periods to choose from, after which what guidance adds is computed anew; 1 does so always.
        refresh: periods of feature caching to choose from; 1 does without.
        order: of the tokens of a masked model, to choose from.
        stage_sizes: of a masked model, to choose from.
    """

    schedule: ScheduleSpace = Knots()
    num_stages: tuple[int, ...] = ()
    solver: Sequence[Solver] = ()
    temperature: tuple[float, float] | None = None
    guidance: tuple[float, float] | None = None
    guided_stages: Sequence[tuple[float, float]] = ()
    reuse: tuple[int, ...] = ()
    refresh: tuple[int, ...] = ()
    order: Sequence[TokenOrder] = ()
    stage_sizes: Sequence[StageSizes] = ()

    def __post_init__(self) -> None:
        for name in ("solver", "order", "stage_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "guided_stages", tuple(map(tuple, self.guided_stages)))
        for name, lever in LEVERS.items():
            given = getattr(self, name)
            if given and lever.offers is Range and not 0 <= given[0] <= given[1]:
                raise ValueError(f"{name} must be two numbers from 0 on, the lower one first, got {[*given]}")

    @classmethod
    def whole(cls, model: ARDiffusionModel, base: SamplingConfig, cached: bool) -> Space:
        """All that there is to choose for a model: stages, their sizes, order, solver, temperature, guidance, cache.

        Args:
            base: settled; has what is not chosen.
            cached: whether caching and reuse may be chosen, which save time, not evaluations.
        """
        K, masked = base.stages, model.layout is not None
        grids = (LogSNR(), PowerTime()) if isinstance(model.process, RectifiedFlow) else (LogSNR(),)
        solvers = (*(DPMSolverPP(grid=grid) for grid in grids), DPMSolverPP(grid=LogSNR(), eta=0.5))
        return cls(
            num_stages=tuple(
                count for count in (K, 3 * K // 4, K // 2) if model.min_stages <= count <= model.max_stages
            ),
            solver=() if isinstance(model.process, Density | FlowMap) else solvers,  # which have solvers of their own
            temperature=(0.85, 1.15),
            guided_stages=((0.0, 0.5), (0.25, 1.0)) if base.guidance.active else (),
            # Of a masked model's time the head has too little: docs/results.md.
            reuse=(1, 2, 4) if cached and base.guidance.active and not masked else (),
            refresh=(1, 2, 4) if cached and model.caches_features else (),
            order=(HaltonOrder(), CheckerboardOrder()) if masked else (),
            stage_sizes=(LinearSizes(), ExponentialSizes()) if masked else (),
        )

    @property
    def steps(self) -> Space:
        """The part of it that chooses schedule and number of stages alone."""
        return Space(self.schedule, self.num_stages)

    def suggest(self, trial: BaseTrial, base: SamplingConfig) -> SamplingConfig:
        """What a trial asks for; `base` has the rest."""
        sampling = base
        for name, lever, offered in self._offered(base):
            if lever.there(sampling):
                sampling = lever.put(sampling, offered.suggest(trial, name))
        return replace(sampling, schedule=self.schedule.suggest(trial, sampling.stages))

    def with_steps(self, sampling: SamplingConfig, other: SamplingConfig, base: SamplingConfig) -> SamplingConfig:
        """A config with the steps of another one, and with its solver if that is not one to choose."""
        steps = replace(sampling, schedule=PerStage(other.budget), num_stages=other.stages)
        if any(_at_one(other) == _at_one(replace(base, solver=solver)) for solver in (base.solver, *self.solver)):
            return steps
        temperature, kept = LEVERS["temperature"], replace(steps, solver=other.solver)
        chosen = self.temperature and temperature.there(sampling) and temperature.there(kept)
        return temperature.put(kept, temperature.read(sampling)) if chosen else kept

    def encode(self, sampling: SamplingConfig, base: SamplingConfig) -> dict[str, Any]:
        """Parameters of the choice that is most like a config; `base` has what is not chosen."""
        there = [item for item in self._offered(base) if item[1].there(sampling)]
        found = {name: offered.encode(lever.read(sampling)) for name, lever, offered in there}
        return found | self.schedule.encode(sampling.schedule, sampling.stages)

    def cheapest(self, base: SamplingConfig) -> list[SamplingConfig]:
        """Configs among which the cheapest of all is.

        Raises:
            ValueError: if something is to be chosen that none of them has.
        """
        found = [base]
        for name, lever, offered in self._offered(base):
            if not any(map(lever.there, found)):
                raise ValueError(f"none of the solvers has a {name}: offer one that has, such as DDPM, or leave it out")
            found = [
                lever.put(sampling, value) if lever.there(sampling) else sampling
                for sampling in found
                for value in offered.values
            ]
        return [replace(sampling, schedule=self.schedule.cheapest(sampling.stages)) for sampling in found]

    def _offered(self, base: SamplingConfig) -> Iterator[tuple[str, Lever, Range | Options]]:
        """What there is to choose from, of all that is to be chosen."""
        for name, lever in LEVERS.items():
            if given := getattr(self, name):
                yield name, lever, lever.offers(lever.read(base), *given)
