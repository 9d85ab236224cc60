"""Do schedules that were found from data beat the hand-made ramps at equal cost, where the truth is known?

    python -m benchmarks.mixture_search [--mixtures 1 2 3] [--count 20000] [--trials 40]

For each mixture of Gaussians: the sliced Wasserstein distance between drawn samples and the exact distribution, less
that of as many true samples, as a share of what it is for `Linear(50, 5)` with DDPM. Schedules have the same number of
head evaluations; those in the second part half as many, with DPM-Solver++ of order 2. Means and standard deviations
over the mixtures; each is drawn from with three seeds of noise that no search has seen.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import optuna
import torch
from torch import Tensor

from disa_framework import SamplingConfig, generate
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.schedules.adaptive import Signal
from disa_framework.search import Knots, Limit, Meter, Plan, Space, Stages, find
from disa_framework.search.adaptation import Records
from disa_framework.solvers import DDPM, DPMSolverPP, Solver, Spaced
from disa_framework.toy.exact import ProjectedMixture, SlicedWasserstein
from disa_framework.toy.mixture import MixtureAR
from examples.digits import spread

STAGES, PROJECTIONS = 16, 128
NOISE = (100, 101, 102)  # seeds of the samples that are compared; searches draw with seed 0
DDPM_950, FAST = DDPM(Spaced(clip=950)), DPMSolverPP(2, Spaced(clip=950))
T = TypeVar("T")
REFERENCE = "linear 50→5"

FEWER = (13, 14, 15)  # numbers of stages to choose from, besides
WARM = (1.0, 1.2)  # temperatures to choose from
SPACES = {
    "searched, 16 groups": Space(Stages(16, 2, 150)),
    "searched, 5 knots": Space(Knots(5, 2, 150)),
    "searched, 5 knots and temperature": Space(Knots(5, 2, 150), temperature=WARM),
    "searched, 5 knots and stages": Space(Knots(5, 2, 150), num_stages=(STAGES, *FEWER)),
    "searched, 5 knots, temperature, stages": Space(Knots(5, 2, 150), temperature=WARM, num_stages=(STAGES, *FEWER)),
}
DISTANCE, CPU = SlicedWasserstein(64), {"accelerator": "cpu"}
# With fewer samples luck decides which trials are stopped.
PLAN = Plan(rungs=(10_000, 20_000), batch_size=4000, seeds=1, profile_samples=3000, trainer=CPU)

Samplings = dict[str, SamplingConfig]


class Truth:
    """How far samples are from a mixture, above as many true samples."""

    def __init__(self, model: MixtureAR, count: int) -> None:
        self.mixture = ProjectedMixture.of(model, projections=PROJECTIONS)
        exact = (model.sample_exactly(count, torch.Generator().manual_seed(99 + i)) for i in range(5))
        self.floor = statistics.mean(map(self.distance, exact))

    def distance(self, latents: Tensor) -> float:
        return self.mixture.distance(latents.flatten(1))


def module(model: MixtureAR, schedule: StepSchedule, solver: Solver, num_stages: int = STAGES) -> ARDiffusionModule:
    return ARDiffusionModule(model, SamplingConfig(schedule, solver, num_stages))


def found(model: MixtureAR, solver: Solver, limit: int, folder: Path, trials: int) -> Samplings:
    """Configs from data, at most `limit` head evaluations each."""

    def finding(title: str, num_stages: int = STAGES, **options: Any) -> SamplingConfig:
        asked = module(model, Constant(limit // STAGES), solver, num_stages)
        plan, work = replace(PLAN, study_name=title, **options), partial(find, asked, Limit.evaluations(limit))
        return _timed(title, lambda: work(None, DISTANCE, plan, folder).sampling)

    results, spaces = {}, _spaces(solver) if trials else {}
    for stages in (STAGES, *(FEWER if any(space.num_stages for space in spaces.values()) else ())):
        fewer = f", {stages} stages" if stages != STAGES else ""
        results[f"calibrated{fewer}"] = finding(f"calibrated{fewer}", stages, method="calibrate")
        results[f"learned{fewer}"] = finding(f"learned{fewer}", stages, method="learn")
    for title, space in spaces.items():
        results[title] = finding(title, space=space, trials=trials)
    for signal in get_args(Signal):
        title = f"adaptive, {signal}"
        results[title] = finding(title, method="adapt", signal=signal, batch_size=500)
    return results


def _spaces(solver: Solver) -> dict[str, Space]:
    """What is searched: temperature and number of stages with DDPM alone, where steps are not enough."""
    plain = {title: space for title, space in SPACES.items() if not (space.temperature or space.num_stages)}
    return SPACES if isinstance(solver, DDPM) else plain


def warm_linear(model: MixtureAR) -> Samplings:
    """What temperature alone does for a ramp."""
    ramp, name = module(model, Linear(50, 5), DDPM_950), "linear 50→5, best temperature"
    meter = Meter(ramp, DISTANCE, None, PLAN.batch_size, CPU)
    warm = [replace(ramp.sampling, solver=replace(DDPM_950, temperature=1 + i / 50)) for i in range(11)]

    def distance(sampling: SamplingConfig) -> float:
        return statistics.mean(meter.measure(sampling, PLAN.rungs[-1], seed) for seed in range(3))

    return {name: _timed(name, lambda: min(warm, key=distance))}


def examine(model: MixtureAR, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Evaluations and distance above the floor of each config."""
    base, fast = module(model, Linear(50, 5), DDPM_950).sampling, module(model, Constant(13), FAST).sampling
    limit = base.evaluations(model.process)
    with tempfile.TemporaryDirectory() as name:
        whole = found(model, DDPM_950, limit, Path(name, "whole"), options.trials)
        half = found(model, FAST, limit // 2, Path(name, "half"), options.trials)
    samplings = {
        REFERENCE: base,
        "cosine 50→5": replace(base, schedule=Cosine(50, 5)),
        "two-stage 50, 5": replace(base, schedule=TwoStage(50, 5)),
        "constant 28": replace(base, schedule=Constant(28)),
        **whole,
        **warm_linear(model),
        "constant 13, half": fast,
        **{f"{title}, half": sampling for title, sampling in half.items()},
    }
    truth = Truth(model, options.count)
    return {name: measured(model, name, sampling, truth, options.count) for name, sampling in samplings.items()}


def measured(model: MixtureAR, name: str, sampling: SamplingConfig, truth: Truth, count: int) -> tuple[float, float]:
    """Evaluations and distance above the floor."""
    distances, seen = [], Records()
    for seed in NOISE:
        drawn = generate(model, None, sampling, batch_size=count, seed=seed, observers=[seen])
        distances.append(truth.distance(drawn))
    evaluations = sum(record.evaluations for record in seen.records) / len(NOISE)
    distance = statistics.mean(distances) - truth.floor
    print(f"  {name:38} {evaluations:6.0f} {distance:.4f} {seen.budget[: sampling.stages]}", flush=True)
    return evaluations, distance


def _timed(name: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = work()
    print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return result


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs = []
    for seed in options.mixtures:
        print(f"mixture {seed}")
        runs.append(examine(MixtureAR(seed=seed), options))
    mixtures = " | ".join(f"mixture {seed}" for seed in options.mixtures)
    print(f"| schedule | head evaluations | {mixtures} | over {REFERENCE} |\n|{'---|' * (len(runs) + 3)}")
    for name in runs[0]:
        ratios = [run[name][1] / run[REFERENCE][1] for run in runs]
        excesses = " | ".join(f"{run[name][1]:.4f}" for run in runs)
        evaluations = statistics.mean(run[name][0] for run in runs)
        print(f"| {name} | {evaluations:.0f} | {excesses} | {spread(ratios, 2)} |")


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixture_search", description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 2, 3], help="seeds of their means")
    parser.add_argument("--count", type=int, default=20_000, help="samples of each schedule")
    parser.add_argument("--trials", type=int, default=40, help="of each study; 0 for none")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
