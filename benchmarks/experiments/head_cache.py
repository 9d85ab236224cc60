"""Does it pay to cache within the head over its steps, as LazyMAR does (arXiv 2503.12450), or are fewer steps better?

    python -m benchmarks.experiments.head_cache [--count 1000] [--seed 5]

LazyMAR's settings, 64 stages of 100 steps with guidance, on the MAR of `benchmarks.speed` with random weights: seconds
of the processor with what guidance added reused (`Guidance.reuse`), with feature caching, with both, and with 25 steps.
Then the Fréchet distance of the same ways to draw, on the MAR of Fashion-MNIST that comes with the package.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.fashion import CPU
from benchmarks.reference import integrate
from benchmarks.speed import FAMILIES
from disa_framework import Guidance, Lazy, PhiloxNoise, SamplingConfig, generate
from disa_framework.hub import load_model
from disa_framework.metrics.quality import FID
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.memory import keep_freed_memory
from disa_framework.schedules import Constant
from disa_framework.search import Meter
from disa_framework.toy.classifier import FashionFeatures

STEPS, FEWER, STAGES, PERIOD, BATCH = 100, 25, 64, 7, 2
WAYS = (
    (STEPS, 1, None), (STEPS, PERIOD, None), (STEPS, 1, Lazy()), (STEPS, PERIOD, Lazy()), (FEWER, 1, None),
    (FEWER, 1, Lazy()),
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.head_cache", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=1000, help="images of each distance")
    parser.add_argument("--seed", type=int, default=5, help="of the noise")
    options = parser.parse_args(args)
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mar, labels, guidance = FAMILIES["mar"], torch.arange(BATCH), Guidance(3.0)
    large = ARDiffusionModule(mar.make().eval()).model
    small, asked = ARDiffusionModule(load_model("fashion/mar").float()), torch.arange(options.count) % 10
    meter = Meter(small, FID(FashionFeatures()), asked, 250, CPU)
    noise, budget = PhiloxNoise(0, labels), (STEPS,) * STAGES
    plain = _seconds(lambda: mar.plain(large, labels, budget, mar.solver, guidance, noise, integrate))
    print(
        f"plain implementation: {plain:.1f} s\n\n| steps | cached | reuse | seconds | distance |\n|---|---|---|---|---|"
    )
    for steps, reuse, cache in WAYS:
        sampling = SamplingConfig(
            Constant(steps), num_stages=STAGES, guidance=replace(guidance, reuse=reuse), cache=cache
        )
        spent = _seconds(partial(generate, large, labels, sampling))
        drawn = replace(sampling, num_stages=16, guidance=Guidance(1.5, reuse=reuse))
        distance = meter.measure(drawn, options.count, options.seed)
        print(f"| {steps} | {'yes' if cache else 'no'} | {reuse} | {spent:.1f} | {distance:.3f} |", flush=True)


def _seconds(draw: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    draw()
    return time.process_time() - start


if __name__ == "__main__":
    main()
