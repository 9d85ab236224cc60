"""Does it pay to reuse what guidance added (`Guidance.reuse`), rather than to take fewer steps?

    python -m benchmarks.guidance_reuse [--models mar xar] [--count 2000] [--seeds 5 6 7] [--reuse 1 2 3 4 7]

On the MAR of Fashion-MNIST that comes with the package, whose backbone takes most of the time, and on an xAR of digits
that is trained first, whose head is all of the model. Fréchet distances, and milliseconds an image, measuring included,
with every period of reuse, and with a quarter fewer steps, which take as many branches as period 2. Then what tokens
of single stages are off by, all others being as with period 1, as a share of what guidance moves them by. Training run
and distances are kept: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from benchmarks.fashion import CPU, SDE, Results
from disa_framework import Guidance, PhiloxNoise, SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.hub import load_model
from disa_framework.metrics.quality import FID
from disa_framework.models import XAR, ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.generation import evaluating, sample_stage
from disa_framework.schedules import Constant, Linear, StepSchedule
from disa_framework.search import Meter
from disa_framework.solvers import DDPM, EulerMaruyama, Solver
from disa_framework.tokenizers import SpaceToDepth
from disa_framework.toy.classifier import DigitsFeatures, FashionFeatures
from disa_framework.toy.digits import DigitsData
from examples.digits import train

BATCH = 250
SCALES = (1.5, 3.0)


@dataclass(frozen=True)
class Subject:
    """What is drawn.

    Attributes:
        load: the model and its tokenizer, from a folder where it is trained if it must be.
        quality: by which images are measured.
        stages: number of them.
        cases: solvers, their steps, and a quarter fewer.
    """

    load: Callable[[Path], ARDiffusionModule]
    quality: Callable[[], FID]
    stages: int
    cases: tuple[tuple[Solver, StepSchedule, StepSchedule], ...]


def _mar(folder: Path) -> ARDiffusionModule:
    return ARDiffusionModule(load_model("fashion/mar").float())


def _xar(folder: Path) -> ARDiffusionModule:
    checkpoint = train(folder / "xar", "digits/xar", 0, "random")
    model = XAR(**yaml.safe_load(Path(find_config("digits/xar")).read_text())["model"]["init_args"])
    return ARDiffusionModule(load_model(checkpoint, model), SamplingConfig(solver=SDE), SpaceToDepth(2))


SUBJECTS = {
    "mar": Subject(
        _mar, lambda: FID(FashionFeatures()), 16,
        ((DDPM(), Linear(25, 5), Linear(19, 4)), (SDE, Constant(8), Constant(6))),
    ),
    "xar": Subject(
        _xar, lambda: FID(DigitsFeatures(), DigitsData(polarity="random")), 4,
        ((EulerMaruyama(), Linear(50, 15), Linear(38, 11)), (SDE, Constant(8), Constant(6))),
    ),
}  # fmt: skip


@torch.inference_mode()
def missed(model: ARDiffusionModel, samplings: Sequence[SamplingConfig], seed: int) -> list[list[float]]:
    """Root mean squares, by config but the first and by stage, of what tokens are off from those of the first one, with
    which all go on."""
    labels, noise = torch.arange(BATCH) % 10, PhiloxNoise(seed, torch.arange(BATCH))
    settled, found = [model.settle(sampling) for sampling in samplings], []
    with evaluating(model):
        states = [model.begin(labels, sampling, noise) for sampling in settled]
        for stage, steps in enumerate(settled[0].budget):
            proposals, solver = [model.propose(state, stage) for state in states], settled[0].solver
            tokens = [sample_stage(model, proposal, stage, steps, solver, noise) for proposal in proposals]
            states = [model.accept(state, made, tokens[0]) for state, made in zip(states, proposals, strict=True)]
            found.append([(other - tokens[0]).square().mean().sqrt().item() for other in tokens[1:]])
    return [list(column) for column in zip(*found, strict=True)]


def examine(name: str, options: argparse.Namespace) -> None:
    """Prints the tables of a model."""
    subject, folder = SUBJECTS[name], Path(options.output)
    module, labels = subject.load(folder), torch.arange(options.count) % 10
    meter, results = Meter(module, subject.quality(), labels, BATCH, CPU), Results(folder / "distances.json")
    for solver, steps, fewer in subject.cases:
        for scale in SCALES:
            plain = SamplingConfig(steps, solver, subject.stages)
            rows = {f"{period}": replace(plain, guidance=Guidance(scale, reuse=period)) for period in options.reuse}
            *shares, whole = missed(module.model, [*rows.values(), plain], options.seeds[0])
            rows[f"1, {fewer}"] = replace(plain, schedule=fewer, guidance=Guidance(scale))
            print(f"\n{name}, {type(solver).__name__}, {steps}, guidance {scale:g}\n")
            print("| reuse | distance | ms an image |\n|---|---|---|")
            for title, sampling in rows.items():
                draws = [results.measure(meter, sampling, options.count, seed, name) for seed in options.seeds]
                distances, spent = [draw["distance"] for draw in draws], statistics.median(draw["ms"] for draw in draws)
                spread = f" ± {statistics.stdev(distances):.3f}" if len(draws) > 1 else ""
                print(f"| {title} | {statistics.mean(distances):.3f}{spread} | {spent:.1f} |", flush=True)
            stages = sorted({round(i * (subject.stages - 1) / 3) for i in range(4)})
            print("\n| reuse | " + " | ".join(f"stage {k}" for k in stages) + " |\n|---" + "|---" * len(stages) + "|")
            for title, row in zip([*rows][1:], shares, strict=False):
                cells = " | ".join(f"{row[k] / (whole[k] or 1):.2f}" for k in stages)
                print(f"| {title} | {cells} |", flush=True)


def main(args: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance_reuse", description=about)
    parser.add_argument("--models", nargs="+", choices=[*SUBJECTS], default=[*SUBJECTS])
    parser.add_argument("--count", type=int, default=2000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7], help="of the noise")
    parser.add_argument("--reuse", type=int, nargs="+", default=[1, 2, 3, 4, 7], help="periods; the first one is 1")
    parser.add_argument("--output", default="outputs/guidance-reuse", help="where what is found is kept")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in options.models:
        examine(name, options)


if __name__ == "__main__":
    main()
