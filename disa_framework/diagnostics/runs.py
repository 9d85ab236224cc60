"""Runs that are watched: what the head is told at each stage, what is drawn, and what is drawn again from the same.

Letters: `S` samples, `K` stages, `n` tokens of a stage, `D` token channels, `Z` width of the conditioning, `R` repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disa_framework.generation import Observer, StageRecord, advance, check_request, evaluating, sample_stage
from disa_framework.models.base import Condition, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.noise import NoiseSource, PhiloxNoise
from disa_framework.solvers import DDIM, LinearFlow, Spaced, Uniform
from disa_framework.trajectory import Trajectory

MENU = (2, 3, 5, 10, 20)
"""Numbers of steps that are few."""

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""


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
    module: ARDiffusionModule,
    condition: Condition | None,
    count: int,
    *,
    steps: int = 50,
    repeats: int = 1,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> list[Stage]:
    """Draws samples with `steps` steps at every stage, and keeps what each stage shows.

    Args:
        module: model, solver, guidance, number of stages and seed.
        condition: `S` labels or prompts; `None` draws unconditional samples.
        count: `S`.
        steps: the same at all stages, so that they can be compared.
        repeats: how often each stage is drawn from what it is given. The run goes on with the first.
        batch_size: samples drawn together.
        progress: is told after every batch.

    Raises:
        ValueError: if the request does not fit the model.
    """
    check_request(module.model, module.num_stages, condition)
    if min(count, steps, repeats, batch_size) < 1:
        raise ValueError(
            f"samples, steps, repeats and batch_size must be at least 1, got {count}, {steps}, {repeats}, {batch_size}"
        )
    batches = []
    with evaluating(module.model):
        for indices in torch.arange(count).split(batch_size):
            asked = None if condition is None else condition[indices[0] : indices[-1] + 1]
            batches.append(_watch_batch(module, asked, indices, steps, repeats))
            if progress:
                progress(min(count, len(batches) * batch_size), count)
    return [_joined(parts) for parts in zip(*batches, strict=True)]


def _watch_batch(
    module: ARDiffusionModule, condition: Condition | None, indices: Tensor, steps: int, repeats: int
) -> list[Stage]:
    model, stages = module.model, module.num_stages
    own, *others = (PhiloxNoise(module.seed + r, indices, model.device) for r in range(repeats))
    watcher = _Watcher(module, own, others)
    asked = condition.to(model.device) if isinstance(condition, Tensor) else condition
    state = model.begin(asked, stages, module.guidance, own, len(indices))
    advance(model, state, range(stages), lambda *_: steps, module.solver, own, [watcher])
    return watcher.stages


class _Watcher(Observer):
    """Draws each stage with other noise and on the deterministic way, before the run itself does."""

    def __init__(self, module: ARDiffusionModule, own: NoiseSource, others: Sequence[NoiseSource]) -> None:
        self.module, self.own, self.others = module, own, others
        flow = isinstance(module.model.process, LinearFlow)
        self.deterministic = DDIM(grid=Uniform() if flow else Spaced(clip=950))
        self.stages: list[Stage] = []

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        model, solver = self.module.model, self.module.solver
        self.z = proposal.z
        self.again = [sample_stage(model, proposal, stage, steps, solver, noise) for noise in self.others]
        trajectory = Trajectory(model.process)
        end = sample_stage(model, proposal, stage, steps, self.deterministic, self.own, trajectory)
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
