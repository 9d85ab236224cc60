"""Diffusion step annealing for autoregressive generators with a diffusion head."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disa_framework.runtime.feature_cache import FeatureCache, Lazy
    from disa_framework.sampling.config import SamplingConfig
    from disa_framework.sampling.generation import Observer, generate, unfolding
    from disa_framework.sampling.guidance import Guidance, guided
    from disa_framework.sampling.history import StageRecord
    from disa_framework.sampling.noise import NoiseSource, PhiloxNoise

__version__ = "0.2.0"

__all__ = [
    "FeatureCache", "Guidance", "Lazy", "NoiseSource", "Observer", "PhiloxNoise", "SamplingConfig", "StageRecord",
    "generate", "guided", "unfolding",
]  # fmt: skip

_HOMES = {
    "FeatureCache": "runtime.feature_cache", "Lazy": "runtime.feature_cache", "SamplingConfig": "sampling.config",
    "Observer": "sampling.generation", "generate": "sampling.generation", "Guidance": "sampling.guidance",
    "guided": "sampling.guidance", "StageRecord": "sampling.history", "NoiseSource": "sampling.noise",
    "PhiloxNoise": "sampling.noise", "unfolding": "sampling.generation",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """What is asked for, imported then: commands, which begin here, answer to Ctrl-C before PyTorch is there."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
