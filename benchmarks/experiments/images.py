"""How far the images of a sampling config are from true ones, for the MAR of Fashion-MNIST in the package."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import torch

from disa_framework import SamplingConfig
from disa_framework.hub import load_model
from disa_framework.metrics.quality import FID
from disa_framework.module import ARDiffusionModule
from disa_framework.search import Meter
from disa_framework.solvers import DPMSolverPP, LogSNR
from disa_framework.toy.classifier import FashionFeatures
from examples.digits import spread

BATCH = 250


def half_stochastic(stages: int) -> DPMSolverPP:
    """The solver that draws these images best, at a temperature for so many stages, see benchmarks/fashion.py."""
    return DPMSolverPP(grid=LogSNR(), eta=0.5, temperature=0.95 if stages >= 12 else 0.9)


class Images:
    """Measures sampling configs on the same images: labels in turn, the same noise.

    Args:
        count: images for each seed.
        seeds: of the noise.
    """

    def __init__(self, count: int, seeds: Sequence[int]) -> None:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self.count, self.seeds, self.labels = count, seeds, torch.arange(count) % 10
        self.module = ARDiffusionModule(load_model("fashion/mar").float())
        self.meter = Meter(self.module, FID(FashionFeatures()), self.labels, BATCH, {"accelerator": "cpu"})

    def distance(self, sampling: SamplingConfig, seed: int) -> float:
        """The Fréchet distance of the images of one seed."""
        return self.meter.measure(self.module.model.settle(sampling), self.count, seed)

    def distances(self, sampling: SamplingConfig) -> list[float]:
        """Fréchet distances, one for each seed."""
        return [self.distance(sampling, seed) for seed in self.seeds]


def row(*cells: object) -> None:
    """Prints a row of a table; numbers of several seeds as mean and standard deviation."""
    shown = (spread(cell, 3) if isinstance(cell, list) else str(cell) for cell in cells)
    print(f"| {' | '.join(shown)} |", flush=True)


def heading(*cells: object) -> None:
    """Prints the first two rows of a table."""
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


def parser(name: str, text: str, count: int, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Options of an experiment, with what it is run with by default."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.experiments.{name}", description=text.split("\n")[0])
    made.add_argument("--count", type=int, default=count, help="images of each row and seed")
    made.add_argument("--seeds", type=int, nargs="+", default=[*seeds], help="of the noise")
    made.add_argument("--threads", type=int, default=1, help="of PyTorch")
    return made
