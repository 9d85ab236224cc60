"""Times runs, and their stages, in turn, so that a slow spell of the machine meets all alike.

Letters: `R` repeats, `b` sampling configs, `K` stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.devices import wait_for
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer
from disa_framework.sampling.history import StageRecord


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
    return (median(in_turn(run_seconds, module, condition, batch_size, samplings, repeats)) / batch_size).tolist()


@torch.inference_mode()
def in_turn(
    seconds: Callable[[ARDiffusionModule, Condition | None, int], Any],
    module: ARDiffusionModule,
    condition: Condition | None,
    batch_size: int,
    samplings: Sequence[SamplingConfig],
    repeats: int,
) -> Tensor:
    """What `seconds`, one of the functions below, tells of a batch with each sampling config, `[R, b, …]`."""
    if repeats < 1:
        raise ValueError(f"at least 1 run of each sampling config must be timed, got repeats={repeats}")
    drawing = [module.drawing(sampling) for sampling in samplings]
    rounds = [[seconds(one, condition, batch_size) for one in drawing] for _ in range(1 + repeats)]
    return torch.tensor(rounds[1:], dtype=torch.float64)  # the first round makes tables and warms up


def run_seconds(module: ARDiffusionModule, condition: Condition | None, batch_size: int) -> float:
    """Seconds of a batch."""
    start = now(module.model.device)
    module.draw(condition, torch.arange(batch_size))
    return now(module.model.device) - start


def stage_seconds(module: ARDiffusionModule, condition: Condition | None, batch_size: int) -> list[float]:
    """Seconds of a batch, `2 K + 2`: before the stages, of the backbone and the head of each, and after them.

    The head's go from noise to tokens in their places. Stages that are not drawn, as all samples have come to their
    end, take no time.
    """
    watch = _Stopwatch(module.model.device)
    watch.press()
    module.draw(condition, torch.arange(batch_size), [watch])
    watch.press()
    *laps, last = (after - before for before, after in zip(watch.times, watch.times[1:], strict=False))
    return [*laps, *[0.0] * (2 * module.sampling.stages + 1 - len(laps)), last]


def now(device: torch.device) -> float:
    """Seconds on the clock, once the device has done all that it was given."""
    wait_for(device)
    return time.perf_counter()


def median(values: Tensor) -> Tensor:
    """Over the first axis."""
    return values.quantile(0.5, dim=0)


class _Stopwatch(Observer):
    """Notes the time before, between and after the stages' backbone and head."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def press(self) -> None:
        self.times.append(now(self.device))

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self.press()

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.press()

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.press()
