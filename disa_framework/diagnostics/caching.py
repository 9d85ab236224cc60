"""How far cached features are from computed ones, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.feature_cache import FeatureCache
from disa_framework.sampling.condition import Condition, place
from disa_framework.sampling.generation import Observer, generate
from disa_framework.sampling.history import StageRecord
from disa_framework.sampling.noise import PhiloxNoise


@torch.inference_mode()
def cache_errors(
    module: ARDiffusionModule, condition: Condition | None, count: int, caches: Sequence[FeatureCache]
) -> list[list[float]]:
    """For each cache and stage, how far `z` is from what it is without a cache, given the same tokens.

    It is the root of the mean square of the difference over that of `z`, on the way that is drawn without a cache.

    Args:
        module: model, sampling config and seed.
        condition: of the samples; `None` draws `count` unconditional ones.
        count: of samples.
        caches: to be compared.

    Raises:
        ValueError: if the model caches nothing, or the request does not fit it.
    """
    model, noise = module.model, PhiloxNoise(module.seed, torch.arange(count), module.model.device)
    settled = [model.settle(replace(module.sampling, cache=cache)) for cache in (None, *caches)]
    asked = place(condition, model.device)
    shadows = [_Shadow(model, model.begin(asked, sampling, noise)) for sampling in settled[1:]]
    generate(model, condition, settled[0], noise=noise, batch_size=count, observers=shadows)
    return [[error.item() for error in shadow.errors] for shadow in shadows]


class _Shadow(Observer):
    """Proposes with a cache what a run proposes without, and keeps how far off that is."""

    def __init__(self, model: ARDiffusionModel, state: Any) -> None:
        self.model, self.state = model, state
        self.errors: list[Tensor] = []

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.proposal = self.model.propose(self.state, stage)
        z, exact = cast(Tensor, self.proposal.z), cast(Tensor, proposal.z)
        self.errors.append(((z - exact).square().mean() / exact.square().mean()).sqrt())

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.state = self.model.accept(self.state, self.proposal, tokens)
