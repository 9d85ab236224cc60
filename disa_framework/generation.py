"""The generation loop, the only one: backbone, schedule, solver, stage after stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from disa_framework.devices import bring
from disa_framework.guidance import Guidance
from disa_framework.models.base import ARDiffusionModel, Condition, Proposal
from disa_framework.models.lazy import Lazy, caching
from disa_framework.noise import NoiseSource, PhiloxNoise
from disa_framework.schedules import StepSchedule
from disa_framework.solvers import Solver
from disa_framework.trajectory import Signals, Trajectory


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves behind for schedules and observers.

    Attributes:
        stage: `k`.
        steps: `T(k)` as scheduled.
        evaluations: how often the head was evaluated.
        tokens: tokens of one sample that were drawn.
        signals: what the way from noise to tokens showed, if someone asked for it.
    """

    stage: int
    steps: int
    evaluations: int
    tokens: int
    signals: Signals | None = None


class Observer:
    """Watches a run without taking part in it; override what is of interest."""

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        """Before the first stage."""

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        """After the backbone, before the head."""

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        """After a stage, with its tokens `[B, n, D]`."""


@torch.inference_mode()
def generate(
    model: ARDiffusionModel,
    condition: Condition | None = None,
    *,
    schedule: StepSchedule,
    solver: Solver,
    num_stages: int | None = None,
    guidance: Guidance | None = None,
    cache: Lazy | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    batch_size: int | None = None,
    noise: NoiseSource | None = None,
    observers: Sequence[Observer] = (),
) -> Tensor:
    """Draws latents `[B, C, H, W]`.

    Args:
        model: an AR model with a diffusion head.
        condition: class labels `[B]` or prompts; `None` draws unconditional images and needs `batch_size`.
        schedule: diffusion steps of each stage.
        solver: turns noise into tokens.
        num_stages: `K`; by default as many as the model can take.
        guidance: classifier-free guidance; none by default.
        cache: computes parts of a masked model's backbone at every few stages only; off by default.
        seed: of the run.
        indices: `[B]` places of the samples in the run, 0 … B-1 by default. Sample `i` depends on `seed` and
            its index alone.
        batch_size: `B`, where there is no condition.
        noise: replaces the source made of `seed` and `indices`.
        observers: are told what happens.

    Raises:
        ValueError: if inputs do not fit the model or each other; the message says what would.
    """
    stages = model.max_stages if num_stages is None else num_stages
    check_request(model, stages, condition)
    count = _batch_size(condition, batch_size)
    places = torch.arange(count) if indices is None else indices
    if len(places) != count:
        raise ValueError(f"{count} samples need {count} indices, got {len(places)}")
    source = PhiloxNoise(seed, places, model.device) if noise is None else noise
    asked = bring(condition, model.device) if isinstance(condition, Tensor) else condition
    for observer in observers:
        observer.begin(model, stages, count)
    budget = schedule.budget(stages)
    with evaluating(model), caching(model, cache):
        state = model.begin(asked, stages, guidance or Guidance(), source, count)
        state = advance(
            model, state, range(stages), lambda stage, history: schedule.steps(stage, budget, history), solver, source,
            observers, schedule.reads_signals,
        )  # fmt: skip
        return model.finish(state)


def advance(
    model: ARDiffusionModel,
    state: Any,
    stages: range,
    steps_of: Callable[[int, Sequence[StageRecord]], int],
    solver: Solver,
    source: NoiseSource,
    observers: Sequence[Observer] = (),
    watched: bool = False,
) -> Any:
    """The state after `stages`, from the state before them.

    Args:
        model: as in `generate`, in evaluation mode.
        state: as the model's `begin` or `accept` gave it.
        stages: which to draw, one after the other.
        steps_of: diffusion steps of a stage, given what the ones before it in this call left behind.
        solver, source, observers: as in `generate`.
        watched: whether records have signals.
    """
    history: list[StageRecord] = []
    for stage in stages:
        proposal = model.propose(state, stage)
        steps = steps_of(stage, history)
        for observer in observers:
            observer.proposed(stage, proposal, steps)
        trajectory = Trajectory(model.process) if watched else None
        tokens = sample_stage(model, proposal, stage, steps, solver, source, trajectory)
        state = model.accept(state, proposal, tokens)
        signals = trajectory.signals(tokens) if trajectory else None
        history.append(StageRecord(stage, steps, solver.evaluations(model.process, steps), proposal.shape[0], signals))
        for observer in observers:
            observer.accepted(history[-1], tokens)
    return state


def sample_stage(
    model: ARDiffusionModel,
    proposal: Proposal,
    stage: int,
    steps: int,
    solver: Solver,
    source: NoiseSource,
    trajectory: Trajectory | None = None,
) -> Tensor:
    """Tokens `[B, n, D]` of one stage; a `trajectory` watches how they come about."""
    normal = partial(source.normal, stage, proposal.shape)
    denoise = trajectory.watch(proposal.denoise) if trajectory else proposal.denoise
    return solver.sample(denoise, model.process, steps, normal, model.dtype)


@contextmanager
def evaluating(model: ARDiffusionModel) -> Iterator[None]:
    """Without dropout, whatever mode the model is in before and after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_request(model: ARDiffusionModel, num_stages: int, condition: Condition | None) -> None:
    """Raises a ValueError that says what would fit, if the model cannot draw this."""
    low, high = model.min_stages, model.max_stages
    if not low <= num_stages <= high:
        allowed = f"lie in {low} … {high}" if low < high else f"be {high}"
        raise ValueError(
            f"num_stages must {allowed} for this model, got {num_stages}: every stage draws at least one token"
        )
    if condition is not None:
        model.check_condition(condition)


def _batch_size(condition: Condition | None, batch_size: int | None) -> int:
    if condition is None and batch_size is None:
        raise ValueError("unconditional generation needs batch_size")
    if condition is not None and batch_size not in (None, len(condition)):
        raise ValueError(f"batch_size={batch_size} contradicts a condition of {len(condition)}: leave it out")
    count = len(condition) if condition is not None else batch_size
    if not count or count < 1:
        raise ValueError(f"need at least 1 sample, got {count}")
    return count
