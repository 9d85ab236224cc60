"""What the order of tokens and the sizes of stages do, where the truth is known and solvers are perfect.

    python -m benchmarks.mixture_orders [--mixtures 1 2 3] [--stages 8] [--count 20000]

Tokens of a stage are drawn independently of each other, which is wrong the more they depend on each other. For each
order and each rule of stage sizes: the sliced Wasserstein distance between drawn samples and the exact distribution of
a mixture of Gaussians, less that of as many true samples, with 60 steps of DPM-Solver++ at every stage. Neighbors of
the 16 tokens, which lie on a line, depend on each other most. Means over three seeds of noise, then over mixtures with
their standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch

from benchmarks.mixture_search import NOISE, Truth
from disa_framework import SamplingConfig, generate
from disa_framework.sampling.order import CheckerboardOrder, HaltonOrder, RandomOrder, RasterOrder, TokenOrder
from disa_framework.sampling.stage_sizes import CosineSizes, ExponentialSizes, LinearSizes, StageSizes
from disa_framework.schedules import Constant
from disa_framework.solvers import DPMSolverPP, LogSNR
from disa_framework.toy.mixture import MixtureAR

ORDERS: dict[str, TokenOrder] = {
    "raster": RasterOrder(), "Halton": HaltonOrder(), "random": RandomOrder(),
    **{f"checkerboard, {levels} levels": CheckerboardOrder(levels) for levels in (1, 2, 3)},
}  # fmt: skip
SIZES: dict[str, StageSizes] = {
    "linear": LinearSizes(), "cosine": CosineSizes(), "exponential, rate 2": ExponentialSizes(2.0),
}  # fmt: skip
SOLVER = DPMSolverPP(2, LogSNR(0.9989, 0.001))


def error(seed: int, sampling: SamplingConfig, count: int) -> float:
    """Mean distance above that of true samples."""
    model = MixtureAR(seed=seed)
    truth = Truth(model, count)
    drawn = (generate(model, None, sampling, batch_size=count, seed=noise) for noise in NOISE)
    return statistics.mean(map(truth.distance, drawn)) - truth.floor


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    torch.set_num_threads(options.threads)
    print(f"| order, {options.stages} stages | {' | '.join(SIZES)} |\n|{'---|' * (len(SIZES) + 1)}", flush=True)
    for name, order in ORDERS.items():
        cells = []
        for sizes in SIZES.values():
            sampling = SamplingConfig(Constant(60), SOLVER, options.stages, order=order, stage_sizes=sizes)
            errors = [error(seed, sampling, options.count) for seed in options.mixtures]
            spread = f" ± {statistics.stdev(errors):.3f}" if len(errors) > 1 else ""
            cells.append(f"{statistics.mean(errors):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixture_orders", description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 2, 3], help="seeds of their means")
    parser.add_argument("--stages", type=int, default=8, help="of a sample; 16 draws one token each")
    parser.add_argument("--count", type=int, default=20_000, help="samples of each config")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
