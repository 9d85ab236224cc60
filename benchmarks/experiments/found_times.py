"""Are found times (`Fitting(coefficients=False)`) better than any grid on the images of a trained model, too?

    python -m benchmarks.experiments.found_times [--count 1000] [--seeds 5 6 7] [--steps 4 6]

DPM-Solver++ of order 2 draws with the MAR of Fashion-MNIST, 8 stages, from the noise that many steps drew with: so the
images differ by what few steps do. Their Fréchet distance, and the root mean square of what quantiles of their pixels
differ by; below them, what many steps from other noise have. Times were found from noise that is not drawn with.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from disa_framework import SamplingConfig, generate
from disa_framework.hub import load_model
from disa_framework.metrics import features_of, frechet_distance, to_uint8
from disa_framework.schedules import Constant
from disa_framework.search import Fitting, fit_solver
from disa_framework.solvers import DPMSolverPP, Grid, Karras, LogSNR, PowerTime, Solver
from disa_framework.toy.classifier import FashionFeatures

STAGES, MANY, SAMPLES = 8, 50, 200
FINE = DPMSolverPP(2, LogSNR(0.98, 0.002))
GRIDS: dict[str, Grid] = {
    "log-SNR": LogSNR(), "log-SNR from 0.98": LogSNR(0.98), "Karras": Karras(), "power": PowerTime(),
}  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    model = load_model("fashion/mar").float()
    solvers: dict[str, Solver] = {name: DPMSolverPP(2, grid) for name, grid in GRIDS.items()}
    for name, shared in (("found times", True), ("found times of each stage", False)):
        fitting, start = Fitting(tuple(options.steps), False, shared, FINE, MANY), time.perf_counter()
        solvers[name] = fit_solver(model, torch.arange(SAMPLES) % 10, SamplingConfig(num_stages=STAGES), fitting)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)

    def draw(solver: Solver, steps: int, seed: int) -> Tensor:
        sampling = SamplingConfig(Constant(steps), solver, STAGES)
        return generate(model, torch.arange(options.count) % 10, sampling, seed=seed)

    many = {seed: draw(FINE, MANY, seed) for seed in options.seeds}
    print("| grid | steps | distance | quantiles |\n|---|---|---|---|")
    for steps in options.steps:
        for name, solver in solvers.items():
            found = [_apart(draw(solver, steps, seed), images) for seed, images in many.items()]
            print(f"| {name} | {steps} | {_spread(found)} |", flush=True)
    others = [_apart(draw(FINE, MANY, seed + 100), images) for seed, images in many.items()]
    print(f"| many steps, other noise | {MANY} | {_spread(others)} |")


def _apart(few: Tensor, many: Tensor) -> tuple[float, float]:
    """The Fréchet distance, and what quantiles of pixels `[B, 1, 28, 28]` differ by."""
    first, second = (features_of(FashionFeatures(), to_uint8(images)) for images in (few, many))
    quantiles = few.sort(dim=0).values - many.sort(dim=0).values
    return frechet_distance(first, second), quantiles.square().mean().sqrt().item()


def _spread(found: Sequence[tuple[float, float]]) -> str:
    """Cells of a table, with standard deviations."""
    return " | ".join(
        f"{statistics.mean(part):.3f} ± {statistics.stdev(part):.3f}" for part in zip(*found, strict=True)
    )


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.found_times", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=1000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7], help="of the noise, two or more")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6], help="at every stage")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
