"""Searches small enough to be run in a test."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from disa_framework.measure.cost import analytic_cost
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Constant, PerStage, StepSchedule
from disa_framework.search.limits import Costs
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Objective
from disa_framework.search.space import ScheduleSpace, Space, Stages
from disa_framework.solvers import DDPM, Process
from disa_framework.solvers.table import Denoiser
from disa_framework.toy.exact import SlicedWasserstein
from disa_framework.toy.mixture import MixtureAR

STAGES = 4
LABELS = torch.zeros(96, dtype=torch.long)
CPU = {"accelerator": "cpu"}


def mixture_module(schedule: StepSchedule | None = None, **sampling: Any) -> ARDiffusionModule:
    model = MixtureAR(num_tokens=STAGES, num_components=2)
    return ARDiffusionModule(model, SamplingConfig(schedule or Constant(12), **sampling))


def mixture_meter(module: ARDiffusionModule | None = None) -> Meter:
    return Meter(module or mixture_module(), SlicedWasserstein(16), LABELS, 16, CPU)


def mixture_objective(
    limit: float | None = 24,
    space: ScheduleSpace | None = None,
    module: ARDiffusionModule | None = None,
    also: dict[str, Any] | None = None,
    **options: Any,
) -> Objective:
    """Of head evaluations; 48 by default with 12 steps at each stage."""
    meter = mixture_meter(module)
    chosen = Space(space or Stages(STAGES, 1, 20), **(also or {}))
    return Objective(meter, Costs(meter.module, analytic_cost), chosen, limit, **{"rungs": (32, 96), **options})


def per_stage(base: SamplingConfig, *steps: int) -> SamplingConfig:
    """The config with these steps."""
    return replace(base, schedule=PerStage(steps), num_stages=len(steps))


@dataclass(frozen=True)
class Faulty(DDPM):
    """Breaks down where stages have many steps; of two processes only the second one does."""

    most: int = 6

    def sample(self, denoise: Denoiser, process: Process, steps: int, *args: Any) -> torch.Tensor:
        if steps > self.most and os.environ.get("LOCAL_RANK", "1") == "1":
            raise ArithmeticError("the sampler broke down")
        return super().sample(denoise, process, steps, *args)
