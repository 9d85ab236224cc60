"""Are found times (`Fitting(coefficients=False)`) better than any grid on the images of a trained model, too?

    python -m benchmarks.experiments.found_times [--count 1000] [--seeds 5 6 7] [--steps 4 6]

DPM-Solver++ of order 2 draws with the MAR of Fashion-MNIST, 8 stages, from the noise that many steps drew with: so the
images differ by what few steps do. Their Fréchet distance, and the root mean square of what quantiles of their pixels
differ by; below them, what many steps from other noise have. Times were found from noise that is not drawn with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.experiments.images import heading, parser, row
from disa_framework import SamplingConfig, generate
from disa_framework.hub import load_model
from disa_framework.metrics import Features, features_of, frechet_distance, to_uint8
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
    made = parser("found_times", __doc__ or "", 1000, (5, 6, 7))
    made.add_argument("--steps", type=int, nargs="+", default=[4, 6], help="at every stage")
    options = made.parse_args(args)
    torch.set_num_threads(options.threads)
    model, extractor = load_model("fashion/mar").float(), FashionFeatures()
    solvers: dict[str, Solver] = {name: DPMSolverPP(2, grid) for name, grid in GRIDS.items()}
    for name, shared in (("found times", True), ("found times of each stage", False)):
        fitting, start = Fitting(tuple(options.steps), False, shared, FINE, MANY), time.perf_counter()
        solvers[name] = fit_solver(model, torch.arange(SAMPLES) % 10, SamplingConfig(num_stages=STAGES), fitting)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)

    def draw(solver: Solver, steps: int, seed: int) -> tuple[Tensor, Features]:
        sampling = SamplingConfig(Constant(steps), solver, STAGES)
        images = generate(model, torch.arange(options.count) % 10, sampling, seed=seed)
        return images.sort(dim=0).values, features_of(extractor, to_uint8(images))

    many = {seed: draw(FINE, MANY, seed) for seed in options.seeds}

    def compare(name: str, solver: Solver, steps: int, other: int = 0) -> None:
        found = [_apart(draw(solver, steps, seed + other), images) for seed, images in many.items()]
        row(name, steps, *map(list, zip(*found, strict=True)))

    heading("grid", "steps", "distance", "quantiles")
    for steps in options.steps:
        for name, solver in solvers.items():
            compare(name, solver, steps)
    compare("many steps, other noise", FINE, MANY, other=100)


def _apart(few: tuple[Tensor, Features], many: tuple[Tensor, Features]) -> tuple[float, float]:
    """The Fréchet distance, and what sorted pixels `[B, 1, 28, 28]` differ by."""
    return frechet_distance(few[1], many[1]), (few[0] - many[0]).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
