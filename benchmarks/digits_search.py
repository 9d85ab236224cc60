"""Are schedules that were found from data cheaper than hand-made ramps on a trained model?

    python -m benchmarks.digits_search [--seeds 0 1 2] [--trials 40] [--output outputs/table]

For the MAR of `configs/digits/mar.yaml` with random polarity, trained as by `make table` (or here, if that has not been
done): Fréchet distances of hand-made ramps and of found schedules at many budgets of head evaluations, with
noise that no search has seen; ramps at fewer stages than the model's 16, too, as studies may choose among numbers of
stages. Then, for the ramps and for each way of finding, the fewest evaluations whose mean
distance is within the spread over training runs of constant 50's, and the time of an image with them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import optuna
import torch
import yaml
from tqdm import tqdm

from disa_framework.cli.common import find_config
from disa_framework.data import DigitsData, in_turn
from disa_framework.files import write_atomically
from disa_framework.metrics import DigitsFeatures
from disa_framework.models import MAR
from disa_framework.models.checkpoint import apply_weights, load_weights
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.search import analytic_cost, learn, measure_profile
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs, Objective
from disa_framework.search.quality import FID
from disa_framework.search.space import Knots, Setting, Space, Stages
from disa_framework.search.study import Start, choose, fitted_constants, fitted_ramps, search
from examples.digits import train

MENU = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 28, 40)
LIMITS = (28, 34, 40, 48, 56, 68, 80, 96, 128)
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
SHORT = (
    "constant 4", "constant 5", "constant 6", "linear 5→3", "linear 6→2", "linear 8→3", "twostage 5→1", "twostage 5→3",
)  # fmt: skip
BASELINE = "constant 50"
NOISE = 100  # seed of the images that are compared; searches draw with seed 0


class Point(NamedTuple):
    """What a setting costs, its distance in each training run, and what it is in the last of them."""

    evaluations: int
    distances: tuple[float, ...]
    setting: Setting


def examine(module: ARDiffusionModule, options: argparse.Namespace) -> dict[str, tuple[int, float, Setting]]:
    """Evaluations, distance and setting of each schedule, by `way: name`."""
    labels = torch.tensor(in_turn(range(10), options.count))
    quality = FID(DigitsFeatures(), DigitsData(polarity="random"))
    meter = Meter(module, quality, labels, 250, {"accelerator": "cpu"})
    base = Setting.of(module)
    results = {}
    with meter.lead():
        settings = {BASELINE: base}
        settings |= {f"ramp: {name}": replace(base, schedule=ramp) for name, ramp in RAMPS.items()}
        settings |= {
            f"ramp, fewer stages: {name}, {stages} stages": replace(base, schedule=RAMPS[name], num_stages=stages)
            for stages in STAGES[:-1]
            for name in SHORT
        }
        for name, setting in tqdm((settings | found(meter, base, labels, options)).items(), desc="schedules"):
            with setting.applied(module):
                evaluations = module.evaluations()
            results[name] = (evaluations, meter.measure(setting, options.count, NOISE), setting)
    return results


def found(meter: Meter, base: Setting, labels: torch.Tensor, options: argparse.Namespace) -> dict[str, Setting]:
    """Settings from data."""
    module, cost = meter.module, analytic_cost(meter.module)
    profile = measure_profile(module.model, labels[: options.samples], solver=module.solver, menu=MENU)
    every = profile.every_step()
    costs = cost.stage_costs(every.menu)
    settings: dict[str, Setting] = {}
    for limit in LIMITS:
        settings[f"calibrated: {limit}"] = replace(base, schedule=every.schedule(limit, costs, resolution=1.0))
        settings[f"learned: {limit}"] = replace(base, schedule=learn(profile, limit, costs))
    for name, (space, limits) in STUDIES.items() if options.trials else ():
        for limit in limits:
            calibrated = settings[f"calibrated: {limit}"].schedule
            settings[f"{name}: {limit}"] = study(meter, space, limit, calibrated, options)
    return settings


def study(
    meter: Meter, space: Space, limit: int, calibrated: StepSchedule, options: argparse.Namespace
) -> Setting:
    """What a study finds that begins with the ramps at this limit and the calibrated schedule."""
    costs = Costs(meter.module, analytic_cost)
    objective = Objective(meter, costs, space, limit, (options.count // 3, options.count))
    starts: dict[str, Start] = {
        "calibrated": calibrated,
        **fitted_ramps(costs, objective.base, limit),
        **fitted_constants(costs, objective.base, limit, space.num_stages),
    }
    return objective.setting(choose(search(objective, options.trials, starts=starts), objective))


def merged(runs: Sequence[dict[str, tuple[int, float, Setting]]]) -> dict[str, Point]:
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
    lines += [f"| {name} | {p.evaluations} | {_spread(p.distances)} |" for name, p in points.items()]
    return "\n".join(lines) + "\n"


def cheapest(points: dict[str, Point]) -> dict[str, str]:
    """The schedule of fewest evaluations within the spread of the baseline, of each way that has one."""
    bound = statistics.mean(points[BASELINE].distances) + _deviation(points[BASELINE].distances)
    ways: dict[str, str] = {}
    for name, point in sorted(points.items(), key=lambda item: item[1].evaluations):
        if statistics.mean(point.distances) <= bound:
            ways.setdefault(name.split(":")[0], name)
    return ways


def timed(module: ARDiffusionModule, points: dict[str, Point], names: Sequence[str]) -> str:
    """Markdown: what these cost on the clock."""
    meter = Meter(module, None, torch.tensor(in_turn(range(10), 250)), 250, {"accelerator": "cpu"})
    lines = ["| cheapest within the spread | head evaluations | distance | ms per image |", "|---|---|---|---|"]
    latencies = meter.latencies([points[name].setting for name in names])
    for name, latency in zip(names, latencies, strict=True):
        point, time = points[name], 1e3 * latency
        title = f"{name} ({point.setting.num_stages} stages: {' '.join(map(str, point.setting.budget))})"
        lines.append(f"| {title} | {point.evaluations} | {_spread(point.distances)} | {time:.2f} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {_deviation(values):.3f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shape = yaml.safe_load(Path(find_config("digits/search")).read_text())["model"]["init_args"]
    root = Path(options.output) / "random"
    runs = []
    for seed in options.seeds:
        checkpoint = train(root / f"seed{seed}", "digits/mar", seed, "random", options.max_steps)
        module = ARDiffusionModule(MAR(**shape), Constant(50))
        apply_weights(module.model, load_weights(checkpoint), checkpoint)
        runs.append(examine(module, options))
    points = merged(runs)
    text = f"{report(points)}\n{timed(module, points, list(cheapest(points).values()))}"
    write_atomically(root / "search.md", text.encode())
    print(text)


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits_search", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training run each")
    parser.add_argument("--max_steps", type=int, default=7000, help="of training, where it has not been done")
    parser.add_argument("--count", type=int, default=2000, help="images of each schedule")
    parser.add_argument("--samples", type=int, default=500, help="of calibration")
    parser.add_argument("--trials", type=int, default=40, help="of each study; 0 for none")
    parser.add_argument("--output", default="outputs/table", help="where make table has its training runs")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
