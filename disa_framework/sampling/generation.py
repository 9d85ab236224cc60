"""The generation loop, the only one: backbone, schedule, solver, stage after stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.sampling.condition import Condition, place, size
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.history import StageRecord, Trajectory
from disa_framework.sampling.noise import NoiseSource, PhiloxNoise
from disa_framework.solvers.base import Solver


class Observer:
    """Watches a run without taking part in it; override what is of interest.

    Attributes:
        recordable: whether a CUDA graph may hold what it does, which is then done on the device alone.
    """

    recordable: bool = False

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
    sampling: SamplingConfig = SamplingConfig(),
    *,
    seed: int = 0,
    indices: Tensor | None = None,
    batch_size: int | None = None,
    noise: NoiseSource | None = None,
    observers: Sequence[Observer] = (),
) -> Tensor:
    """Draws latents `[B, *latent_shape]`.

    Args:
        model: an AR model with a diffusion head.
        condition: what `B` samples are asked to be: class labels `[B]`, prompts, or what the model defines; `None`
            draws unconditional samples and needs `batch_size`.
        sampling: how they are drawn.
        seed: of the run.
        indices: `[B]` places of the samples in the run, 0 … B-1 by default. A sample depends on `seed` and its index.
        batch_size: `B`, where there is no condition.
        noise: replaces the source made of `seed` and `indices`.
        observers: are told what happens.

    Raises:
        ValueError: if inputs do not fit the model or each other; the message says what would.
    """
    settled, count = model.settle(sampling), check_request(model, condition, batch_size)
    places = torch.arange(count) if indices is None else indices
    source = PhiloxNoise(seed, places, model.device) if noise is None else noise
    if source.batch_size != count:
        raise ValueError(f"{count} samples need {count} indices, got {source.batch_size}")
    return run(model, place(condition, model.device), settled, source, observers)


@torch.inference_mode()
def unfolding(
    model: ARDiffusionModel,
    condition: Condition | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    *,
    seed: int = 0,
    batch_size: int | None = None,
    observers: Sequence[Observer] = (),
) -> Iterator[Tensor]:
    """What there is of the latents `[B, *latent_shape]` after each stage, where `generate` has those of the last alone.

    Args:
        model, condition, sampling, seed, batch_size, observers: as in `generate`.

    Raises:
        ValueError: as `generate` does, when the first are asked for.
    """
    settled, records = model.settle(sampling), _Records()
    schedule, budget, watching = settled.schedule, settled.budget, (records, *observers)
    with begun(model, condition, settled, seed, batch_size) as (state, source):
        for observer in watching:
            observer.begin(model, settled.stages, source.batch_size)
        for stage in range(settled.stages):
            if model.finished(state).all():
                break
            state = advance(
                model, state, range(stage, stage + 1), lambda stage, _: schedule.at(stage, budget, records.kept),
                settled.solver, source, watching, schedule.adapts,
            )  # fmt: skip
            yield model.finish(state)


class _Records(Observer):
    """Keeps those of all stages."""

    def __init__(self) -> None:
        self.kept: list[StageRecord] = []

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.kept.append(record)


def run(
    model: ARDiffusionModel,
    condition: Condition | None,
    sampling: SamplingConfig,
    source: NoiseSource,
    observers: Sequence[Observer] = (),
) -> Tensor:
    """What `generate` does once its inputs are checked, on the model's device, and the config settled."""
    for observer in observers:
        observer.begin(model, sampling.stages, source.batch_size)
    schedule, budget = sampling.schedule, sampling.budget
    with evaluating(model):
        state = model.begin(condition, sampling, source)
        state = advance(
            model, state, range(sampling.stages), lambda stage, history: schedule.at(stage, budget, history),
            sampling.solver, source, observers, schedule.adapts,
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
    """The state after `stages`, from the state before them, or as soon as all samples have come to their end.

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
        if model.finished(state).all():
            break
        proposal = model.propose(state, stage)
        steps = steps_of(stage, history)
        for observer in observers:
            observer.proposed(stage, proposal, steps)
        trajectory = Trajectory(model.process) if watched else None
        tokens = sample_stage(model, proposal, stage, steps, solver, source, trajectory)
        state = model.accept(state, proposal, tokens)
        signals = trajectory.signals(tokens) if trajectory else None
        evaluations = solver.at(stage).evaluations(model.process, steps)
        history.append(StageRecord(stage, steps, evaluations, proposal.shape[0], signals))
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
    return solver.at(stage).sample(denoise, model.process, steps, normal, model.dtype)


@contextmanager
def begun(
    model: ARDiffusionModel, condition: Condition | None, sampling: SamplingConfig, seed: int, batch_size: int | None
) -> Iterator[tuple[Any, PhiloxNoise]]:
    """The state before the first stage, and the noise, of samples that somebody else draws stage by stage.

    Args:
        model: in evaluation mode meanwhile.
        condition: of `B` samples; `None` draws unconditional ones.
        sampling: settled.
        seed: of the noise.
        batch_size: `B`, where there is no condition.

    Raises:
        ValueError: if the model cannot draw them.
    """
    count = check_request(model, condition, batch_size if condition is None else None)
    source = PhiloxNoise(seed, torch.arange(count), model.device)
    with evaluating(model):
        yield model.begin(place(condition, model.device), sampling, source), source


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


def check_request(model: ARDiffusionModel, condition: Condition | None, batch_size: int | None) -> int:
    """How many samples are asked for.

    Raises:
        ValueError: if the model cannot draw them; the message says what would fit.
    """
    if condition is None and batch_size is None:
        raise ValueError("unconditional generation needs batch_size")
    count = batch_size if condition is None else size(condition)
    if condition is not None and batch_size not in (None, count):
        raise ValueError(f"batch_size={batch_size} contradicts a condition of {count}: leave it out")
    if not count or count < 1:
        raise ValueError(f"need at least 1 sample, got {count}")
    if condition is not None:
        model.check_condition(condition)
    return count
