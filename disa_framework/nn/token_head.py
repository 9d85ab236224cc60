"""Which head draws the tokens of a model."""

from __future__ import annotations

from disa_framework.nn.diffusion_head import DiffusionHead, TokenHead
from disa_framework.nn.flow_map_head import FlowMapHead
from disa_framework.nn.mixture_head import MixtureHead
from disa_framework.solvers.process import VPCosine


def token_head(
    channels: int,
    cond_width: int,
    depth: int,
    width: int,
    process: VPCosine,
    components: int | None,
    least_scale: float,
    self_distillation: float | None = None,
) -> TokenHead:
    """A diffusion head of a process, a mixture head where there is a number of components, or a flow-map head where
    there is a share of self-distillation.

    Raises:
        ValueError: both are given, or one is out of range.
    """
    if components is not None and self_distillation is not None:
        raise ValueError("a head has components or self_distillation, not both: leave one of them out")
    if components is not None:
        return MixtureHead(channels, cond_width, depth, width, components, least_scale)
    if self_distillation is not None:
        return FlowMapHead(channels, cond_width, depth, width, self_distillation)
    return DiffusionHead(channels, cond_width, depth, width, process)
