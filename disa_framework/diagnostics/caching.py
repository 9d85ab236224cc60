"""How far cached features are from computed ones, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from disa_framework.models.base import ARDiffusionModel, Delegating, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.feature_cache import FeatureCache
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import generate
from disa_framework.sampling.noise import NoiseSource


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
    for cache in caches:
        module.model.settle(replace(module.sampling, cache=cache))
    shadowed = _Shadowed(module.model, caches)
    generate(shadowed, condition, replace(module.sampling, cache=None), seed=module.seed, batch_size=count)
    return [[error.item() for error in errors] for errors in shadowed.errors]


class _Shadowed(Delegating):
    """A model that also proposes with each cache at every stage, and keeps how far off that is.

    Its state is that of the model without a cache, and those with each of them.
    """

    def __init__(self, model: ARDiffusionModel, caches: Sequence[FeatureCache]) -> None:
        super().__init__(model)
        self.caches = (None, *caches)
        self.errors: list[list[Tensor]] = [[] for _ in caches]

    def begin(self, condition: Any, sampling: SamplingConfig, noise: NoiseSource) -> list[Any]:
        return [self.watched.begin(condition, replace(sampling, cache=cache), noise) for cache in self.caches]

    def propose(self, state: list[Any], stage: int) -> Proposal:
        proposals = [self.watched.propose(one, stage) for one in state]
        exact, *others = (cast(Tensor, proposal.z) for proposal in proposals)
        for errors, z in zip(self.errors, others, strict=True):
            errors.append(((z - exact).square().mean() / exact.square().mean()).sqrt())
        return replace(proposals[0], places=proposals)

    def accept(self, state: list[Any], proposal: Proposal, tokens: Tensor) -> list[Any]:
        return [self.watched.accept(*both, tokens) for both in zip(state, proposal.places, strict=True)]

    def finished(self, state: list[Any]) -> Tensor:
        return super().finished(state[0])

    def finish(self, state: list[Any]) -> Tensor:
        return super().finish(state[0])
