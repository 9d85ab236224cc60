"""Families of schedules with few parameters, for search and by hand; steps are rounded half up.

`u = k / (K-1)` runs from 0 at the first stage to 1 at the last; a single stage has `u = 0`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from disa_framework.schedules.base import StepSchedule, check_budget, step_count


class _Curve(StepSchedule):
    """A schedule given by a function of `u`."""

    @abstractmethod
    def value(self, u: float) -> float:
        """Steps, before rounding, at the share `u` of the way."""

    def compute(self, num_stages: int) -> Iterable[int]:
        last = max(num_stages - 1, 1)
        return [math.floor(self.value(k / last) + 0.5) for k in range(num_stages)]


@dataclass(frozen=True)
class Power(_Curve):
    """`late + (early - late) (1 - u)**exponent`: above 1 it falls at once, below 1 it falls late."""

    early: int = 50
    late: int = 5
    exponent: float = 2.0

    def __post_init__(self) -> None:
        step_count(self.early)
        step_count(self.late)
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"exponent must be above 0, got {self.exponent}")

    def value(self, u: float) -> float:
        return self.late + (self.early - self.late) * (1 - u) ** self.exponent


@dataclass(frozen=True)
class Logistic(_Curve):
    """A smooth step from `early` to `late` around `u = midpoint`, reaching both exactly at the ends.

    Args:
        early, late: steps of the first and of the last stage.
        midpoint: where the middle of the fall lies, between 0 and 1.
        steepness: above 0; the larger, the closer to two stages.
    """

    early: int = 50
    late: int = 5
    midpoint: float = 0.5
    steepness: float = 10.0

    def __post_init__(self) -> None:
        step_count(self.early)
        step_count(self.late)
        if not 0 < self.midpoint < 1 or not 0 < self.steepness < math.inf:
            raise ValueError(
                f"need 0 < midpoint < 1 and steepness > 0, got midpoint={self.midpoint}, steepness={self.steepness}"
            )

    def value(self, u: float) -> float:
        def rising(at: float) -> float:
            return math.tanh(self.steepness * (at - self.midpoint) / 2)

        whole = rising(1.0) - rising(0.0)
        share = (rising(1.0) - rising(u)) / whole if whole else 1.0 - u  # which it nears as steepness nears 0
        return self.late + (self.early - self.late) * share


@dataclass(frozen=True)
class PiecewiseLinear(_Curve):
    """Straight lines between knots `(u, steps)`; flat before the first and after the last.

    Args:
        knots: at least one, with strictly increasing `u` in [0, 1].
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots", tuple((float(u), float(steps)) for u, steps in self.knots))
        places = [u for u, _ in self.knots]
        if not places or not 0 <= places[0] <= places[-1] <= 1 or sorted(set(places)) != places:
            raise ValueError(f"knots need strictly increasing places in [0, 1], got {places}")
        for _, steps in self.knots:
            step_count(math.floor(steps + 0.5) if math.isfinite(steps) else steps)

    def value(self, u: float) -> float:
        if u <= self.knots[0][0]:
            return self.knots[0][1]
        for (u0, t0), (u1, t1) in zip(self.knots[:-1], self.knots[1:], strict=True):
            if u <= u1:
                return t0 + (t1 - t0) * (u - u0) / (u1 - u0)
        return self.knots[-1][1]


@dataclass(frozen=True)
class PerStage(StepSchedule):
    """A table: `steps[k]` at stage `k`. It fits runs of exactly `len(steps)` stages."""

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_budget(self.steps, len(self.steps)))

    def compute(self, num_stages: int) -> Iterable[int]:
        return self.steps
