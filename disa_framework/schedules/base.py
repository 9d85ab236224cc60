"""What a step schedule is: a rule that gives every AR stage its number of diffusion steps.

Letters: `K` stages, `k` a stage (0 … K-1), `T(k)` its diffusion steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, SupportsFloat

from disa_framework.sampling.history import StageRecord
from disa_framework.values import MOST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Budget = tuple[int, ...]

MOST_STEPS = 10_000
"""That a stage may have: more is a slip of the pen, and would take for ever."""


def check_budget(steps: Iterable[SupportsFloat], num_stages: int) -> Budget:
    """The steps as a budget, or a ValueError: `num_stages` whole numbers from 1 to `MOST_STEPS`."""
    budget = tuple(whole(t) for t in steps)
    if len(budget) != num_stages:
        raise ValueError(f"a budget for {num_stages} stages needs as many step counts, got {len(budget)}")
    if outside := [(k, t) for k, t in enumerate(budget) if not 1 <= t <= MOST_STEPS]:
        stage, found = outside[0]
        raise ValueError(f"every stage needs 1 to {MOST_STEPS} steps; stage {stage} has {found}")
    return budget


def whole(steps: SupportsFloat) -> int:
    """A step count as an integer; a ValueError rather than a rounded one."""
    # NaN and infinity leave no whole number either.
    if isinstance(steps, bool) or not isinstance(steps, SupportsFloat) or float(steps) % 1 != 0:
        raise ValueError(f"a stage takes a whole number of steps, got {steps!r}")
    return int(float(steps))


def step_count(steps: SupportsFloat) -> int:
    """A step count that a stage can have, or a ValueError."""
    return check_budget([whole(steps)], 1)[0]


class StepSchedule(ABC):
    """Subclass as a frozen dataclass and implement `compute`.

    Attributes:
        adapts: whether `at` looks at the signals of earlier stages, which are then taken.
    """

    adapts: ClassVar[bool] = False

    @abstractmethod
    def compute(self, num_stages: int) -> Iterable[int]:
        """`T(0), …, T(K-1)` for `K = num_stages >= 1`."""

    def budget(self, num_stages: int) -> Budget:
        """The checked budget.

        Raises:
            ValueError: if there is no stage, or a stage would get fewer than 1 step.
        """
        if not 1 <= num_stages <= MOST:
            raise ValueError(f"a sample has 1 to {MOST:,} stages, got num_stages={num_stages}")
        return check_budget(self.compute(num_stages), num_stages)

    def at(self, stage: int, budget: Budget, history: Sequence[StageRecord] = ()) -> int:
        """`T(stage)`: what the run's budget says. An adaptive schedule departs from it by what `history`,
        the records of earlier stages, shows."""
        return budget[stage]

    def plot(self, num_stages: int, ax: Axes | None = None) -> Axes:
        """Draws the budget as steps over stages, and returns the axes."""
        from matplotlib.figure import Figure

        axes = Figure().subplots() if ax is None else ax
        budget = self.budget(num_stages)
        axes.step(range(num_stages), budget, where="mid", label=f"{self} ({sum(budget)} steps)")
        axes.set(xlabel="stage", ylabel="diffusion steps", ylim=(0, None))
        return axes
