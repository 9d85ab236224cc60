"""Times whole runs, or their stages, in turn, so that a slow spell of the machine meets all alike.

Letters: `R` repeats, `b` sampling configs, `K` stages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from disa_framework.measure.laps import Clock, read
from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition, size
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
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Seconds per sample with each of the sampling configs, medians over whole runs.

    Args:
        module: what draws, at the precision in which it is called.
        condition: of `B` samples; `None` draws unconditional ones.
        batch_size: `B`.
        samplings: are drawn with in turn, once to warm up, and then `repeats` times.
        repeats: timed runs of each.
        clock: gives seconds.

    Raises:
        ValueError: if inputs do not fit the module, or nothing is to be timed.
    """
    laps = drawn_in_turn(module, condition, batch_size, samplings, repeats, clock, by_stage=False)
    return (median(laps[..., 0]) / batch_size).tolist()


@torch.inference_mode()
def drawn_in_turn(
    module: ARDiffusionModule,
    condition: Condition | None,
    batch_size: int,
    samplings: Sequence[SamplingConfig],
    repeats: int,
    clock: Clock,
    by_stage: bool,
) -> Tensor:
    """Seconds of a batch, `[R, b, 1]`, or `[R, b, 2 K + 2]`: before the stages, backbone and head of each, after them.

    Stages that are not drawn, as all samples have come to their end, take no time.
    """
    if repeats < 1:
        raise ValueError(f"at least 1 run of each sampling config must be timed, got repeats={repeats}")
    if condition is not None and size(condition) != batch_size:
        raise ValueError(f"a batch of {batch_size} needs a condition of as many, got one of {size(condition)}")
    drawing = [module.drawing(sampling) for sampling in samplings]
    indices, rounds = torch.arange(batch_size), []
    for _ in range(1 + repeats):
        watches = [_Stopwatch(module.model.device, clock) for _ in drawing]
        for one, watch in zip(drawing, watches, strict=True):
            watch.press()
            one.draw(condition, indices, [watch] if by_stage else [])
            watch.press()
        rounds.append([watch.laps(2 * one.sampling.stages + 2 if by_stage else 1)
                       for one, watch in zip(drawing, watches, strict=True)])  # fmt: skip
    return torch.tensor(rounds[1:], dtype=torch.float64)  # the first round makes tables and warms up


def median(values: Tensor) -> Tensor:
    """Over the first axis."""
    return values.quantile(0.5, dim=0)


class _Stopwatch(Observer):
    """Notes the time before, between and after the stages' backbone and head."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device, self.clock = device, clock
        self.times: list[float] = []

    def press(self) -> None:
        self.times.append(read(self.clock, self.device))

    def laps(self, count: int) -> list[float]:
        """Seconds between all times; laps that were not run took none, and came before the last."""
        *laps, last = (after - before for before, after in zip(self.times, self.times[1:], strict=False))
        return [*laps, *[0.0] * (count - 1 - len(laps)), last]

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self.press()

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.press()

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.press()
