"""Does annealing cost anything but the head evaluations it asks for?

    python -m benchmarks.per_evaluation [--threads 1] [--repeats 9]

Times the head of a MAR (width 256, head 3x512, 64 tokens, one a stage) with constant and annealed budgets in turn, and
prints seconds per head evaluation: medians with quartiles, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from disa_framework import Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import MAR
from disa_framework.models.base import Proposal
from disa_framework.schedules import Constant, Linear, StepSchedule

BATCH = 8
SCHEDULES: dict[str, StepSchedule] = {"constant 25": Constant(25), "linear 50→5": Linear(50, 5)}


class HeadTime(Observer):
    """Seconds spent in the head, and its evaluations."""

    def __init__(self) -> None:
        self.seconds, self.evaluations, self._start = 0.0, 0, 0.0

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self._start = time.perf_counter()

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.seconds += time.perf_counter() - self._start
        self.evaluations += record.evaluations


def seconds_per_evaluation(model: MAR, schedule: StepSchedule) -> float:
    """Of one run."""
    watch = HeadTime()
    labels = torch.zeros(BATCH, dtype=torch.long)
    generate(model, labels, SamplingConfig(schedule, num_stages=64), observers=[watch])
    return watch.seconds / watch.evaluations


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.per_evaluation", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = MAR(
        8, 16, 1, 10, 256, 2, 4, 256, 2, 4, 3, 512, buffer_size=16, attn_dropout=0.0, proj_dropout=0.0
    )  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    for _ in range(options.repeats + 1):
        for name, schedule in SCHEDULES.items():
            times[name].append(seconds_per_evaluation(model, schedule))
    medians = {}
    for name, all_runs in times.items():
        runs = all_runs[1:]  # the first one makes tables
        low, medians[name], high = statistics.quantiles(runs, n=4)
        print(f"{name:12}  {1e3 * medians[name]:.3f} ms per evaluation (quartiles {1e3 * low:.3f}, {1e3 * high:.3f})")
    constant, annealed = medians.values()
    print(f"ratio {annealed / constant:.3f} on {options.threads} thread(s), torch {torch.__version__}")


if __name__ == "__main__":
    main()
