"""Steps decided while an image is drawn, from what its last stage showed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from disa_framework.sampling.history import StageRecord
from disa_framework.schedules.base import Budget, StepSchedule, step_count

Signal = Literal["error", "variance", "straightness"]


@dataclass(frozen=True)
class Adaptive(StepSchedule):
    """`T(k+1) = high sqrt(level(k) / threshold)`, rounded, and kept within `low` and `high`.

    The level of a stage says how hard it was: the `variance` that was left in its tokens, how far its way was from
    `straightness`, or the embedded `error` of its steps times their number, which does not depend on it (see
    `disa_framework.sampling.history.Signals`). If a stage's error is `level / T`, errors that add up are smallest in
    sum with steps in proportion to the root of the level. Levels are means over a batch, whose samples have the same
    steps: what is drawn depends on the batch, and the host waits for the device once a stage.

    Args:
        threshold: level from which on a stage has `high` steps; `disa-search --method adapt` finds the one that
            meets a limit.
        signal: what the level is made of.
        low, high: bounds of the steps.
        first: steps of the first stage, before anything is known; `high` by default.
    """

    threshold: float
    signal: Signal = "error"
    low: int = 2
    high: int = 100
    first: int | None = None

    adapts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal):
            raise ValueError(f"signal must be one of {', '.join(get_args(Signal))}, got {self.signal!r}")
        if not self.threshold > 0:
            raise ValueError(f"need threshold > 0, got {self.threshold}")
        if not step_count(self.low) <= step_count(self.high):
            raise ValueError(f"need low <= high, got {self.low} and {self.high}")
        if self.first is not None:
            step_count(self.first)

    def compute(self, num_stages: int) -> Iterable[int]:
        """The most steps there can be."""
        return [self.high if self.first is None else self.first] + [self.high] * (num_stages - 1)

    def at(self, stage: int, budget: Budget, history: Sequence[StageRecord] = ()) -> int:
        return self.after(self.level(history[-1])) if history else budget[stage]

    def level(self, record: StageRecord) -> float:
        """How hard a stage was, from its `StageRecord`."""
        value = float(getattr(record.signals, self.signal))
        return {"error": value * record.steps, "variance": value, "straightness": 1 - value}[self.signal]

    def after(self, level: float) -> int:
        """Steps of a stage that follows one of this level."""
        wanted = self.high * math.sqrt(max(level, 0.0) / self.threshold)
        return min(max(round(min(wanted, self.high)), self.low), self.high)
