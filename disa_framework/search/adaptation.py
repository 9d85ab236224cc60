"""The threshold with which an adaptive schedule costs what it may."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from disa_framework.models.base import ARDiffusionModel
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer, generate
from disa_framework.sampling.history import StageRecord
from disa_framework.schedules import Adaptive, Budget
from disa_framework.schedules.adaptive import Signal

_LOW, _MOST = 2, 1000  # steps
_ROUNDS, _CLOSE, _BEYOND = 12, 0.99, 0.1


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
    limit: float,
    condition: Condition | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    *,
    cost: Callable[[Sequence[int]], float] = sum,
    signal: Signal = "error",
    batch_size: int = 500,
    seed: int = 0,
) -> Adaptive:
    """An adaptive schedule that spends a limit on samples like these.

    Steps go with the root of the threshold, which says where to look first. A stage may have four times as many steps
    as all could have, and the first has twice as many.

    Args:
        model: whose schedule is wanted.
        limit: greatest cost of a run.
        condition: of the samples, `B` of them.
        sampling: as the schedule is to be used with.
        cost: of a budget; its steps by default.
        signal: as of `Adaptive`.
        batch_size: `B`, where there is no condition.
        seed: of the noise.

    Raises:
        ValueError: if there is one stage only, or the limit is below what such a schedule costs at least.
    """
    settled = model.settle(sampling)
    asked, alike = _unfitted(settled.stages, limit, cost, signal)
    draw = partial(generate, model, condition, seed=seed, batch_size=batch_size if condition is None else None)

    def spent(place: float) -> float:
        budget = _drawn(draw, replace(settled, schedule=replace(asked, threshold=math.exp(place)))).budget
        return cost([*budget, *[_LOW] * (settled.stages - len(budget))])  # stages that no sample came to are cheap

    levels = [asked.level(record) for record in _drawn(draw, replace(settled, schedule=alike)).records]
    place = math.log(max(sum(levels) / len(levels), 1e-12)) + 2 * math.log(asked.high / alike.high)
    return replace(asked, threshold=math.exp(_nearest(spent, limit, place)))


def _drawn(draw: Callable[..., Tensor], sampling: SamplingConfig) -> Records:
    """What a run leaves behind."""
    seen = Records()
    draw(sampling, observers=[seen])
    return seen


def _unfitted(
    stages: int, limit: float, cost: Callable[[Sequence[int]], float], signal: Signal
) -> tuple[Adaptive, Adaptive]:
    """The schedule with any threshold, and one of as many steps at all stages as the limit allows."""
    if stages < 2:
        raise ValueError("a schedule adapts to earlier stages, so it needs at least 2 of them")
    even = _LOW + max(bisect.bisect_right(range(_LOW, _MOST), limit, key=lambda steps: cost([steps] * stages)) - 1, 0)
    if (cheapest := cost([2 * even, *[_LOW] * (stages - 1)])) > limit:
        raise ValueError(f"no adaptive schedule costs at most {limit:.6g}: the cheapest costs {cheapest:.6g}")
    return Adaptive(1.0, signal, _LOW, 4 * even, 2 * even), Adaptive(1.0, signal, even, even)


def _nearest(spent: Callable[[float], float], limit: float, place: float) -> float:
    """Where the most within a limit is spent, from a first place on; the further on, the less is spent.

    Between a place where too much is spent and one where it is not, the distance is halved.
    """
    bounds, tried = [-math.inf, math.inf], list[tuple[float, float]]()
    for _ in range(_ROUNDS):
        cost = spent(place)
        tried.append((cost, place))
        if _CLOSE * limit <= cost <= limit:
            break
        bounds[cost <= limit] = place
        change = 2 * math.log(cost / limit) + math.copysign(_BEYOND, cost - limit)
        place = sum(bounds) / 2 if all(map(math.isfinite, bounds)) else place + change
    within = [pair for pair in tried if pair[0] <= limit]
    return (max(within) if within else min(tried))[1]
