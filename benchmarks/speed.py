"""How much faster is sampling than a plain implementation that recomputes everything at each step?

    python -m benchmarks.speed [--families mar flowar xar] [--threads 2] [--repeats 5] [--clock cpu] [--quick]
                               [--products pytorch] [--compile] [--refresh 4] [--precision bf16]

Draws the same images by `generate` and by the plain samplers of benchmarks/reference.py, in turn, with the same random
weights and noise: batch 4, width 256, guidance 3. Prints seconds (median and range), how many of them go from noise to
tokens (head), the rest being the backbone's, the ratio of each pair of runs (median and range) beside its target, and
how far outputs are apart, relative to the largest value. The plain sampler draws in float32 whatever `generate` does.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference
from disa_framework import FeatureCache, Guidance, Lazy, Observer, PhiloxNoise, SamplingConfig, StageRecord, generate
from disa_framework.models import MAR, XAR, ARDiffusionModel, FlowAR
from disa_framework.models.base import Proposal
from disa_framework.runtime import products
from disa_framework.runtime.compiling import compile_regions
from disa_framework.runtime.memory import keep_freed_memory
from disa_framework.schedules import Linear, PerStage
from disa_framework.schedules.base import Budget
from disa_framework.solvers import DDPM, Euler, EulerMaruyama, Halves, Solver

BATCH = 4


@dataclass(frozen=True)
class Family:
    """What is timed.

    Attributes:
        name: as it is printed.
        make: the model.
        plain: its plain sampler.
        solver, schedule, num_stages, guidance: of the run.
        target: seconds of `generate` over those of the plain sampler, at most.
    """

    name: str
    make: Callable[[], ARDiffusionModel]
    plain: Callable[..., Tensor]
    solver: Solver
    schedule: Linear
    num_stages: int
    guidance: Guidance
    target: float


def _mar() -> MAR:
    return MAR(
        encoder_width=256, encoder_depth=6, encoder_heads=4, decoder_width=256, decoder_depth=6, decoder_heads=4,
        head_depth=3, head_width=512,
    )  # fmt: skip


def _flowar() -> FlowAR:
    return FlowAR(
        width=256, encoder_depth=4, encoder_heads=4, decoder_depth=4, decoder_heads=4, head_depth=4, head_width=256,
        cross_attention=True,
    )  # fmt: skip


def _xar() -> XAR:
    return XAR(width=256, encoder_depth=4, encoder_heads=4, decoder_depth=4, decoder_heads=4)


FAMILIES = {
    "mar": Family("MAR", _mar, reference.mar, DDPM(), Linear(50, 5), 64, Guidance(3.0), 0.8),
    "flowar": Family(
        "FlowAR v2", _flowar, reference.flowar, Euler(Halves()), Linear(25, 15), 5,
        Guidance(3.0, interval=(0.0, 0.9)), 0.65,
    ),
    "xar": Family("xAR", _xar, reference.xar, EulerMaruyama(), Linear(50, 15), 4, Guidance(3.0), 0.75),
}  # fmt: skip


Clock = Callable[[], float]
Sampler = Callable[[Budget], tuple[Tensor, float]]
"""From a budget to latents and the seconds between noise and tokens."""

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(family: Family, options: argparse.Namespace) -> str:
    """A line of the table."""
    quick, clock = options.quick, CLOCKS[options.clock]
    exact = _without_zeros(family.make()).eval()
    model = copy.deepcopy(exact).to(PRECISIONS[options.precision])
    if options.products == "fastest":
        products.use_fast_products(model)
    if options.compile:
        compile_regions(model)
    stages = max(model.min_stages, 4) if quick else family.num_stages
    budget = (Linear(3, 2) if quick else family.schedule).budget(stages)
    samplers = _samplers(family, model, exact, Lazy(options.refresh) if options.refresh > 1 else None, clock)
    for sample in samplers:  # warms up
        sample((2,) * stages)
    for steps in budget:
        family.solver.table(model.process, steps)
    times: list[list[float]] = [[], []]
    heads: list[list[float]] = [[], []]
    apart = 0.0
    for turn in range(options.repeats):
        drawn: dict[int, Tensor] = {}
        for which in (0, 1) if turn % 2 else (1, 0):
            start = clock()
            drawn[which], head = samplers[which](budget)
            times[which].append(clock() - start)
            heads[which].append(head)
        apart = max(apart, ((drawn[0] - drawn[1]).abs().max() / drawn[1].abs().max()).item())
    ratios = [ours / plain for ours, plain in zip(*times, strict=True)]
    spent_on = [
        text
        for whole, head in zip(times, heads, strict=True)
        for text in (f"{_spread(whole)} s", f"{statistics.median(head):.3g} s")
    ]
    return "| " + " | ".join([family.name, *spent_on, _spread(ratios), f"{family.target}", f"{apart:.0e}"]) + " |"


class _HeadTime(Observer):
    """Seconds between noise and tokens."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds = clock, 0.0

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.seconds -= self.clock()

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.seconds += self.clock()


def _samplers(
    family: Family, model: ARDiffusionModel, exact: ARDiffusionModel, cache: FeatureCache | None, clock: Clock
) -> tuple[Sampler, Sampler]:
    """Ours, and the plain one of the model in float32."""
    labels = torch.arange(BATCH)
    noise = PhiloxNoise(0, labels)

    def ours(budget: Budget) -> tuple[Tensor, float]:
        sampling = SamplingConfig(PerStage(budget), family.solver, len(budget), family.guidance, cache)
        watch = _HeadTime(clock)
        return generate(model, labels, sampling, noise=noise, observers=[watch]), watch.seconds

    def plain(budget: Budget) -> tuple[Tensor, float]:
        seconds = 0.0

        def timed(*stage: Any) -> Tensor:
            nonlocal seconds
            start = clock()
            tokens = reference.integrate(*stage)
            seconds += clock() - start
            return tokens

        return family.plain(exact, labels, budget, family.solver, family.guidance, noise, timed), seconds

    return ours, plain


def _without_zeros(model: ARDiffusionModel) -> ARDiffusionModel:
    """Fills what starts at zero, so that every weight shows in what is drawn."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def _spread(values: Sequence[float]) -> str:
    """Median, and range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} … {max(values):.3g})"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine that others use, too")
    parser.add_argument("--products", choices=["fastest", "pytorch"], default="fastest", help="who multiplies")
    parser.add_argument("--compile", action="store_true", help="generate with a compiled model")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="32", help="of generate")
    parser.add_argument("--refresh", type=int, default=1, help="generate with feature caching (MAR)")
    parser.add_argument("--quick", action="store_true", help="few stages and steps, to see that it runs")
    options = parser.parse_args(args)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    multiplies = "oneDNN" if products.ONEDNN and options.products == "fastest" else "PyTorch as it is"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    runs = f"{options.repeats} pair(s) of runs, {options.clock} time"
    how = f"precision {options.precision}, {options.threads} thread(s), products by {multiplies}"
    print(f"batch {BATCH}, {how}, {runs}, {versions}\n")
    print(f"| family | generate | its head | plain | its head | ratio | target | apart |\n|{'---|' * 8}")
    for name in options.families:
        print(measure(FAMILIES[name], options), flush=True)


if __name__ == "__main__":
    main()
