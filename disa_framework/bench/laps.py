"""Splits the time of a run into its parts, from outside of model and tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from disa_framework.devices import wait_for
from disa_framework.models import ARDiffusionModel, Tokenizer
from disa_framework.models.base import Condition, Delegating, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.solvers.process import Nodes
from disa_framework.solvers.table import Denoiser, FusedStep, Step, Update

Clock = Callable[[], float]

PARTS = ("backbone", "head", "decoder", "rest")
"""The decoder is the tokenizer's; the rest is noise, the solver's arithmetic, which with CUDA graphs is the head's, and
putting tokens in their places."""


class Laps:
    """Seconds of each part. At any moment the clock runs for one of them, so that they add up to the whole.

    Args:
        device: is waited for at each change.
        clock: gives seconds.
    """

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device, self._clock = device, clock
        self._part, self._since = "rest", self._now()

    def enter(self, part: str) -> str:
        """Lets the clock run for `part` from now on, and returns the one before."""
        before, now = self._part, self._now()
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

    def _now(self) -> float:
        return read(self._clock, self._device)


def read(clock: Clock, device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    wait_for(device)
    return clock()


def split(module: ARDiffusionModule, condition: Condition | None, indices: Tensor, clock: Clock) -> dict[str, float]:
    """Seconds of each part of one `draw` of the module."""
    model, tokenizer = module.model, module.tokenizer
    laps = Laps(model.device, clock)
    module.model, module.tokenizer = _WatchedModel(model, laps), _WatchedTokenizer(tokenizer, laps)
    try:
        module.draw(condition, indices)
        laps.enter("rest")
    finally:
        module.model, module.tokenizer = model, tokenizer
    return laps.seconds


class _WatchedModel(Delegating):
    """A model whose backbone and head are timed."""

    def __init__(self, model: ARDiffusionModel, laps: Laps) -> None:
        super().__init__(model)
        self.laps = laps

    def propose(self, state: Any, stage: int) -> Proposal:
        with self.laps.during("backbone"):
            proposal = super().propose(state, stage)
        return replace(proposal, denoise=self._timed(proposal.denoise))

    def _timed(self, denoise: Denoiser) -> Denoiser:
        def denoiser(nodes: Nodes) -> Step:
            with self.laps.during("head"):
                return _WatchedStep(denoise(nodes), self.laps)

        return denoiser


class _WatchedStep(FusedStep):
    """A step whose time is the head's."""

    def __init__(self, step: Step, laps: Laps) -> None:
        self.watched, self.laps = step, laps

    @property
    def fuses(self) -> bool:
        return isinstance(self.watched, FusedStep) and self.watched.fuses

    def __call__(self, x: Tensor, i: int) -> Tensor:
        with self.laps.during("head"):
            return self.watched(x, i)

    def advance(
        self, i: int, update: Update, state: Tensor, noise: Tensor | None, factors: Tensor, dtype: torch.dtype
    ) -> Tensor:
        assert isinstance(self.watched, FusedStep)
        with self.laps.during("head"):
            return self.watched.advance(i, update, state, noise, factors, dtype)


class _WatchedTokenizer(Tokenizer):
    """A tokenizer whose decoder is timed."""

    def __init__(self, tokenizer: Tokenizer, laps: Laps) -> None:
        super().__init__()
        self.watched, self.laps = tokenizer, laps

    def encode(self, images: Tensor) -> Tensor:
        return self.watched.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        with self.laps.during("decoder"):
            return self.watched.decode(latents)
