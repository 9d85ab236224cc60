"""Diffusion step annealing for autoregressive image generators with a diffusion head."""

from disa_framework.generation import Observer, StageRecord, generate
from disa_framework.guidance import Guidance
from disa_framework.memory import keep_freed_memory
from disa_framework.noise import NoiseSource, PhiloxNoise

__version__ = "0.1.0"

__all__ = ["Guidance", "NoiseSource", "Observer", "PhiloxNoise", "StageRecord", "generate", "keep_freed_memory"]
