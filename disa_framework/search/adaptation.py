"""The threshold with which an adaptive schedule costs what it may."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

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

    Steps go with the root of the threshold, which says where to look first; between a run that spends too much and one
    that does not, the distance is halved. What spends most within the limit is kept. A stage may have four times as
    many steps as all could have, and the first has twice as many.

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
    if (K := settled.stages) < 2:
        raise ValueError("a schedule adapts to earlier stages, so it needs at least 2 of them")
    even = _LOW + max(bisect.bisect_right(range(_LOW, _MOST), limit, key=lambda steps: cost([steps] * K)) - 1, 0)
    asked = Adaptive(1.0, signal, _LOW, 4 * even, 2 * even)
    if (cheapest := cost([2 * even, *[_LOW] * (K - 1)])) > limit:
        raise ValueError(f"no adaptive schedule costs at most {limit:.6g}: the cheapest costs {cheapest:.6g}")

    def run(schedule: Adaptive) -> list[StageRecord]:
        seen, drawn_with = Records(), replace(settled, schedule=schedule)
        count = batch_size if condition is None else None
        generate(model, condition, drawn_with, seed=seed, batch_size=count, observers=[seen])
        return seen.records

    levels = [asked.level(record) for record in run(replace(asked, low=even, high=even, first=even))]
    place = math.log(max(sum(levels) / len(levels), 1e-12)) + 2 * math.log(asked.high / even)
    bounds, tried = [-math.inf, math.inf], list[tuple[float, float]]()
    for _ in range(_ROUNDS):
        budget = [record.steps for record in run(replace(asked, threshold=math.exp(place)))]
        spent = cost([*budget, *[_LOW] * (K - len(budget))])  # stages that no sample came to are as cheap as can be
        tried.append((spent, place))
        if _CLOSE * limit <= spent <= limit:
            break
        bounds[spent <= limit] = place
        change = 2 * math.log(spent / limit) + math.copysign(_BEYOND, spent - limit)
        place = sum(bounds) / 2 if all(map(math.isfinite, bounds)) else place + change
    within = [pair for pair in tried if pair[0] <= limit]
    return replace(asked, threshold=math.exp((max(within) if within else min(tried))[1]))
