"""Times runs, and their stages, in turn, so that a slow spell of the machine meets all alike.

Letters: `R` repeats, `b` sampling configs, `K` stages.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.devices import wait_for
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer
from disa_framework.sampling.history import StageRecord

Mark = float | torch.cuda.Event
"""A moment: seconds on the host's clock, or an event of a GPU's."""
Seconds = TypeVar("Seconds")


def measure_latency(
    module: ARDiffusionModule,
    condition: Condition | None,
    batch_size: int,
    samplings: Sequence[SamplingConfig],
    *,
    repeats: int = 5,
) -> list[float]:
    """Seconds per sample with each of the sampling configs, medians over whole runs.

    Args:
        module: what draws, at the precision in which it is called.
        condition: of `B` samples; `None` draws unconditional ones.
        batch_size: `B`.
        samplings: are drawn with in turn, once to warm up, and then `repeats` times.
        repeats: timed runs of each.

    Raises:
        ValueError: if inputs do not fit the module, or nothing is to be timed.
    """
    return (median(in_turn(RunTimer, module, condition, batch_size, samplings, repeats)) / batch_size).tolist()


@torch.inference_mode()
def in_turn(
    timer: type[Timer[Any]],
    module: ARDiffusionModule,
    condition: Condition | None,
    batch_size: int,
    samplings: Sequence[SamplingConfig],
    repeats: int,
) -> Tensor:
    """What a timer tells of a batch with each sampling config, `[R, b, …]`."""
    if repeats < 1:
        raise ValueError(f"at least 1 run of each sampling config must be timed, got repeats={repeats}")
    timers = [timer(module.drawing(sampling), condition, batch_size) for sampling in samplings]
    rounds = [[time_one() for time_one in timers] for _ in range(warm_up(module.model.device) + repeats)]
    return torch.tensor(rounds[-repeats:], dtype=torch.float64)


def warm_up(device: torch.device) -> int:
    """Rounds before those that count: the first one makes tables, the second one CUDA graphs."""
    return 2 if device.type == "cuda" else 1


class Timer(ABC, Generic[Seconds]):
    """Tells the seconds of a batch, each time that it is called.

    Args:
        module, condition, batch_size: as in `measure_latency`.
    """

    def __init__(self, module: ARDiffusionModule, condition: Condition | None, batch_size: int) -> None:
        self.module = module.drawing()  # with a CUDA graph of its own
        self.condition, self.batch_size = condition, batch_size

    @abstractmethod
    def __call__(self) -> Seconds: ...


class RunTimer(Timer[float]):
    """Of the whole."""

    def __call__(self) -> float:
        start = now(self.module.model.device)
        self.module.draw(self.condition, torch.arange(self.batch_size))
        return now(self.module.model.device) - start


class StageTimer(Timer[list[float]]):
    """Of its parts, `2 K + 2`: before the stages, of the backbone and the head of each, and after them.

    The head's go from noise to tokens in their places. Stages that are not drawn, as all samples have come to their
    end, take no time.
    """

    def __init__(self, module: ARDiffusionModule, condition: Condition | None, batch_size: int) -> None:
        super().__init__(module, condition, batch_size)
        self.watch = _Stopwatch()

    def __call__(self) -> list[float]:
        start = mark(self.module.model.device)
        self.module.draw(self.condition, torch.arange(self.batch_size), [self.watch])
        marks = [start, *self.watch.marks, mark(self.module.model.device)]
        *laps, last = (seconds(before, after) for before, after in pairwise(marks))
        return [*laps, *[0.0] * (2 * self.module.sampling.stages + 1 - len(laps)), last]


def now(device: torch.device) -> float:
    """Seconds on the clock, once the device has done all that it was given."""
    wait_for(device)
    return time.perf_counter()


def mark(device: torch.device) -> Mark:
    """The present moment. A GPU notes it when it comes to it, in a graph, too, and nobody waits for that."""
    if device.type != "cuda":
        return now(device)
    event = torch.cuda.Event(enable_timing=True, external=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds(start: Mark, end: Mark) -> float:
    """Between two moments; waits until the later one has come."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    end.synchronize()
    return start.elapsed_time(end) / 1000


def median(values: Tensor) -> Tensor:
    """Over the first axis."""
    return values.quantile(0.5, dim=0)


class _Stopwatch(Observer):
    """Marks the time before, between and after the stages' backbone and head."""

    recordable = True

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self.device = model.device
        self.marks = [mark(self.device)]

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.marks.append(mark(self.device))

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.marks.append(mark(self.device))
