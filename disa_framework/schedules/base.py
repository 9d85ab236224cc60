"""What a step schedule is: a rule that gives every AR stage its number of diffusion steps.

Letters: `K` stages, `k` a stage (0 … K-1), `T(k)` its diffusion steps.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

from disa_framework.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Budget = tuple[int, ...]


def check_budget(steps: Iterable[int], num_stages: int) -> Budget:
    """The steps as a budget, or a ValueError: `num_stages` whole numbers, none below 1."""
    budget = tuple(whole(t) for t in steps)
    if len(budget) != num_stages:
        raise ValueError(f"a budget for {num_stages} stages needs as many step counts, got {len(budget)}")
    if low := [(k, t) for k, t in enumerate(budget) if t < 1]:
        raise ValueError(f"every stage needs at least 1 step; stage {low[0][0]} has {low[0][1]}")
    return budget


def whole(steps: float) -> int:
    """A step count as an integer; a ValueError rather than a rounded one."""
    if steps % 1:  # also of NaN and infinity
        raise ValueError(f"a stage takes a whole number of steps, got {steps}")
    return int(steps)


class StepSchedule(nn.Module, ABC):
    """Subclass, hand the constructor's arguments on by name, and implement `compute`.

    Attributes:
        arguments: what the schedule was made with; an equal one can be made of them.
        reads_signals: whether `steps` looks at the signals of earlier stages, which are then taken.
    """

    reads_signals: bool = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    @abstractmethod
    def compute(self, num_stages: int) -> Iterable[int]:
        """`T(0), …, T(K-1)` for `K = num_stages >= 1`."""

    def budget(self, num_stages: int) -> Budget:
        """The checked budget.

        Raises:
            ValueError: if there is no stage, or a stage would get fewer than 1 step.
        """
        if num_stages < 1:
            raise ValueError(f"an image needs at least 1 stage, got num_stages={num_stages}")
        return check_budget(self.compute(num_stages), num_stages)

    def steps(self, stage: int, budget: Budget, history: Sequence[Any] = ()) -> int:
        """`T(stage)`: what the run's budget says. An adaptive schedule departs from it by what `history`,
        the records of earlier stages, shows."""
        return budget[stage]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `class_path` and `init_args` as YAML, as the command line reads it."""
        kind = type(self)
        text = yaml.safe_dump(
            {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": _plain(self.arguments)},
            sort_keys=False,
            default_flow_style=None,
        )
        write_atomically(Path(path), text.encode())

    def plot(self, num_stages: int, ax: Axes | None = None) -> Axes:
        """Draws the budget as steps over stages, and returns the axes."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        budget = self.budget(num_stages)
        axes.step(range(num_stages), budget, where="mid", label=f"{self} ({sum(budget)} steps)")
        axes.set(xlabel="stage", ylabel="diffusion steps", ylim=(0, None))
        return axes

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{type(self).__name__}({inner})"

    __str__ = __repr__


def load_schedule(path: str | os.PathLike[str]) -> StepSchedule:
    """Reads what `StepSchedule.save` wrote.

    Raises:
        ValueError: if the file names no schedule; the message says which file and why.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
        module, _, name = content["class_path"].rpartition(".")
        kind = getattr(import_module(module or "disa_framework.schedules"), name)
        if not issubclass(kind, StepSchedule):
            raise TypeError(f"{kind.__name__} is not a StepSchedule")
        return kind(**content.get("init_args", {}))
    except (yaml.YAMLError, AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no step schedule (class_path and init_args): {error}") from error


def _plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
