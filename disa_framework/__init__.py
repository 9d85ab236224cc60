"""Diffusion step annealing for autoregressive generators with a diffusion head."""

from disa_framework.runtime.feature_cache import FeatureCache, Lazy
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer, generate
from disa_framework.sampling.guidance import Guidance, guided
from disa_framework.sampling.history import StageRecord
from disa_framework.sampling.noise import NoiseSource, PhiloxNoise

__version__ = "0.2.0"

__all__ = [
    "FeatureCache", "Guidance", "Lazy", "NoiseSource", "Observer", "PhiloxNoise", "SamplingConfig", "StageRecord",
    "generate", "guided",
]  # fmt: skip
