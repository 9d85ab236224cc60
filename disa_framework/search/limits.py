"""What a sample may cost, and as how many steps: the only place that turns a limit into steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from disa_framework.measure.cost import CostModel, Unit
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.solvers import Solver

_MOST = 500  # steps of a stage
_HALVINGS = 30
_ATTEMPTS = 6
_USED = 0.98  # of a limit that what is found may take: who times it again will see a percent more or less
_ENOUGH = 0.9  # of it that what is found again should take at least
_AIMED = 0.96  # of it that is asked for when what was found takes more or less than these


@dataclass(frozen=True)
class Limit:
    """What a sample may cost: `Limit.seconds(0.05)`, `Limit.speedup(2.5)`, `Limit.evaluations(96)`; or how good it must
    be: `Limit.quality(0.02)`.

    Args:
        unit: in which costs are: seconds per sample with the device and batch size in use, or head evaluations.
        most: greatest cost.
        times: or so many times as fast as the baseline.
        worse: or the least cost at which the distance is at most this share above the baseline's. With none of these
            there is no limit.
    """

    unit: Unit = "seconds"
    most: float | None = None
    times: float | None = None
    worse: float | None = None

    def __post_init__(self) -> None:
        given = [number for number in (self.most, self.times, self.worse) if number is not None]
        if len(given) > 1:
            raise ValueError(f"give one limit, a greatest cost, a speedup or a quality, got {given}")
        least = 0 if self.worse is None else -1  # a distance of nothing
        if given and not least < given[0] < math.inf:
            raise ValueError(f"a limit must be above {least}, got {given[0]:g}")

    @classmethod
    def seconds(cls, most: float) -> Limit:
        """Seconds per sample."""
        return cls("seconds", most)

    @classmethod
    def evaluations(cls, most: float) -> Limit:
        """Head evaluations per sample."""
        return cls("evaluations", most)

    @classmethod
    def speedup(cls, times: float, unit: Unit = "seconds") -> Limit:
        """So many times as fast as the baseline."""
        return cls(unit, times=times)

    @classmethod
    def quality(cls, worse: float, unit: Unit = "seconds") -> Limit:
        """The least cost at which the distance is at most this share above the baseline's: 0.02 is 2 %."""
        return cls(unit, worse=worse)

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return (self.most, self.times, self.worse) != (None, None, None)

    def cost(self, costs: Costs) -> float | None:
        """The greatest cost, or none; of a quality the baseline's.

        Raises:
            ValueError: for a limit that follows from a baseline whose steps are not fixed.
        """
        if self.times is None and self.worse is None:
            return self.most
        if costs.base.schedule.adapts:
            raise ValueError("such a limit is over a baseline of fixed steps: give another schedule, or another limit")
        return costs(costs.base) / (self.times or 1)


class Costs:
    """What a sample costs with a sampling config. Cost models are made when they are needed, and kept.

    Args:
        module: what draws; its own sampling config is the baseline.
        measure: makes the cost model of a module that draws in a certain way: `analytic_cost`, or one with a stopwatch.
    """

    def __init__(self, module: ARDiffusionModule, measure: Callable[[ARDiffusionModule], CostModel]) -> None:
        self.module, self.measure, self.base = module, measure, module.sampling
        self._models: dict[SamplingConfig, CostModel] = {}

    def model(self, sampling: SamplingConfig) -> CostModel:
        """For all schedules of this config's number of stages, guidance and cache, with its solver."""
        shared = sharing_costs(sampling)
        if shared not in self._models:
            # Of the baseline's solver, which takes any number of steps: an evaluation is the same for all.
            self._models[shared] = self.measure(self.module.drawing(replace(sampling, solver=self.base.solver)))
        return replace(self._models[shared], solver=sampling.solver)

    def __call__(self, sampling: SamplingConfig) -> float:
        return self.model(sampling)(sampling.budget)

    @property
    def unit(self) -> Unit:
        """The same for all configs."""
        return self.model(self.base).unit


def sharing_costs(sampling: SamplingConfig) -> SamplingConfig:
    """The same for all configs that have one cost model; an order costs nothing."""
    guidance = replace(sampling.guidance, scale=2.0 if sampling.guidance.active else 1.0)
    return SamplingConfig(
        num_stages=sampling.stages, guidance=guidance, cache=sampling.cache, stage_sizes=sampling.stage_sizes
    )


def filled(sampling: SamplingConfig, costs: Costs, limit: float, least: int = 1) -> SamplingConfig:
    """The config with a multiple of its steps, as many as a limit allows, and in no stage fewer than `least`.

    Stages of equal steps would grow together. So the last step is given to one after the other, early stages first,
    while the limit allows.
    """

    def scaled(factor: float) -> SamplingConfig:
        steps = (max(least, math.floor(factor * count)) for count in sampling.budget)
        taken = (sampling.solver.at(stage).taken(count) for stage, count in enumerate(steps))
        return replace(sampling, schedule=PerStage(tuple(taken)))

    low, high = 0.0, _MOST / max(sampling.budget)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if costs(scaled(middle)) <= limit else (low, middle)
    found = scaled(low)
    for stage, steps in enumerate(scaled(high).budget):
        budget = (*found.budget[:stage], steps, *found.budget[stage + 1 :])
        longer = replace(found, schedule=PerStage(budget))
        found = longer if costs(longer) <= limit else found
    return found


def shortened(sampling: SamplingConfig, costs: Costs, limit: float, least: int = 1) -> SamplingConfig:
    """The config; if it costs more than a limit, with as many of its steps as that allows, see `filled`."""
    return sampling if costs(sampling) <= limit else filled(sampling, costs, limit, least)


def fitted_ramps(
    costs: Costs,
    limit: float,
    falls: Sequence[float] = (1.7, 3.0, 5.0, 10.0),
    num_stages: Sequence[int] = (),
    solvers: Sequence[Solver] = (),
) -> dict[str, SamplingConfig]:
    """The hand-made schedules with as many steps as a limit allows, by name; those that meet it.

    Args:
        costs: of configs; all but the schedule is the baseline's.
        limit: greatest cost.
        falls: by what factors ramps fall from the first stage to the last; published ones fall by 10.
        num_stages, solvers: others than the baseline's, all of which constant schedules are for, too.
    """
    base = costs.base
    found = dict[str, SamplingConfig | None]()
    for solver in dict.fromkeys((base.solver, *solvers)):
        for count in dict.fromkeys((base.stages, *num_stages)):
            differs = [f"{count} stages"] * (count != base.stages) + [f"{solver}"] * (solver != base.solver)
            name = f"Constant ({', '.join(differs)})" if differs else "Constant"
            found[name] = _largest(costs, replace(base, solver=solver, num_stages=count), limit, Constant)
    for ramp in (Linear, Cosine, TwoStage):
        names = {f"{ramp.__name__} {fall:g}:1": partial(_falling, ramp, fall) for fall in falls}
        found |= {name: _largest(costs, base, limit, member) for name, member in names.items()}
    return {name: sampling for name, sampling in found.items() if sampling is not None}


def _falling(ramp: Callable[[int, int], StepSchedule], fall: float, early: int) -> StepSchedule:
    return ramp(early, max(1, round(early / fall)))


def _largest(
    costs: Costs, base: SamplingConfig, limit: float, member: Callable[[int], StepSchedule]
) -> SamplingConfig | None:
    found = None
    for steps in range(1, _MOST + 1):
        sampling = replace(base, schedule=member(steps))
        try:
            cost = costs(sampling)
        except ValueError:  # some grids have no such number of steps
            continue
        if cost > limit:
            break
        found = sampling
    return found


@dataclass(frozen=True)
class Timed:
    """A config that was timed, in turn with others.

    Attributes:
        sampling: what was timed.
        limit: seconds per sample; that of a speedup is what the baseline took at the same time, divided.
        latencies: seconds per sample of the config and of each of its rivals, of which the last one is the baseline.
    """

    sampling: SamplingConfig
    limit: float
    latencies: tuple[float, ...]

    @property
    def within(self) -> bool:
        """Whether it meets the limit."""
        return self.latencies[0] <= self.limit

    def __str__(self) -> str:
        milliseconds, limit = 1000 * self.latencies[0], 1000 * self.limit
        faster = self.latencies[-1] / self.latencies[0]
        kept = "within" if self.within else "above, though ever fewer steps were tried,"
        return (
            f"timed, it takes {milliseconds:.4g} ms a sample, {kept} the limit of {limit:.4g}; "
            f"the baseline, timed in turn with it, takes {faster:.3g} times as long"
        )


def meeting_the_limit(
    within: Callable[[float], SamplingConfig],
    costs: Costs,
    limit: Limit,
    latencies: Callable[[Sequence[SamplingConfig]], Sequence[float]],
    rivals: Sequence[SamplingConfig],
) -> Timed:
    """What is found within a limit in seconds, lowered as far as the clock says that it must be.

    Machines change speed. So rivals are timed in turn with what is found, and a speedup is over what the baseline takes
    then, not over what it took when the cost model was fitted. A slow spell may ask for too much; so what meets the
    limit by far is found again within more. Where nothing meets the limit, the result is what was tried last, and says
    so.

    Args:
        within: a config whose predicted cost is at most this; its ValueError, if there is none, is raised.
        costs: in seconds.
        limit: a greatest cost, or a speedup.
        latencies: times configs in turn.
        rivals: other configs to time; the last one is the baseline.
    """
    most, best = limit.cost(costs), None
    assert most is not None
    aim, sampling = most, within(most)
    for _ in range(_ATTEMPTS):
        took = latencies([sampling, *rivals])
        timed = Timed(sampling, most if limit.times is None else took[-1] / limit.times, tuple(took))
        cost = min(aim, costs(sampling))  # of an adaptive schedule what is predicted is the most that it may take
        if took[0] <= _USED * timed.limit and (best is None or cost > best[0]):
            best = cost, timed
            if aim == most or took[0] >= _ENOUGH * timed.limit:
                break
        aim = min(most, cost * _AIMED * timed.limit / took[0])
        try:
            sampling = within(aim)
        except ValueError:  # nothing costs so little
            break
        if sampling == timed.sampling:  # steps are whole, there is nothing in between
            break
    return best[1] if best else timed
