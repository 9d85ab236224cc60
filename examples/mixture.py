"""Annealing where the truth is known: sampling error of step schedules on an exact mixture of Gaussians.

    python -m examples.mixture                     the table, one seed of noise and projections
    python -m examples.mixture --seeds 0 1 2       with spread

There is nothing to train, so what is wrong with the samples is the solver's and the schedule's doing. The measure is
the sliced Wasserstein distance to true samples.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from torch import Generator, Tensor
from tqdm import tqdm

from disa_framework import SamplingConfig, generate
from disa_framework.metrics.wasserstein import sliced_wasserstein
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.solvers import DDPM, Spaced
from disa_framework.toy.mixture import MixtureAR

NUM_STAGES = 16
SCHEDULES: dict[str, StepSchedule] = {
    "constant 50": Constant(50),
    "linear 50→5": Linear(50, 5),
    "constant 20": Constant(20),
    "constant 5": Constant(5),
    "reversed 5→50": PerStage(Linear(50, 5).budget(NUM_STAGES)[::-1]),
    "50 early, 3 late": TwoStage(50, 3),
    "3 early, 50 late": TwoStage(3, 50),
}
FLOOR = "true samples"


def distances(model: MixtureAR, count: int, seed: int) -> dict[str, float]:
    """Distance of each schedule's samples from `count` true ones; of true samples among themselves, the floor."""
    truth = model.sample_exactly(count, Generator().manual_seed(2 * seed))
    results = {FLOOR: _distance(model.sample_exactly(count, Generator().manual_seed(2 * seed + 1)), truth)}
    for name, schedule in tqdm(SCHEDULES.items(), desc=f"schedules, seed {seed}"):
        sampling = SamplingConfig(schedule, DDPM(Spaced(clip=950)), NUM_STAGES)
        drawn = generate(model, sampling=sampling, seed=seed, batch_size=count)
        results[name] = _distance(drawn, truth)
    return results


def _distance(drawn: Tensor, truth: Tensor) -> float:
    return sliced_wasserstein(drawn.flatten(1), truth.flatten(1))


def table(runs: Sequence[dict[str, float]]) -> str:
    """Markdown; means, with the standard deviation where there are several runs."""
    lines = ["| schedule | steps | sliced Wasserstein distance |", "|---|---|---|"]
    for name in runs[0]:
        values = [run[name] for run in runs]
        steps = sum(SCHEDULES[name].budget(NUM_STAGES)) if name in SCHEDULES else ""
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {steps} | {statistics.mean(values):.3f}{spread} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.mixture", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of noise, truth and projections")
    parser.add_argument("--count", type=int, default=20_000, help="samples of each schedule")
    options = parser.parse_args(args)
    model = MixtureAR()
    print(table([distances(model, options.count, seed) for seed in options.seeds]))


if __name__ == "__main__":
    main()
