"""A machine whose times are known: a clock that only models move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from disa_framework import SamplingConfig
from disa_framework.models.base import Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.solvers import Nodes, RectifiedFlow, VPCosine
from disa_framework.solvers.table import Step
from disa_framework.tokenizers import Identity
from disa_framework.toy.mixture import MixtureAR, MixtureState

K, BATCH = 4, 8
BACKBONE = (3.0, 1.0, 2.0, 5.0)
HEAD = (0.5, 0.25, 0.125, 0.75)
FIXED, SETUP = 7.0, 0.25


class Clock:
    """Shows the time that others let pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(MixtureAR):
    """Takes known times for its stages and evaluations.

    Attributes:
        interrupt: seconds lost in a run, counted from 1, before a stage.
        setup: seconds before the first of so many evaluations.
        last: stages after which all samples have come to their end.
    """

    def __init__(self, clock: Clock, process: VPCosine | RectifiedFlow | None = None) -> None:
        super().__init__(num_tokens=K, num_classes=2, process=process)
        self.clock = clock
        self.runs, self.drawn, self.last = 0, 0, K
        self.interrupt: Callable[[int, int], float] = lambda run, stage: 0.0
        self.setup: Callable[[int], float] = lambda evaluations: SETUP

    def begin(self, *request: Any) -> MixtureState:
        self.drawn = 0
        return super().begin(*request)

    def finished(self, state: MixtureState) -> Tensor:
        return torch.tensor([self.drawn == self.last])

    def propose(self, state: MixtureState, stage: int) -> Proposal:
        self.runs, self.drawn = self.runs + (stage == 0), stage + 1
        self.clock.now += BACKBONE[stage] + self.interrupt(self.runs, stage)
        proposal = super().propose(state, stage)

        def denoise(nodes: Nodes) -> Step:
            self.clock.now += self.setup(len(nodes) - 1)
            step = proposal.denoise(nodes)

            def timed(x: Tensor, i: int) -> Tensor:
                self.clock.now += HEAD[stage]
                return step(x, i)

            return timed

        return replace(proposal, denoise=denoise)


class SlowTokenizer(Identity):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def decode(self, latents: Tensor) -> Tensor:
        self.clock.now += FIXED
        return super().decode(latents)


def slow_module(model: Slow, **sampling: Any) -> ARDiffusionModule:
    return ARDiffusionModule(model, SamplingConfig(**sampling), SlowTokenizer(model.clock))


def labels(count: int = BATCH) -> Tensor:
    return torch.arange(count) % 2
