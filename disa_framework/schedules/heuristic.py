"""The paper's hand-made schedules (DiSA, arXiv 2505.20297), with its integer budgets.

`early` and `late` are the paper's `T_early` and `T_late`: the steps of the first and of the last stage. A
ramp may rise as well as fall. Ramps are computed in floating point and truncated toward zero in the
order of operations of the published code, which decides between neighbouring integers. With one stage
a ramp has `early` steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from disa_framework.schedules.base import StepSchedule, step_count


@dataclass(frozen=True)
class Constant(StepSchedule):
    """`steps` at every stage."""

    steps: int = 50

    def __post_init__(self) -> None:
        step_count(self.steps)

    def compute(self, num_stages: int) -> Iterable[int]:
        return [self.steps] * num_stages


@dataclass(frozen=True)
class _Ramp(StepSchedule):
    """From `early` steps at the first stage to `late` steps at the last."""

    early: int = 50
    late: int = 5

    def __post_init__(self) -> None:
        step_count(self.early)
        step_count(self.late)


@dataclass(frozen=True)
class TwoStage(_Ramp):
    """`early` steps while `k < (K-1)/2`, then `late` steps."""

    def compute(self, num_stages: int) -> Iterable[int]:
        if num_stages == 1:
            return [self.early]
        return [self.early if k < (num_stages - 1) / 2 else self.late for k in range(num_stages)]


@dataclass(frozen=True)
class Linear(_Ramp):
    """`int((K-1-k)/(K-1) (early - late)) + late`."""

    def compute(self, num_stages: int) -> Iterable[int]:
        last = num_stages - 1
        if last == 0:
            return [self.early]
        span = self.early - self.late
        return [int((last - k) / last * span) + self.late for k in range(num_stages)]


@dataclass(frozen=True)
class Cosine(_Ramp):
    """`int((cos(pi k/(K-1)) + 1)/2 (early - late)) + late`."""

    def compute(self, num_stages: int) -> Iterable[int]:
        last = num_stages - 1
        if last == 0:
            return [self.early]
        span = self.early - self.late
        return [int((math.cos(math.pi * k / last) + 1) / 2 * span) + self.late for k in range(num_stages)]
