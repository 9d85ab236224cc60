"""Are schedules that were found from data cheaper than hand-made ramps on a trained model?

    python -m benchmarks.digits_search [--seeds 0 1 2] [--trials 40] [--recipe_trials 80] [--output outputs/table]

For the MAR of `configs/digits/mar.yaml` with random polarity, trained as by `make table` (or here, if that has not been
done): Fréchet distances of hand-made ramps and of found schedules at many budgets of head evaluations, with
noise that no search has seen; ramps at fewer stages than the model's 16, too, as studies may choose among numbers of
stages. Then, for the ramps and for each way of finding, the fewest evaluations whose mean
distance is within the spread over training runs of constant 50's, and the time of an image with them. At last, for
each training run, the recipe that a study finds by itself, which chooses all there is to choose and is to be as good as
the cheapest of the ramps in as little time as possible, timed in turn with that ramp.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
import yaml
from tqdm import tqdm

from disa_framework import SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.files import write_atomically
from disa_framework.hub.checkpoint import apply_weights, load_weights
from disa_framework.metrics.quality import FID
from disa_framework.models import MAR
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.search import Calibration, Fitting, Knots, Limit, Meter, Plan, Space, Stages, find
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import DigitsData
from examples.digits import spread, train

MENU = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 28, 40)
LIMITS = (28, 34, 40, 48, 56, 68, 80, 96, 128)
FEW = (16, 20, 24, 32, 48)  # limits of fitted tables
TEMPERATURES = (1.0, 0.9)
STAGES = (6, 7, 8, 10, 12, 16)
STUDIES = {  # spaces, and the limits that they are searched at
    "studied": (Space(Stages(16, 1, 20)), (40, 56)),
    "studied, stages chosen": (Space(Knots(3, 1, 20), num_stages=STAGES), (34, 48)),
}
PAIRS = (
    (3, 1), (4, 1), (5, 1), (4, 2), (5, 2), (6, 2), (8, 2), (10, 2), (5, 3), (8, 3), (10, 3), (15, 3), (25, 5), (50, 5),
)  # fmt: skip
RAMPS: dict[str, StepSchedule] = {
    **{f"constant {steps}": Constant(steps) for steps in (2, 3, 4, 5, 6, 8, 10, 25)},
    **{f"{kind.__name__} {a}→{b}".lower(): kind(a, b) for kind in (Linear, Cosine, TwoStage) for a, b in PAIRS},
}
COOLED = ("constant 3", "constant 5", "linear 10→2", "linear 50→5")
SHORT = (
    "constant 4", "constant 5", "constant 6", "linear 5→3", "linear 6→2", "linear 8→3", "twostage 5→1", "twostage 5→3",
)  # fmt: skip
BASELINE = "constant 50"
_RECIPE = (
    "", "solver", "steps", "order", "stage sizes", "cache", "head evaluations", "distance", "ms per image"
)  # fmt: skip
CPU = {"accelerator": "cpu"}
NOISE = 100  # seed of the images that are compared; searches draw with seed 0


class Point(NamedTuple):
    """What a config costs, its distance in each training run, and what it is in the last of them."""

    evaluations: int
    distances: tuple[float, ...]
    sampling: SamplingConfig


def examine(module: ARDiffusionModule, options: argparse.Namespace) -> dict[str, tuple[int, float, SamplingConfig]]:
    """Evaluations, distance and config of each schedule, by `way: name`."""
    labels, quality = torch.arange(options.count) % 10, FID(DigitsFeatures(), DigitsData(polarity="random"))
    base, results = module.sampling, {}
    samplings = {BASELINE: base}
    samplings |= {f"ramp: {name}": replace(base, schedule=ramp) for name, ramp in RAMPS.items()}
    cooled = replace(base, solver=replace(base.solver, temperature=0.9))  # type: ignore[type-var]
    samplings |= {f"ramp, temperature 0.9: {name}": replace(cooled, schedule=RAMPS[name]) for name in COOLED}
    samplings |= {
        f"ramp, fewer stages: {name}, {stages} stages": replace(base, schedule=RAMPS[name], num_stages=stages)
        for stages in STAGES[:-1]
        for name in SHORT
    }
    samplings |= found(module, quality, options)
    meter = Meter(module, quality, labels, 250, CPU)
    for name, sampling in tqdm(samplings.items(), desc="schedules"):
        evaluations = sampling.evaluations(module.model.process)
        results[name] = (evaluations, meter.measure(sampling, options.count, NOISE), sampling)
    return results


def found(module: ARDiffusionModule, quality: FID, options: argparse.Namespace) -> dict[str, SamplingConfig]:
    """Configs from data."""
    plan = Plan(
        rungs=(options.count // 3, options.count), seeds=1, batch_size=250, calibration=Calibration(MENU),
        trials=options.trials or 1, profile_samples=options.samples, trainer=CPU,
    )  # fmt: skip
    samplings = {}
    with tempfile.TemporaryDirectory() as folder:

        def finding(limit: int, **how: Any) -> SamplingConfig:
            asked = replace(plan, study_name=f"{limit} {how}", **how)
            return find(module, Limit.evaluations(limit), torch.arange(10), quality, asked, folder).sampling

        for limit in FEW:
            fitted = finding(limit, method="fit")
            for temperature in TEMPERATURES:
                solver = replace(fitted.solver, temperature=temperature)  # type: ignore[type-var]
                samplings[f"fitted, temperature {temperature}: {limit}"] = replace(fitted, solver=solver)
        for limit in LIMITS:
            samplings[f"calibrated: {limit}"] = finding(limit, method="calibrate")
            samplings[f"learned: {limit}"] = finding(limit, method="learn")
        for name, (space, limits) in STUDIES.items() if options.trials else ():
            samplings |= {f"{name}: {limit}": finding(limit, space=space) for limit in limits}
    return samplings


def merged(runs: Sequence[dict[str, tuple[int, float, SamplingConfig]]]) -> dict[str, Point]:
    """Each schedule over the training runs; a found one has as many evaluations as the dearest of them."""
    return {
        name: Point(
            max(run[name][0] for run in runs),
            tuple(run[name][1] for run in runs),
            runs[-1][name][2],
        )
        for name in runs[0]
    }


def report(points: dict[str, Point]) -> str:
    """Markdown."""
    lines = ["| schedule | head evaluations | distance |", "|---|---|---|"]
    lines += [f"| {name} | {p.evaluations} | {spread(p.distances, 3)} |" for name, p in points.items()]
    return "\n".join(lines) + "\n"


def cheapest(points: dict[str, Point]) -> dict[str, str]:
    """The schedule of fewest evaluations within the spread of the baseline, of each way that has one."""
    bound = statistics.mean(points[BASELINE].distances) + _deviation(points[BASELINE].distances)
    ways: dict[str, str] = {}
    for name, point in sorted(points.items(), key=lambda item: item[1].evaluations):
        if statistics.mean(point.distances) <= bound:
            ways.setdefault(name.split(":")[0], name)
    return ways


def recipes(modules: Sequence[ARDiffusionModule], ramp: SamplingConfig, root: Path, options: argparse.Namespace) -> str:
    """Markdown: what a study finds by itself that is as good as a ramp, for each training run."""
    quality, limit = FID(DigitsFeatures(), DigitsData(polarity="random")), Limit.quality(0.0)
    plan = Plan(
        trials=options.recipe_trials, rungs=(options.count // 2, options.count), batch_size=250, fitting=Fitting(),
        calibration=Calibration(MENU), profile_samples=options.samples, trainer=CPU,
    )  # fmt: skip
    lines = [f"| training run | {' | '.join(_RECIPE)} |", f"|---|{'---|' * len(_RECIPE)}"]
    for seed, module in zip(options.seeds, modules, strict=True):
        found = find(module.drawing(ramp), limit, torch.arange(10), quality, plan, root / f"seed{seed}/recipe")
        for row in (found.rows[0], found.rows[-1]):
            sampling, time = row.sampling, 1e3 * (row.latency or 0.0)
            parts = (
                row.name, sampling.solver, " ".join(map(str, sampling.budget)), sampling.order, sampling.stage_sizes,
                sampling.cache, sampling.evaluations(module.model.process), row.distance, f"{time:.2f}",
            )  # fmt: skip
            lines.append(f"| {seed} | {' | '.join(map(str, parts))} |")
    return "\n".join(lines) + "\n"


def timed(module: ARDiffusionModule, points: dict[str, Point], names: Sequence[str]) -> str:
    """Markdown: what these cost on the clock."""
    meter = Meter(module, None, torch.arange(250) % 10, 250, CPU)
    lines = ["| cheapest within the spread | head evaluations | distance | ms per image |", "|---|---|---|---|"]
    latencies = meter.latencies([points[name].sampling for name in names])
    for name, latency in zip(names, latencies, strict=True):
        point, time = points[name], 1e3 * latency
        title = f"{name} ({point.sampling.stages} stages: {' '.join(map(str, point.sampling.budget))})"
        lines.append(f"| {title} | {point.evaluations} | {spread(point.distances, 3)} | {time:.2f} |")
    return "\n".join(lines) + "\n"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shape = yaml.safe_load(Path(find_config("digits/search")).read_text())["model"]["init_args"]
    root = Path(options.output) / "random"
    runs, modules = [], []
    for seed in options.seeds:
        checkpoint = train(root / f"seed{seed}", "digits/mar", seed, "random", options.max_steps)
        module = ARDiffusionModule(MAR(**shape), SamplingConfig(num_stages=STAGES[-1]))
        apply_weights(module.model, load_weights(checkpoint), checkpoint)
        runs.append(examine(module, options))
        modules.append(module)
    points = merged(runs)
    ways = cheapest(points)
    text = f"{report(points)}\n{timed(module, points, list(ways.values()))}"
    if options.recipe_trials:
        text += f"\n{recipes(modules, points[ways.get('ramp', BASELINE)].sampling, root, options)}"
    write_atomically(root / "search.md", text.encode())
    print(text)


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits_search", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training run each")
    parser.add_argument("--max_steps", type=int, default=7000, help="of training, where it has not been done")
    parser.add_argument("--count", type=int, default=2000, help="images of each schedule")
    parser.add_argument("--samples", type=int, default=500, help="of calibration")
    parser.add_argument("--trials", type=int, default=40, help="of each study; 0 for none")
    parser.add_argument("--recipe_trials", type=int, default=80, help="of the study of all there is; 0 for none")
    parser.add_argument("--output", default="outputs/table", help="where make table has its training runs")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
