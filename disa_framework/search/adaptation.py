"""The threshold with which an adaptive schedule costs what it may."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from disa_framework.generation import Observer, StageRecord, generate
from disa_framework.guidance import Guidance
from disa_framework.models.base import ARDiffusionModel, Condition
from disa_framework.models.lazy import Lazy
from disa_framework.schedules import Adaptive, Budget
from disa_framework.schedules.adaptive import Signal
from disa_framework.solvers import Solver

_MOST, _ROUNDS, _HALVINGS, _LEAST = 1000, 8, 60, 1e-12
_CLOSE, _BEYOND = 0.99, 0.1


class Records(Observer):
    """Keeps what stages leave behind."""

    def __init__(self) -> None:
        self.records: list[StageRecord] = []

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.records.append(record)

    @property
    def budget(self) -> Budget:
        """The steps that were taken."""
        return tuple(record.steps for record in self.records)


def fit_adaptive(
    model: ARDiffusionModel,
    condition: Condition | None = None,
    *,
    limit: float,
    solver: Solver,
    cost: Callable[[Sequence[int]], float] = sum,
    signal: Signal = "error",
    low: int = 2,
    high: int | None = None,
    first: int | None = None,
    exponent: float = 0.5,
    guidance: Guidance | None = None,
    cache: Lazy | None = None,
    num_stages: int | None = None,
    batch_size: int = 500,
    seed: int = 0,
) -> Adaptive:
    """An adaptive schedule that spends a limit on samples like these.

    A run shows the levels of its stages, and they say with which threshold it would have met the limit. Levels change
    a little with the steps, so runs follow that halve the distance; what spends most within the limit is kept.

    Args:
        model: whose schedule is wanted.
        condition: of the samples, labels `[B]` or prompts.
        limit: greatest cost of a run.
        solver, guidance, cache, num_stages: as the schedule is to be used with.
        cost: of a budget; its steps by default.
        signal, low, exponent: as of `Adaptive`.
        high, first: as of `Adaptive`; four times and twice as many steps as all stages could have, by default.
        batch_size: `B`, where there is no condition.
        seed: of the noise.

    Raises:
        ValueError: if there is one stage only, or if not even `low` steps at all stages but the first are within the
            limit.
    """
    stages = model.max_stages if num_stages is None else num_stages
    if stages < 2:
        raise ValueError("a schedule adapts to earlier stages, so it needs at least 2 of them")
    even = _even(cost, stages, limit, low)
    most, start = high or 4 * even, first or min(2 * even, high or 2 * even)

    def make(threshold: float, low: int = low, high: int = most, first: int = start) -> Adaptive:
        return Adaptive(threshold, signal, low, high, first, exponent)

    def run(schedule: Adaptive) -> tuple[list[float], float]:
        """Levels of all stages but the last, and what was spent."""
        seen = Records()
        generate(
            model, condition, schedule=schedule, solver=solver, num_stages=num_stages, guidance=guidance, cache=cache,
            seed=seed,
            batch_size=batch_size if condition is None else None, observers=[seen],
        )  # fmt: skip
        return [schedule.level(record) for record in seen.records[:-1]], cost(seen.budget)

    levels, _ = run(make(1.0, low=even, high=even, first=even))
    place = _log_threshold(levels, make, cost, limit)
    bounds, tried = [-math.inf, math.inf], []
    for _ in range(_ROUNDS):
        schedule = make(math.exp(place))
        _, spent = run(schedule)
        tried.append((spent, schedule))
        if _CLOSE * limit <= spent <= limit:
            break
        bounds[spent <= limit] = place
        # Until there are runs on both sides: steps go with a power of the threshold.
        change = math.log(spent / limit) / exponent + math.copysign(_BEYOND, spent - limit)
        place = sum(bounds) / 2 if all(map(math.isfinite, bounds)) else place + change
    within = [pair for pair in tried if pair[0] <= limit]
    return max(within, key=_first)[1] if within else min(tried, key=_first)[1]


def _even(cost: Callable[[Sequence[int]], float], stages: int, limit: float, low: int) -> int:
    """The steps that every stage could have within a limit, from `low` on."""
    fitting = bisect.bisect_right(range(low, _MOST), limit, key=lambda steps: cost([steps] * stages))
    return low + max(fitting - 1, 0)


def _first(pair: tuple[float, Adaptive]) -> float:
    return pair[0]


def _log_threshold(
    levels: Sequence[float], make: Callable[[float], Adaptive], cost: Callable[[Sequence[int]], float], limit: float
) -> float:
    """Of the smallest threshold within the limit, if stages had these levels whatever their steps."""

    def costs(place: float) -> float:
        schedule = make(math.exp(place))
        return cost([*schedule.compute(1), *map(schedule.after, levels)])

    low, high = math.log(max(min(levels), _LEAST)) - 5, math.log(max(*levels, _LEAST)) + 30
    if costs(high) > limit:
        raise ValueError(
            f"no budget costs at most {limit}: the cheapest feasible cost is {costs(high)}; lower the schedule's "
            "first or low steps"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if costs(middle) <= limit else (middle, high)
    return high
