"""How far cached features are from computed ones, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from disa_framework.generation import generate
from disa_framework.guidance import Guidance
from disa_framework.models.base import ARDiffusionModel, Condition, Delegating, Proposal
from disa_framework.models.lazy import Lazy, caching
from disa_framework.module import ARDiffusionModule
from disa_framework.noise import NoiseSource
from disa_framework.schedules import Constant


def cache_errors(
    module: ARDiffusionModule, condition: Condition | None, count: int, caches: Sequence[Lazy], steps: int = 50
) -> list[list[float]]:
    """For each cache and stage, how far `z` is from what it is without a cache, given the same tokens.

    It is the root of the mean square of the difference over that of `z`, on the way that is drawn without a cache.

    Args:
        module: model, solver, guidance, number of stages and seed.
        condition: of the samples, labels or prompts; `None` draws `count` unconditional ones.
        caches: to be compared.
        steps: at every stage.

    Raises:
        ValueError: if the model caches nothing, or the request does not fit it.
    """
    shadowed = _Shadowed(module.model, caches)
    generate(
        shadowed, condition, schedule=Constant(steps), solver=module.solver, num_stages=module.num_stages,
        guidance=module.guidance, seed=module.seed, batch_size=count,
    )  # fmt: skip
    return [[error.item() for error in errors] for errors in shadowed.errors]


class _Shadowed(Delegating):
    """A model that also proposes with each cache at every stage, and keeps how far off that is.

    Its state is that of the model without a cache, and those with each of them.
    """

    def __init__(self, model: ARDiffusionModel, caches: Sequence[Lazy]) -> None:
        super().__init__(model)
        self.caches = (None, *caches)
        self.errors: list[list[Tensor]] = [[] for _ in caches]

    def begin(
        self, condition: Any, num_stages: int, guidance: Guidance, noise: NoiseSource, batch_size: int
    ) -> Any:
        return [self._begin(cache, condition, num_stages, guidance, noise, batch_size) for cache in self.caches]

    def propose(self, state: Any, stage: int) -> Proposal:
        proposals = [self._propose(state, cache, stage) for state, cache in zip(state, self.caches, strict=True)]
        exact, *others = (cast(Tensor, proposal.z) for proposal in proposals)
        for errors, z in zip(self.errors, others, strict=True):
            errors.append(((z - exact).square().mean() / exact.square().mean()).sqrt())
        return Proposal(proposals[0].shape, proposals[0].denoise, proposals)

    def accept(self, state: Any, proposal: Proposal, tokens: Tensor) -> Any:
        return [self.watched.accept(s, p, tokens) for s, p in zip(state, proposal.places, strict=True)]

    def finish(self, state: Any) -> Tensor:
        return self.watched.finish(state[0])

    def _begin(self, cache: Lazy | None, *request: Any) -> Any:
        with caching(self.watched, cache):
            return self.watched.begin(*request)

    def _propose(self, state: Any, cache: Lazy | None, stage: int) -> Proposal:
        with caching(self.watched, cache):
            return self.watched.propose(state, stage)
