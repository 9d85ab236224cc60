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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, get_args

import optuna
import torch
from torch import Tensor

from disa_framework import generate
from disa_framework.models import MixtureAR
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.schedules.adaptive import Signal
from disa_framework.search import analytic_cost, fit_adaptive, learn, measure_profile
from disa_framework.search.adaptation import Records
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs, Objective
from disa_framework.search.quality import ProjectedMixture, SlicedWasserstein
from disa_framework.search.space import Knots, Parametric, Setting, Space, Stages
from disa_framework.search.study import Start, choose, fitted_ramps, search
from disa_framework.solvers import DDPM, DPMSolverPP, Solver, Spaced

STAGES, PROJECTIONS, SAMPLES = 16, 128, 3000
NOISE = (100, 101, 102)  # seeds of the samples that are compared; searches draw with seed 0
DDPM_950, FAST = DDPM(Spaced(clip=950)), DPMSolverPP(2, Spaced(clip=950))
T = TypeVar("T")
REFERENCE = "linear 50→5"

RUNGS = (10_000, 20_000)  # with fewer samples luck decides which trials are stopped
FEWER = (13, 14, 15)  # numbers of stages to choose from, besides
WARM = (1.0, 1.2)  # temperatures to choose from
SPACES = {
    "searched, 16 groups": Space(Stages(16, 2, 150)),
    "searched, 5 knots": Space(Knots(5, 2, 150)),
    "searched, 5 knots and temperature": Space(Knots(5, 2, 150), temperature=WARM),
    "searched, 5 knots and stages": Space(Knots(5, 2, 150), num_stages=(STAGES, *FEWER)),
    "searched, 5 knots, temperature, stages": Space(Knots(5, 2, 150), temperature=WARM, num_stages=(STAGES, *FEWER)),
}
WARM_LINEAR = Space(Parametric(Linear, (50, 50), (5, 5)), fill=False, temperature=WARM)

Settings = dict[str, Setting]


class Truth:
    """How far samples are from a mixture, above as many true samples."""

    def __init__(self, model: MixtureAR, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(PROJECTIONS, STAGES, generator=generator, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        weights = torch.full((len(model.means),), 1 / len(model.means), dtype=torch.float64)
        self.mixture = ProjectedMixture(weights, model.means, model.cholesky, directions)
        exact = (model.sample_exactly(count, torch.Generator().manual_seed(99 + i)) for i in range(5))
        self.floor = statistics.mean(map(self.distance, exact))

    def distance(self, latents: Tensor) -> float:
        return self.mixture.distance(latents.flatten(1))


def found(model: MixtureAR, solver: Solver, limit: int, name: str, options: argparse.Namespace) -> Settings:
    """Settings from data, at most `limit` head evaluations each."""
    module = ARDiffusionModule(model, Constant(limit // STAGES), solver)
    base, spaces = Setting.of(module), _spaces(solver) if options.trials else {}
    counts = {STAGES: None} | {K: None for space in spaces.values() for K in space.num_stages}
    settings = {title: found for K in counts for title, found in _from_profile(model, solver, K, limit).items()}
    ramps, profiled = fitted_ramps(Costs(module, analytic_cost), base, limit), list(settings.items())
    for title, space in spaces.items():
        starts = {of: start for of, start in profiled if start.num_stages in (space.num_stages or (STAGES,))}
        settings[title] = _timed(title, partial(study, module, space, limit, {**starts, **ramps}, options.trials))
    for signal in get_args(Signal):
        adaptive = fit_adaptive(model, limit=limit, solver=solver, cost=analytic_cost(module), signal=signal)
        settings[f"adaptive, {signal}"] = replace(base, schedule=adaptive)
    return {f"{title}{name}": found for title, found in settings.items()}


def _spaces(solver: Solver) -> dict[str, Space]:
    """What is searched: temperature and number of stages with DDPM alone, where steps are not enough."""
    plain = {title: space for title, space in SPACES.items() if not (space.temperature or space.num_stages)}
    return SPACES if isinstance(solver, DDPM) else plain


def _from_profile(model: MixtureAR, solver: Solver, num_stages: int, limit: int) -> Settings:
    """What is found without trials."""
    module, stages = ARDiffusionModule(model, solver=solver, num_stages=num_stages), f"{num_stages} stages"
    measure = partial(measure_profile, model, solver=solver, num_stages=num_stages, batch_size=SAMPLES)
    profile = _timed(f"profile, {stages}", measure)
    every = profile.every_step()
    costs = analytic_cost(module).stage_costs(every.menu)
    schedules: dict[str, StepSchedule] = {
        "calibrated": every.schedule(limit, costs, resolution=1.0),
        "learned": _timed(f"learning, {stages}", partial(learn, profile, limit, costs)),
    }
    fewer = f", {stages}" if num_stages != STAGES else ""
    return {f"{title}{fewer}": replace(Setting.of(module), schedule=found) for title, found in schedules.items()}


def warm_linear(model: MixtureAR, limit: int, trials: int) -> Settings:
    """What temperature alone does for a ramp."""
    module, name = ARDiffusionModule(model, Linear(50, 5), DDPM_950), "linear 50→5, best temperature"
    return {name: _timed(name, partial(study, module, WARM_LINEAR, limit, {}, trials))} if trials else {}


def study(
    module: ARDiffusionModule, space: Space, limit: int, starts: Mapping[str, Start], trials: int
) -> Setting:
    """What a study finds that begins with these."""
    meter = Meter(module, SlicedWasserstein(64), None, 4000, {"accelerator": "cpu"})
    with meter.lead():
        objective = Objective(meter, Costs(module, analytic_cost), space, limit, RUNGS)
        return objective.setting(choose(search(objective, trials, starts=starts), objective))


def examine(model: MixtureAR, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Evaluations and distance above the floor of each schedule."""
    limit = sum(DDPM_950.evaluations(model.process, steps) for steps in Linear(50, 5).budget(STAGES))
    base = Setting.of(ARDiffusionModule(model, Linear(50, 5), DDPM_950))
    settings: Settings = {
        REFERENCE: base,
        "cosine 50→5": replace(base, schedule=Cosine(50, 5)),
        "two-stage 50, 5": replace(base, schedule=TwoStage(50, 5)),
        "constant 28": replace(base, schedule=Constant(28)),
        **found(model, DDPM_950, limit, "", options),
        **warm_linear(model, limit, options.trials),
        "constant 13, half": replace(base, schedule=Constant(13), solver=FAST),
        **found(model, FAST, limit // 2, ", half", options),
    }
    truth, results = Truth(model, options.count), {}
    for name, setting in settings.items():
        distances, seen = [], Records()
        for seed in NOISE:
            drawn = generate(
                model, batch_size=options.count, schedule=setting.schedule, solver=setting.solver,
                num_stages=setting.num_stages, seed=seed, observers=[seen],
            )  # fmt: skip
            distances.append(truth.distance(drawn))
        evaluations = sum(record.evaluations for record in seen.records) / len(NOISE)
        results[name] = (evaluations, statistics.mean(distances) - truth.floor)
        print(f"  {name:38} {evaluations:6.0f} {results[name][1]:.4f} {seen.budget[: setting.num_stages]}", flush=True)
    return results


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
        spread = f" ± {statistics.stdev(ratios):.2f}" if len(ratios) > 1 else ""
        excesses = " | ".join(f"{run[name][1]:.4f}" for run in runs)
        evaluations = statistics.mean(run[name][0] for run in runs)
        print(f"| {name} | {evaluations:.0f} | {excesses} | {statistics.mean(ratios):.2f}{spread} |")


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixture_search", description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 2, 3], help="seeds of their means")
    parser.add_argument("--count", type=int, default=20_000, help="samples of each schedule")
    parser.add_argument("--trials", type=int, default=40, help="of each study; 0 for none")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
