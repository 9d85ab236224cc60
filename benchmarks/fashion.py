"""What steps, solvers, temperatures and stages do on real images: the MAR of Fashion-MNIST that comes with the package.

    python -m benchmarks.fashion [--count 2000] [--seeds 5] [--fit]

Fréchet distances of all rows, drawn from the same noise, and milliseconds an image, drawing and measuring. `--fit` has
solvers fitted to the head, too, which takes some ten minutes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from disa_framework import SamplingConfig
from disa_framework.hub import load_model
from disa_framework.metrics.quality import FID
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.order import CheckerboardOrder, HaltonOrder
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.search import Limit, Meter, Plan, find
from disa_framework.solvers import DDPM, DPMSolverPP, LogSNR
from disa_framework.toy.classifier import FashionFeatures

CPU = {"accelerator": "cpu"}
STAGES = 16
SCHEDULES: dict[str, StepSchedule] = {
    **{f"constant {steps}": Constant(steps) for steps in (50, 25, 15, 10, 5)},
    **{f"linear {early}→{late}": Linear(early, late) for early, late in ((50, 5), (25, 5), (10, 2))},
    "cosine 25→5": Cosine(25, 5),
    "25 early, 5 late": TwoStage(25, 5),
    "5 early, 25 late": TwoStage(5, 25),
    "reversed 5→25": PerStage(Linear(25, 5).budget(STAGES)[::-1]),
}
ODE, SDE = DPMSolverPP(grid=LogSNR()), DPMSolverPP(grid=LogSNR(), eta=0.5)
FITTED = ((16, 24), (16, 32), (16, 48), (16, 64), (8, 24), (8, 32), (8, 40))
"""Stages, and head evaluations."""


def rows(module: ARDiffusionModule, fitted: bool) -> dict[str, SamplingConfig]:
    """All that is drawn with, by name."""
    base = module.sampling
    found = {f"DDPM, {name}": replace(base, schedule=schedule) for name, schedule in SCHEDULES.items()}
    ramp = replace(base, schedule=Linear(25, 5))
    found |= {
        f"DDPM, linear 25→5, temperature {factor}": replace(ramp, solver=DDPM(temperature=factor))
        for factor in (0.95, 0.9)
    }
    found["DDPM, linear 25→5, Halton"] = replace(ramp, order=HaltonOrder())
    found["DDPM, linear 25→5, checkerboard"] = replace(ramp, order=CheckerboardOrder())
    for name, solver, stages, steps, factor in (
        ("log-SNR", ODE, 16, 5, 1.0), ("log-SNR", ODE, 16, 5, 0.9), ("log-SNR", ODE, 16, 8, 0.9),
        ("log-SNR, eta 0.5", SDE, 16, 8, 0.95), ("log-SNR, eta 0.5", SDE, 12, 8, 0.95),
        ("log-SNR, eta 0.5", SDE, 10, 8, 0.92), ("log-SNR, eta 0.5", SDE, 8, 8, 0.9),
    ):  # fmt: skip
        how = f"{name}, constant {steps}, {stages} stages, temperature {factor}"
        found[how] = SamplingConfig(Constant(steps), replace(solver, temperature=factor), stages)
    return found | (_fitted(module) if fitted else {})


def _fitted(module: ARDiffusionModule) -> dict[str, SamplingConfig]:
    plan, found = Plan(method="fit", profile_samples=300, batch_size=300, trainer=CPU), {}
    for stages, limit in FITTED:
        base = module.drawing(replace(module.sampling, num_stages=stages))
        asked = Limit.evaluations(limit), torch.arange(10), None, plan, "outputs/fashion-fit"
        sampling = find(base, *asked).sampling
        for factor in (1.0, 0.9, 0.88, 0.85):
            cooled = replace(sampling.solver, temperature=factor)  # type: ignore[type-var]
            found[f"fitted, {limit}, {stages} stages, temperature {factor}"] = replace(sampling, solver=cooled)
    return found


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5], help="of the noise")
    parser.add_argument("--fit", action="store_true", help="fitted solvers, too")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = ARDiffusionModule(load_model("fashion/mar").float(), SamplingConfig(Constant(50), DDPM(), STAGES))
    meter = Meter(module, FID(FashionFeatures()), torch.arange(options.count) % 10, 250, CPU)
    print("| | head evaluations | distance | ms an image |\n|---|---|---|---|")
    for name, sampling in rows(module, options.fit).items():
        settled, start = module.model.settle(sampling), time.perf_counter()
        distances = [meter.measure(settled, options.count, seed) for seed in options.seeds]
        spent = 1000 * (time.perf_counter() - start) / options.count / len(distances)
        spread = f" ± {statistics.stdev(distances):.3f}" if len(distances) > 1 else ""
        cost = settled.evaluations(module.model.process)
        print(f"| {name} | {cost} | {statistics.mean(distances):.3f}{spread} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
