"""Studies small enough to be run in a test."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from disa_framework.models import MixtureAR
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant
from disa_framework.search.cost import analytic_cost
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs, Objective
from disa_framework.search.quality import SlicedWasserstein
from disa_framework.search.space import ScheduleSpace, Space, Stages
from disa_framework.solvers import DDPM, Process
from disa_framework.solvers.table import Denoiser

STAGES = 4


def mixture_module() -> ARDiffusionModule:
    return ARDiffusionModule(MixtureAR(num_tokens=STAGES, num_components=2), Constant(12))


def mixture_meter(module: ARDiffusionModule | None = None, count: int = 96, batch_size: int = 16) -> Meter:
    labels = torch.zeros(count, dtype=torch.long)
    return Meter(module or mixture_module(), SlicedWasserstein(16), labels, batch_size, {"accelerator": "cpu"})


def mixture_objective(
    limit: float | None = 24,
    space: ScheduleSpace | None = None,
    module: ARDiffusionModule | None = None,
    **options: Any,
) -> Objective:
    """Of head evaluations; 48 by default with 12 steps at each stage."""
    meter = mixture_meter(module)
    chosen = Space(space or Stages(STAGES, 1, 20), fill=options.pop("fill", True), **options.pop("also", {}))
    return Objective(meter, Costs(meter.module, analytic_cost), chosen, limit, **{"rungs": (32, 96), **options})


@dataclass(frozen=True)
class Faulty(DDPM):
    """Breaks down where stages have many steps; of two processes only the second one does."""

    most: int = 6

    def sample(self, denoise: Denoiser, process: Process, steps: int, *args: Any) -> torch.Tensor:
        if steps > self.most and os.environ.get("LOCAL_RANK", "1") == "1":
            raise ArithmeticError("the sampler broke down")
        return super().sample(denoise, process, steps, *args)
