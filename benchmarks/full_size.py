"""What recipes cost at full size: MAR-B as published, annealed as in the paper, as eMIGM draws, and with ours.

    python -m benchmarks.full_size [--rounds 1] [--batch_size 1] [--device cpu]

Head evaluations, operations of backbone and head as PyTorch's counter has them, and seconds an image
with guidance, the cheapest first. Weights are random, as times hardly depend on them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.files import RECIPES
from disa_framework.measure.latency import RunTimer
from disa_framework.models.mar import MAR, mar_base
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.stage_sizes import CosineSizes, ExponentialSizes
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import DDPM, LogSNR, SinglestepDPMSolverPP, Spaced

GUIDANCE = Guidance(2.9, schedule="linear")
ROWS = {
    "MAR as published, 100": SamplingConfig(Constant(100), DDPM(Spaced(clip=None)), 256, GUIDANCE),
    "DiSA, linear 50→5": SamplingConfig(Linear(50, 5), DDPM(), 64, GUIDANCE),
    "eMIGM as published, 8": SamplingConfig(
        Constant(8),
        SinglestepDPMSolverPP(3, LogSNR(0.995, 0.0, to_clean=False), 1000 / 996),
        16,
        Guidance(4.0, schedule="constant", stages=(0.7, 0.9)),
        stage_sizes=ExponentialSizes(),
    ),
}
RECIPES_OF_OURS = ("best", "balanced", "fast")


def rows() -> dict[str, SamplingConfig]:
    """All that is compared, by name."""
    ours = {f"recipe {name}": SamplingConfig.load(RECIPES / f"mar/{name}.yaml") for name in RECIPES_OF_OURS}
    return ROWS | {name: replace(sampling, guidance=GUIDANCE) for name, sampling in ours.items()}


def products(sampling: SamplingConfig) -> tuple[float, float]:
    """Operations of an image's backbone and head, in units of 1e12, counted without computing.

    What one step more at every stage adds is the head's, and goes with the tokens and guidance branches of a stage.
    """
    with torch.device("meta"):
        model = mar_base().eval()
    once, twice = (_counted(model, replace(sampling, schedule=Constant(steps), solver=DDPM())) for steps in (1, 2))
    sizes = (sampling.stage_sizes or CosineSizes()).sizes(256, sampling.stages)
    rows = [size * (1 + sampling.guidance_at(k).active) for k, size in enumerate(sizes)]
    steps = sum(count * size for count, size in zip(sampling.budget, rows, strict=True))
    return (2 * once - twice) / 1e12, (twice - once) * steps / sum(rows) / 1e12


def _counted(model: MAR, sampling: SamplingConfig) -> int:
    with FlopCounterMode(display=False) as counter:
        generate(model, torch.arange(1), sampling)
    return counter.get_total_flops()


@torch.inference_mode()
def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="of each, one after the other")
    parser.add_argument("--batch_size", type=int, default=1, help="images drawn together")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)
    torch.manual_seed(0)
    model = mar_base().to(options.device).eval()
    compared = {name: model.settle(sampling) for name, sampling in rows().items()}
    module, labels = ARDiffusionModule(model), torch.arange(options.batch_size)
    timers = {
        name: RunTimer(module.drawing(sampling), labels, options.batch_size) for name, sampling in compared.items()
    }
    timers["recipe fast"]()  # which warms up
    print("| | stages | head evaluations | backbone, TFLOP | head, TFLOP | s an image |")
    print("|---|---|---|---|---|---|")
    for name, sampling in reversed(compared.items()):  # the longest last
        spent = statistics.median(timers[name]() for _ in range(options.rounds)) / options.batch_size
        backbone, head = products(sampling)
        cost = sampling.evaluations(model.process)
        print(f"| {name} | {sampling.stages} | {cost} | {backbone:.2f} | {head:.2f} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
