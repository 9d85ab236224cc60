"""How few head evaluations are enough, where the truth is known?

    python -m benchmarks.mixture_recipes [--mixtures 1 2 3] [--flow] [--count 20000]

For each mixture of Gaussians: the sliced Wasserstein distance between drawn samples and the exact distribution, less
that of as many true samples, as a share of what it is for the paper's ramp: `Linear(50, 5)` with DDPM, or of a flow
`Linear(50, 15)` with Euler's method on FlowAR's grid. Means over three seeds of noise that no search has seen, then
over mixtures. `many steps` is what a perfect solver would have: the rest of it is luck.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.mixture_search import NOISE, STAGES, Truth
from disa_framework import SamplingConfig, generate
from disa_framework.schedules import Constant, Linear
from disa_framework.search import Calibration, Fitting, fit_solver, measure_profile
from disa_framework.solvers import (
    DDPM,
    DPMSolverPP,
    Euler,
    Grid,
    Halves,
    Karras,
    LogSNR,
    PowerTime,
    Process,
    RectifiedFlow,
    Shift,
    SinglestepDPMSolverPP,
    Solver,
    Spaced,
    Sway,
    UniPC,
    VPCosine,
)
from disa_framework.toy.mixture import MixtureAR

LIMITS = (18, 20, 24, 32, 48, 56, 64, 80, 128)
SAMPLES, MENU = 1000, (2, 3, 4, 5, 6, 8, 10, 13, 16)
FINE = DPMSolverPP(2, LogSNR(0.9989, 0.001))
FITTINGS = {
    "found times": Fitting(coefficients=False, shared=True, reference=FINE, steps=MENU),
    "found times, of each stage": Fitting(coefficients=False, reference=FINE, steps=MENU),
    "fitted tables": Fitting(shared=True, reference=FINE),
    "fitted tables, of each stage": Fitting(reference=FINE),
}

Table = dict[str, dict[int, float]]
"""Errors by name and evaluations."""


class Mixture:
    """One mixture, and how far samples are from it."""

    def __init__(self, seed: int, process: Process, count: int) -> None:
        self.model, self.count = MixtureAR(seed=seed, process=process), count
        self.truth = Truth(self.model, count)

    def error(self, sampling: SamplingConfig) -> float:
        """Mean distance above that of true samples."""
        drawn = (generate(self.model, None, sampling, batch_size=self.count, seed=seed) for seed in NOISE)
        return statistics.mean(map(self.truth.distance, drawn)) - self.truth.floor

    def constant(self, solver: Solver) -> dict[int, float]:
        """With as many steps at every stage, where the limit can be met."""
        errors = {}
        for limit in LIMITS:
            sampling = SamplingConfig(Constant(limit // STAGES), solver, STAGES) if limit >= STAGES else None
            if sampling and sampling.evaluations(self.model.process) == limit:
                errors[limit] = self.error(sampling)
        return errors

    def calibrated(self, solver: Solver, calibration: Calibration) -> dict[int, float]:
        """With the best budgets of a profile."""
        base = SamplingConfig(solver=solver, num_stages=STAGES)
        profile, errors = measure_profile(self.model, None, base, calibration, batch_size=SAMPLES), {}
        for limit in LIMITS:
            if limit >= STAGES * min(calibration.menu):
                errors[limit] = self.error(replace(base, schedule=profile.schedule(limit)))
        return errors


def examine(mixture: Mixture, ramp: SamplingConfig) -> Table:
    """Errors of everything."""
    table: Table = {}

    def add(name: str, work: Callable[[], dict[int, float]]) -> None:
        start = time.perf_counter()
        table[name] = work()
        shown = "  ".join(f"{evaluations}: {error:.4f}" for evaluations, error in table[name].items())
        print(f"  {name:42} {time.perf_counter() - start:4.0f} s  {shown}", flush=True)

    process = mixture.model.process
    add("the paper's ramp", lambda: {ramp.evaluations(process): mixture.error(ramp)})
    add("many steps", lambda: {1600: mixture.error(SamplingConfig(Constant(100), FINE, STAGES))})
    for name, solver in _solvers(process).items():
        add(f"{name}, constant", partial(mixture.constant, solver))
        add(f"{name}, calibrated", partial(mixture.calibrated, solver, Calibration(MENU)))
    for name, fitting in FITTINGS.items():
        asked = SamplingConfig(num_stages=STAGES)
        start = time.perf_counter()
        solver = fit_solver(mixture.model, None, asked, fitting, batch_size=SAMPLES)
        print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
        calibration = Calibration(fitting.steps, max(fitting.steps), FINE, 100)
        add(f"{name}, constant", partial(mixture.constant, solver))
        add(f"{name}, calibrated", partial(mixture.calibrated, solver, calibration))
    return table


def _solvers(process: Process) -> dict[str, Solver]:
    grids: dict[str, Grid] = {
        "log-SNR": LogSNR(), "log-SNR from 0.98": LogSNR(0.98), "Karras": Karras(), "power": PowerTime(),
    }  # fmt: skip
    if isinstance(process, RectifiedFlow):
        grids |= {"shift": Shift(), "sway": Sway()}
    more: dict[str, Solver] = {
        "log-SNR, half stochastic": DPMSolverPP(2, LogSNR(), 0.5),
        "log-SNR, UniPC": UniPC(),
        "log-SNR, singlestep": SinglestepDPMSolverPP(2),
    }
    return {name: DPMSolverPP(2, grid) for name, grid in grids.items()} | more


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    torch.set_num_threads(options.threads)
    process: Process = RectifiedFlow() if options.flow else VPCosine()
    ramp = SamplingConfig(Linear(50, 5), DDPM(Spaced(clip=950)), STAGES)
    if options.flow:
        ramp = SamplingConfig(Linear(50, 15), Euler(Halves()), STAGES)
    tables = []
    for seed in options.mixtures:
        print(f"mixture {seed}", flush=True)
        tables.append(examine(Mixture(seed, process, options.count), ramp))
    print(f"| | {' | '.join(map(str, LIMITS))} |\n|{'---|' * (len(LIMITS) + 1)}")
    for name in [*tables[0]][2:]:  # the first two are what the others are held against
        print(f"| {name} | {' | '.join(_cell(tables, name, limit) for limit in LIMITS)} |")


def _cell(tables: Sequence[Table], name: str, limit: int) -> str:
    """Mean share of the ramp's error, and the largest of a mixture."""
    base = [next(iter(table["the paper's ramp"].values())) for table in tables]
    errors = [table[name].get(limit) for table in tables]
    shares = [error / whole for error, whole in zip(errors, base, strict=True) if error is not None]
    return f"{statistics.mean(shares):.2f} ({max(shares):.2f})" if shares else ""


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixture_recipes", description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 2, 3], help="seeds of their means")
    parser.add_argument("--flow", action="store_true", help="heads of a rectified flow")
    parser.add_argument("--count", type=int, default=20_000, help="samples of each config")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
