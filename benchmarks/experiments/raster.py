"""Does annealing help in raster order, where late tokens stay uncertain? SphereAR on digits.

    python -m benchmarks.experiments.raster [--count 1500] [--seeds 1 2 3] [--output outputs/families]

The SphereAR of configs/digits/spherear.yaml, trained as by `python -m examples.families` (or here, if that has not been
done). Distances of constant steps, of ramps that fall and rise, and of what calibration finds, and how many steps each
token has by calibration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from benchmarks.experiments.images import heading, parser, row
from disa_framework import SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.hub import load_model
from disa_framework.hub.loading import build
from disa_framework.metrics.quality import FID
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule
from disa_framework.search import Calibration, Meter, Profile, measure_profile
from disa_framework.solvers import DPMSolverPP, EulerMaruyama, Solver, Uniform
from disa_framework.tokenizers import SphericalPatches
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import DigitsData
from examples.digits import train

CONFIG, BATCH, SAMPLES = "digits/spherear", 500, 250
MENU = (2, 3, 5, 7, 10, 14, 20, 28)
SOLVERS: dict[str, tuple[Solver, tuple[int, ...], tuple[tuple[int, int], ...]]] = {
    # constant steps, and the ends of ramps
    "Euler-Maruyama": (EulerMaruyama(final_step="flow"), (101, 50, 25, 10, 5), ((20, 10), (12, 8), (16, 4))),
    "DPM-Solver++": (DPMSolverPP(grid=Uniform()), (10, 5, 3), ((10, 4), (7, 3))),
}


def load(folder: Path) -> ARDiffusionModule:
    """The trained model, trained first unless it has been."""
    described = yaml.safe_load(Path(find_config(CONFIG)).read_text(encoding="utf-8"))["model"]
    model = build(described["class_path"], described["init_args"])
    assert isinstance(model, ARDiffusionModel)
    model = load_model(train(folder, CONFIG, 0, "random"), model)
    return ARDiffusionModule(model, SamplingConfig(solver=EulerMaruyama()), SphericalPatches())


def schedules(
    profile: Profile, constants: Sequence[int], ramps: Sequence[tuple[int, int]], stages: int
) -> Iterator[tuple[str, StepSchedule]]:
    """What is compared, by name; of every ramp also what takes as many steps in all."""
    yield from ((f"constant {steps}", Constant(steps)) for steps in constants)
    for early, late in ramps:
        budget = Linear(early, late).budget(stages)
        yield f"falling {early}→{late}", PerStage(budget)
        yield f"rising {late}→{early}", PerStage(budget[::-1])
        same = [sum(budget) // stages + (k < sum(budget) % stages) for k in range(stages)]
        yield f"constant {sum(budget) / stages:.1f}", PerStage(tuple(same))
        yield "calibrated", profile.schedule(sum(budget))


def main(args: Sequence[str] | None = None) -> None:
    made = parser("raster", __doc__ or "", 1500, (1, 2, 3))
    made.add_argument("--output", default="outputs/families", help="folder of trained families")
    options = made.parse_args(args)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = load(Path(options.output) / "spherear" / "seed0")
    quality, labels = FID(DigitsFeatures(), DigitsData(polarity="random")), torch.arange(options.count) % 10
    meter = Meter(module, quality, labels, BATCH, {"accelerator": "cpu"})
    for name, (solver, constants, ramps) in SOLVERS.items():
        sampling = replace(module.sampling, solver=solver)
        profile = measure_profile(module.model, torch.arange(SAMPLES) % 10, sampling, Calibration(MENU))
        print()
        heading(name, "head evaluations", "distance", "steps of each token, where calibration found them")
        for label, schedule in schedules(profile, constants, ramps, sampling.stages):
            tried = replace(sampling, schedule=schedule)
            distances = [meter.measure(tried, options.count, seed) for seed in options.seeds]
            found = " ".join(map(str, tried.budget)) if label == "calibrated" else ""
            row(label, tried.evaluations(module.model.process), distances, found)


if __name__ == "__main__":
    main()
