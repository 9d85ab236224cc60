"""Runs that are watched: what the head is told at each stage, what is drawn, and what is drawn again from the same.

Letters: `S` samples, `K` stages, `n` tokens of a stage, `D` token channels, `Z` width of the conditioning, `R` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disa_framework.models.base import Delegating, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.nn.mixture_head import MixtureHead
from disa_framework.progress import Progress, silent
from disa_framework.sampling.condition import Condition, size, take
from disa_framework.sampling.generation import Observer, generate, sample_stage
from disa_framework.sampling.history import StageRecord, Trajectory
from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.schedules import Constant
from disa_framework.search.calibration import Calibration
from disa_framework.solvers import DDIM, Components, Density, Process, RectifiedFlow, Solver, Spaced, Uniform, VPCosine
from disa_framework.solvers.process import of_kind
from disa_framework.values import check_numbers

MENU = (2, 3, 5, 10, 20)
"""Numbers of steps that are few."""

_DETERMINISTIC: dict[type[Process], Solver] = {
    VPCosine: DDIM(grid=Spaced(clip=950)), RectifiedFlow: DDIM(grid=Uniform()), Density: Components(temperature=0.0),
}  # fmt: skip


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
        check_numbers(Probe.__init__, vars(self))
        Calibration(self.menu)  # which looks at it


@dataclass(frozen=True)
class Stage:
    """What all runs showed at one stage, on the CPU.

    Attributes:
        tokens: `[S, n, D]` that were drawn.
        z: `[S, n, Z]` that they were drawn from, if the model has any.
        variance: `[S, n, D]` over the repeats, if there were any.
        straightness: as of `Signals`, of the deterministic way from noise to a token: where a solver adds noise, the
            token does not lie in a line with the noise it began with.
        surprise: mean of `-log p(token | z)` in nats a channel, where the head knows the density `p`; if all of it is
            drawn from, unguided, that is an estimate of the entropy.
    """

    tokens: Tensor
    z: Tensor | None
    variance: Tensor | None
    straightness: float
    surprise: float | None = None


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
    model, sampling = _Endless(module.model), replace(module.sampling, schedule=Constant(probe.steps))
    count, batches = probe.count if condition is None else size(condition), []
    for indices in torch.arange(count).split(probe.batch_size):
        watcher = _Watcher(module, indices, probe.repeats)
        asked = None if condition is None else take(condition, indices.tolist())
        generate(
            model, asked, sampling, seed=module.seed, indices=indices, batch_size=len(indices), observers=[watcher]
        )
        batches.append(watcher.stages)
        progress(int(indices[-1]) + 1, count)
    return [_joined(parts) for parts in zip(*batches, strict=True)]


class _Endless(Delegating):
    """A model whose samples go on after their end, so that all stages show as many."""

    def finished(self, state: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.bool)


class _Watcher(Observer):
    """Draws each stage with other noise and on the deterministic way, before the run itself does."""

    def __init__(self, module: ARDiffusionModule, indices: Tensor, repeats: int) -> None:
        self.model, self.solver = module.model, module.sampling.solver
        self.own, *self.others = (PhiloxNoise(module.seed + r, indices, self.model.device) for r in range(repeats))
        self.deterministic = of_kind(self.model.process, _DETERMINISTIC)
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
        self.stages.append(Stage(tokens.float().cpu(), z, variance, self.straightness, self._surprise(tokens)))

    def _surprise(self, tokens: Tensor) -> float | None:
        head = self.model.head
        if not isinstance(head, MixtureHead) or self.z is None:
            return None
        return -float(head(self.z[: len(tokens)]).log_density(tokens).mean()) / tokens.shape[-1]


def _joined(parts: Sequence[Stage]) -> Stage:
    """One stage of all batches."""
    sizes = [len(part.tokens) for part in parts]
    z = [part.z for part in parts if part.z is not None]
    variance = [part.variance for part in parts if part.variance is not None]
    surprises = [part.surprise for part in parts if part.surprise is not None]

    def mean(values: Sequence[float]) -> float:
        return sum(value * count for value, count in zip(values, sizes, strict=True)) / sum(sizes)

    return Stage(
        torch.cat([part.tokens for part in parts]),
        torch.cat(z) if z else None,
        torch.cat(variance) if variance else None,
        mean([part.straightness for part in parts]),
        mean(surprises) if surprises else None,
    )
