"""Runs that are watched: what the head is told at each stage, what is drawn, and what is drawn again from the same.

Letters: `S` samples, `K` stages, `n` tokens of a stage, `D` token channels, `Z` width of the conditioning, `R` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from disa_framework.models.base import Delegating, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.progress import Progress, silent
from disa_framework.sampling.condition import Condition, place, size, take
from disa_framework.sampling.generation import Observer, advance, evaluating, sample_stage
from disa_framework.sampling.history import StageRecord, Trajectory
from disa_framework.sampling.noise import NoiseSource, PhiloxNoise
from disa_framework.solvers import DDIM, RectifiedFlow, Spaced, Uniform

MENU = (2, 3, 5, 10, 20)
"""Numbers of steps that are few."""


@dataclass(frozen=True)
class Probe:
    """How stages are looked at.

    Args:
        steps: at every stage, so that stages can be compared.
        repeats: draws from one `z`, at least 2 for variance and entropy.
        menu: step counts of which the error is measured, rising.
        stride: errors are measured every so many stages only, and interpolated between them.
        count: `S`, where there is no condition.
        batch_size: samples drawn together; errors and times are those of one batch.
    """

    steps: int = 50
    repeats: int = 8
    menu: tuple[int, ...] = MENU
    stride: int = 1
    count: int = 1000
    batch_size: int = 250

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "menu" and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1, got {getattr(self, field.name)}")


@dataclass(frozen=True)
class Stage:
    """What all runs showed at one stage, on the CPU.

    Attributes:
        tokens: `[S, n, D]` that were drawn.
        z: `[S, n, Z]` that they were drawn from, if the model has any.
        variance: `[S, n, D]` over the repeats, if there were any.
        straightness: as of `Signals`, of the deterministic way from noise to a token: where a solver adds noise, the
            token does not lie in a line with the noise it began with.
    """

    tokens: Tensor
    z: Tensor | None
    variance: Tensor | None
    straightness: float


@torch.no_grad()
def watch(
    module: ARDiffusionModule, condition: Condition | None, probe: Probe, progress: Progress = silent
) -> list[Stage]:
    """Draws samples, and keeps what each stage shows.

    Args:
        module: model, sampling config, whose schedule is left aside, and seed.
        condition: of `S` samples; `None` draws unconditional ones.
        probe: how. A run goes on with the first of the repeats.
        progress: is told after every batch.

    Raises:
        ValueError: if the request does not fit the model.
    """
    if condition is not None:
        module.model.check_condition(condition)
    count, batches = probe.count if condition is None else size(condition), []
    with evaluating(module.model):
        for start in range(0, count, probe.batch_size):
            places = range(start, min(start + probe.batch_size, count))
            asked = None if condition is None else take(condition, places)
            batches.append(_watch_batch(module, asked, torch.tensor(places), probe))
            progress(places.stop, count)
    return [_joined(parts) for parts in zip(*batches, strict=True)]


def _watch_batch(module: ARDiffusionModule, condition: Condition | None, indices: Tensor, probe: Probe) -> list[Stage]:
    model, sampling = _Endless(module.model), module.sampling
    own, *others = (PhiloxNoise(module.seed + r, indices, model.device) for r in range(probe.repeats))
    watcher = _Watcher(module, own, others)
    state = model.begin(place(condition, model.device), sampling, own)
    advance(model, state, range(sampling.stages), lambda *_: probe.steps, sampling.solver, own, [watcher])
    return watcher.stages


class _Endless(Delegating):
    """A model whose samples go on after their end, so that all stages show as many."""

    def finished(self, state: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.bool)


class _Watcher(Observer):
    """Draws each stage with other noise and on the deterministic way, before the run itself does."""

    def __init__(self, module: ARDiffusionModule, own: NoiseSource, others: Sequence[NoiseSource]) -> None:
        self.model, self.solver, self.own, self.others = module.model, module.sampling.solver, own, others
        flow = isinstance(self.model.process, RectifiedFlow)
        self.deterministic = DDIM(grid=Uniform() if flow else Spaced(clip=950))
        self.stages: list[Stage] = []

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.z = proposal.z
        self.again = [sample_stage(self.model, proposal, stage, steps, self.solver, noise) for noise in self.others]
        trajectory = Trajectory(self.model.process)
        end = sample_stage(self.model, proposal, stage, steps, self.deterministic, self.own, trajectory)
        self.straightness = float(trajectory.signals(end).straightness)

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        variance = torch.stack([tokens, *self.again]).float().var(dim=0).cpu() if self.again else None
        z = None if self.z is None else self.z[: len(tokens)].float().cpu()
        self.stages.append(Stage(tokens.float().cpu(), z, variance, self.straightness))


def _joined(parts: Sequence[Stage]) -> Stage:
    """One stage of all batches."""
    count = sum(len(part.tokens) for part in parts)
    z = [part.z for part in parts if part.z is not None]
    variance = [part.variance for part in parts if part.variance is not None]
    return Stage(
        torch.cat([part.tokens for part in parts]),
        torch.cat(z) if z else None,
        torch.cat(variance) if variance else None,
        sum(part.straightness * len(part.tokens) for part in parts) / count,
    )
