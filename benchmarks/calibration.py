"""Does calibration beat the hand-made ramps at equal cost, where the truth is known?

    python -m benchmarks.calibration [--mixtures 1 2 3] [--limit 440] [--count 20000]

For each mixture of Gaussians: calibrates, then prints the sliced Wasserstein distance between drawn samples and the
exact distribution, less that of as many true samples. Two seeds of noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from disa_framework import generate
from disa_framework.models import MixtureAR
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.search import measure_profile
from disa_framework.search.quality import ProjectedMixture
from disa_framework.solvers import DDPM, DPMSolverPP, Solver, Spaced

STAGES, PROJECTIONS = 16, 128
DDPM_950 = DDPM(Spaced(clip=950))


def measure(model: MixtureAR, limit: int, count: int, seeds: Sequence[int]) -> dict[str, tuple[int, float]]:
    """Steps, and distance above that of true samples, of each schedule."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(PROJECTIONS, STAGES, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    weights = torch.full((len(model.means),), 1 / len(model.means), dtype=torch.float64)
    truth = ProjectedMixture(weights, model.means, model.cholesky, directions)
    exact = [model.sample_exactly(count, torch.Generator().manual_seed(99 + i)).flatten(1) for i in range(3)]
    floor = statistics.mean(truth.distance(points) for points in exact)

    start = time.perf_counter()
    calibrated = measure_profile(model, solver=DDPM_950).schedule(limit)
    print(f"calibration {time.perf_counter() - start:.0f} s: {calibrated.budget(STAGES)}", flush=True)
    half = measure_profile(model, solver=DPMSolverPP(2, Spaced(clip=950)), menu=range(2, 21)).schedule(limit // 2)
    tried: dict[str, tuple[StepSchedule, Solver]] = {
        "linear 50→5": (Linear(50, 5), DDPM_950),
        "cosine 50→5": (Cosine(50, 5), DDPM_950),
        "two-stage 50, 5": (TwoStage(50, 5), DDPM_950),
        "constant": (Constant(limit // STAGES), DDPM_950),
        "calibrated": (calibrated, DDPM_950),
        "calibrated, half, DPM-Solver++": (half, DPMSolverPP(2, Spaced(clip=950))),
    }
    found = {}
    for name, (schedule, solver) in tried.items():
        drawn = [generate(model, batch_size=count, schedule=schedule, solver=solver, seed=seed) for seed in seeds]
        distance = statistics.mean(truth.distance(latents.flatten(1)) for latents in drawn)
        found[name] = (sum(schedule.budget(STAGES)), distance - floor)
    return found


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 2, 3], help="seeds of their means")
    parser.add_argument("--limit", type=int, default=440, help="steps of all stages")
    parser.add_argument("--count", type=int, default=20_000, help="samples of each schedule")
    options = parser.parse_args(args)
    runs = [measure(MixtureAR(seed=seed), options.limit, options.count, (0, 1)) for seed in options.mixtures]
    print("| schedule | steps | " + " | ".join(f"mixture {seed}" for seed in options.mixtures) + " | over linear |")
    print("|---|---|" + "---|" * (len(runs) + 1))
    for name in runs[0]:
        ratio = statistics.mean(run[name][1] / run["linear 50→5"][1] for run in runs)
        steps = " / ".join(sorted({str(run[name][0]) for run in runs}))
        print(f"| {name} | {steps} | " + " | ".join(f"{run[name][1]:.4f}" for run in runs) + f" | {ratio:.2f} |")


if __name__ == "__main__":
    main()
