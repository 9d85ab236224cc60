"""Looks at the clock, and splits the time of a run into its parts from outside of model and tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Delegating, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.devices import wait_for
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.generation import generate
from disa_framework.solvers.process import Nodes
from disa_framework.solvers.table import Denoiser, Step

Clock = Callable[[], float]
"""Gives seconds."""

PARTS = ("backbone", "head", "decoder", "rest")
"""The decoder is the tokenizer's; the rest is noise, the solver's arithmetic, and putting tokens in their places."""


class Laps:
    """Seconds of each part. At any moment the clock runs for one of them, so that they add up to the whole.

    Args:
        device: is waited for at each change.
        clock: gives seconds.
    """

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device, self._clock = device, clock
        self._part, self._since = "rest", read(clock, device)

    def enter(self, part: str) -> str:
        """Lets the clock run for `part` from now on, and returns the one before."""
        before, now = self._part, read(self._clock, self._device)
        self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Lets the clock run for `part` for a while."""
        before = self.enter(part)
        try:
            yield
        finally:
            self.enter(before)


def read(clock: Clock, device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    wait_for(device)
    return clock()


@torch.inference_mode()
def split(module: ARDiffusionModule, condition: Condition | None, indices: Tensor, clock: Clock) -> dict[str, float]:
    """Seconds of each part of one `draw` of the module."""
    laps = Laps(module.model.device, clock)
    latents = generate(
        _Watched(module.model, laps), condition, module.sampling, seed=module.seed, indices=indices,
        batch_size=len(indices),
    )  # fmt: skip
    with laps.during("decoder"):
        module.tokenizer.decode(latents)
    return laps.seconds


class _Watched(Delegating):
    """A model whose backbone and head are timed."""

    def __init__(self, model: ARDiffusionModel, laps: Laps) -> None:
        super().__init__(model)
        self.laps = laps

    def propose(self, state: Any, stage: int) -> Proposal:
        with self.laps.during("backbone"):
            proposal = super().propose(state, stage)
        return replace(proposal, denoise=self._timed(proposal.denoise))

    def _timed(self, denoise: Denoiser) -> Denoiser:
        def timed(nodes: Nodes) -> Step:
            with self.laps.during("head"):
                step = denoise(nodes)

            def timed_step(x: Tensor, i: int) -> Tensor:
                with self.laps.during("head"):
                    return step(x, i)

            return timed_step

        return timed
