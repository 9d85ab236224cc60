"""What steps, solvers, temperatures and stages do on real images: the models of Fashion-MNIST that ship.

    python -m benchmarks.fashion [--model mar] [--ckpt_path RUN ...] [--count 2000] [--seeds 5 6 7] [--fit]

The paper's figure: Fréchet distance against head evaluations, for constant steps, ramps, steps that rise, and cuts of
the early and the late half; beside them other solvers. All draw from the same noise. A table, and a picture of it.
`--fit` has solvers fitted to the head of MAR, too, which takes some ten minutes. Rows are kept: a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from disa_framework import SamplingConfig, values
from disa_framework.files import write_atomically
from disa_framework.hub import load_model
from disa_framework.metrics.quality import FID
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.search import Limit, Meter, Plan, find
from disa_framework.solvers import (
    DDPM,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Halves,
    LogSNR,
    PowerTime,
    Solver,
    UniPC,
)
from disa_framework.tokenizers import SpaceToDepth, Tokenizer
from disa_framework.toy.classifier import FashionFeatures

CPU = {"accelerator": "cpu"}
PAIRS, FALLING = ((50, 5), (25, 5), (10, 2)), ((12, 4), (10, 3), (8, 3), (6, 3))
ODE, SDE, UNIPC = DPMSolverPP(grid=LogSNR()), DPMSolverPP(grid=LogSNR(), eta=0.5), UniPC(grid=LogSNR())
FITTED = ((16, 24), (16, 32), (16, 48), (16, 64), (8, 24), (8, 32), (8, 40))
"""Stages, and head evaluations."""

Series = dict[str, dict[str, SamplingConfig]]
"""Sampling configs by line of the figure and name."""


@dataclass(frozen=True)
class Family:
    """How the model of a configuration is drawn with.

    Attributes:
        solver: the published one, with its grid.
        stages: number of them.
        tokenizer: of the configuration.
        others: solvers to compare with, by name.
    """

    solver: Solver
    stages: int
    others: dict[str, Solver]
    tokenizer: Tokenizer | None = None


_DENOISING: dict[str, Solver] = {"log-SNR": ODE, "log-SNR, eta 0.5": SDE, "UniPC": UNIPC}
_FLOW: dict[str, Solver] = {**_DENOISING, "power 1.5": DPMSolverPP(grid=PowerTime())}
FAMILIES = {
    "mar": Family(DDPM(), 16, _DENOISING),
    "causal": Family(DDPM(), 49, _DENOISING),
    "flowar": Family(Euler(Halves()), 4, _FLOW, SpaceToDepth(4)),
    "xar": Family(EulerMaruyama(), 4, _FLOW, SpaceToDepth(4, 2)),
}


def schedules(stages: int) -> dict[str, dict[str, StepSchedule]]:
    """The paper's, by line of the figure and name."""
    return {
        "constant": {f"constant {steps}": Constant(steps) for steps in (50, 25, 15, 10, 5)},
        "linear": {f"linear {a}→{b}": Linear(a, b) for a, b in PAIRS},
        "cosine": {f"cosine {a}→{b}": Cosine(a, b) for a, b in PAIRS},
        "two-stage": {f"{a} early, {b} late": TwoStage(a, b) for a, b in PAIRS if a != 25},
        "rising": {f"reversed {b}→{a}": PerStage(Linear(a, b).budget(stages)[::-1]) for a, b in PAIRS},
        "late half cut": {f"25 early, {steps} late": TwoStage(25, steps) for steps in (2, 5, 10)},
        "early half cut": {f"{steps} early, 25 late": TwoStage(steps, 25) for steps in (2, 5, 10)},
    }


def rows(family: Family) -> Series:
    """All that any of the families is drawn with."""
    base = SamplingConfig(Constant(50), family.solver, family.stages)
    found: Series = {
        line: {name: replace(base, schedule=schedule) for name, schedule in members.items()}
        for line, members in schedules(family.stages).items()
    }
    for name, solver in family.others.items():
        drawn = replace(base, solver=solver)
        found[f"{name}, constant"] = {
            f"{name}, constant {steps}": replace(drawn, schedule=Constant(steps)) for steps in (3, 5, 8, 12)
        }
        found[f"{name}, linear"] = {
            f"{name}, linear {early}→{late}": replace(drawn, schedule=Linear(early, late)) for early, late in FALLING
        }
    return found


def rows_of_mar() -> Series:
    """Temperatures, and fewer stages."""
    ramp = SamplingConfig(Linear(25, 5), DDPM(), 16)
    found = {
        f"linear 25→5, temperature {factor}": replace(ramp, solver=DDPM(temperature=factor)) for factor in (0.95, 0.9)
    }
    for name, solver, stages, steps, factor in (
        ("log-SNR", ODE, 16, 5, 0.9), ("log-SNR", ODE, 16, 8, 0.9),
        ("log-SNR, eta 0.5", SDE, 16, 8, 0.95), ("log-SNR, eta 0.5", SDE, 12, 8, 0.95),
        ("log-SNR, eta 0.5", SDE, 10, 8, 0.92), ("log-SNR, eta 0.5", SDE, 8, 8, 0.9),
    ):  # fmt: skip
        how = f"{name}, constant {steps}, {stages} stages, temperature {factor}"
        found[how] = SamplingConfig(Constant(steps), replace(solver, temperature=factor), stages)
    return {"temperature and stages": found}


def fitted_rows(module: ARDiffusionModule, output: Path) -> Series:
    """Solvers fitted to the head of MAR."""
    plan, found = Plan(method="fit", profile_samples=300, batch_size=300, trainer=CPU), {}
    for stages, limit in FITTED:
        base = module.drawing(replace(module.sampling, num_stages=stages))
        asked = Limit.evaluations(limit), torch.arange(10), None, plan, str(output / "fit")
        sampling = find(base, *asked).sampling
        for factor in (1.0, 0.9, 0.88, 0.85):
            cooled = replace(sampling.solver, temperature=factor)  # type: ignore[type-var]
            found[f"fitted, {limit}, {stages} stages, temperature {factor}"] = replace(sampling, solver=cooled)
    return {"fitted": found}


class Results:
    """Distances and times that are kept in a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, meter: Meter, sampling: SamplingConfig, count: int, seed: int, weights: str) -> dict[str, float]:
        """Distance, head evaluations and milliseconds an image of one draw."""
        settled = meter.module.model.settle(sampling)
        key = json.dumps([values.dump(settled), count, seed, weights])
        if key not in self.kept:
            start = time.perf_counter()
            distance = meter.measure(settled, count, seed)
            spent = 1000 * (time.perf_counter() - start) / count
            cost = settled.evaluations(meter.module.model.process)
            self.kept[key] = {"distance": distance, "evaluations": cost, "ms": spent}
            write_atomically(self.path, json.dumps(self.kept, indent=1).encode())
        return self.kept[key]


Point = tuple[float, float, float]
"""Head evaluations, mean distance and its standard deviation."""


def measured(
    runs: dict[str, Meter], series: Series, results: Results, count: int, seeds: Sequence[int]
) -> Iterator[tuple[str, Point]]:
    """Prints a table, a row at a time, and gives the points of the figure with their lines."""
    print("| | head evaluations | distance | ms an image |\n|---|---|---|---|")
    for line, members in series.items():
        for name, sampling in members.items():
            draws = [
                results.measure(meter, sampling, count, seed, weights)
                for weights, meter in runs.items()
                for seed in seeds
            ]
            distances = [draw["distance"] for draw in draws]
            mean, spread = statistics.mean(distances), statistics.stdev(distances) if len(draws) > 1 else 0.0
            spent = statistics.median(draw["ms"] for draw in draws)
            cost = draws[0]["evaluations"]
            shown = f"{mean:.3f} ± {spread:.3f}" if len(draws) > 1 else f"{mean:.3f}"
            print(f"| {name} | {cost:.0f} | {shown} | {spent:.1f} |", flush=True)
            yield line, (cost, mean, spread)


def plot(path: Path, title: str, points: Sequence[tuple[str, Point]]) -> Path:
    """Draws distance over head evaluations, a line for each series."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
    for line in dict.fromkeys(line for line, _ in points):
        costs, means, spreads = zip(*sorted(point for name, point in points if name == line), strict=True)
        own = "," in line  # a solver of ours
        axes.errorbar(costs, means, spreads, marker="." if own else "o", linestyle="--" if own else "-", label=line)
    axes.set(xscale="log", yscale="log", xlabel="head evaluations of an image", ylabel="Fréchet distance", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    return path


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    name, output = f"fashion/{options.model}", Path(options.output)
    family, condition, quality = FAMILIES[options.model], torch.arange(options.count) % 10, FID(FashionFeatures())
    base = SamplingConfig(Constant(50), family.solver, family.stages)
    runs = {}
    for weights in options.ckpt_path or [name]:
        module = ARDiffusionModule(load_model(weights, load_model(name).float()), base, family.tokenizer)
        runs[weights] = Meter(module, quality, condition, 250, CPU)
    series = rows(family)
    if options.model == "mar":
        series |= rows_of_mar()
        series |= fitted_rows(module, output) if options.fit else {}
    results = Results(output / f"{options.model}.json")
    points = list(measured(runs, series, results, options.count, options.seeds))
    draws = f"{len(runs)} training run(s), {len(options.seeds)} seed(s), {options.count:,} images"
    print(f"\npicture {plot(output / f'{options.model}.png', f'{name}: {draws}', points)}")


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=[*FAMILIES], default="mar", help="of the configurations fashion/…")
    parser.add_argument(
        "--ckpt_path", nargs="+", help="training runs instead of the weights that come with the package"
    )
    parser.add_argument("--count", type=int, default=2000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7], help="of the noise")
    parser.add_argument("--fit", action="store_true", help="solvers fitted to the head of MAR, too")
    parser.add_argument("--output", default="outputs/fashion-figure")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
