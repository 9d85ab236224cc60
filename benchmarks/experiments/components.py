"""Do early stages need more components of a mixture head than late ones? MAR on digits (GIVT's head, arXiv 2312.02116).

    python -m benchmarks.experiments.components [--count 1500] [--seeds 1 2 3] [--trainings 0] [--output FOLDER]

The MAR of configs/digits/mar-mixture.yaml, trained here unless that has been done. A token costs one evaluation of the
head with however many components. Likelihoods are minus those of held-out digits, in nats a channel: less is better,
and components that are not used have no share in them. Distances are Fréchet distances of what is drawn, spread over
the seeds of the noise and the trainings. Fewer components also spread less, as those of a lower temperature do, which
the last rows have instead.

Letters: `K` stages, `M` components.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from benchmarks.experiments.images import heading, parser, row
from disa_framework import PhiloxNoise, SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.diagnostics import Probe, diagnose
from disa_framework.hub import load_model
from disa_framework.hub.loading import build
from disa_framework.metrics.quality import FID
from disa_framework.models import MAR
from disa_framework.module import ARDiffusionModule
from disa_framework.nn.mixture_head import MixtureHead
from disa_framework.nn.tokens import gather_tokens, patchify
from disa_framework.sampling.generation import evaluating
from disa_framework.schedules import Constant, PerStage, StepSchedule
from disa_framework.search import Calibration, Meter, measure_profile
from disa_framework.solvers import Components
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import DigitsData
from examples.digits import train

CONFIG, BATCH, STAGES, ALL, QUARTERS = "digits/mar-mixture", 500, 16, 16, 4
USED = (16, 8, 4, 2, 1)
HALVES = ((16, 2), (8, 2), (5, 1), (3, 1))
"""Components of early and of late stages, or the other way round."""
TEMPERATURES = (0.95, 0.8, 0.6, 0.4)
CALIBRATION, SAMPLES, LIMITS = Calibration((1, 2, 3, 5, 8, 12), reference_steps=ALL), 250, (32, 48, 80)


def load(folder: Path, seed: int) -> ARDiffusionModule:
    """The model of a training, trained first unless it has been."""
    described = yaml.safe_load(Path(find_config(CONFIG)).read_text(encoding="utf-8"))["model"]
    model = build(described["class_path"], described["init_args"])
    assert isinstance(model, MAR)
    model = load_model(train(folder / f"seed{seed}", CONFIG, seed, "random"), model)
    return ARDiffusionModule(model, SamplingConfig(Constant(ALL), Components(), STAGES))


def compared() -> Iterator[tuple[str, SamplingConfig]]:
    """What is drawn with, by name."""
    for name, schedule in schedules():
        yield name, SamplingConfig(schedule, Components(), STAGES)
    for temperature in TEMPERATURES:
        sampling = SamplingConfig(Constant(ALL), Components(temperature), STAGES)
        yield f"{ALL} of {ALL}, temperature {temperature}", sampling


def schedules() -> Iterator[tuple[str, StepSchedule]]:
    """Components of each stage, by name: of two halves also what uses as many in all, constantly."""
    yield from ((f"{used} of {ALL}", Constant(used)) for used in USED)
    for more, fewer in HALVES:
        falling = PerStage((more,) * (STAGES // 2) + (fewer,) * (STAGES // 2))
        yield f"{more} early, {fewer} late", falling
        yield f"{fewer} early, {more} late", PerStage(falling.budget(STAGES)[::-1])
        yield f"constant {(more + fewer) // 2}", Constant((more + fewer) // 2)


@torch.inference_mode()
def surprise(module: ARDiffusionModule) -> Tensor:
    """`-log p` of held-out tokens at each stage with 1 … M components, given the true ones before, `[K, M]`."""
    model, (images, labels) = module.model, DigitsData(polarity="random").val_dataset().tensors
    assert isinstance(model, MAR) and isinstance(model.head, MixtureHead)
    tokens, rows = patchify(images, model.patch_size), []
    with evaluating(model):
        state = model.begin(labels, module.sampling, PhiloxNoise(0, torch.arange(len(labels))))
        for stage in range(STAGES):
            proposal = model.propose(state, stage)
            true, mixture = gather_tokens(tokens, proposal.places[0]), model.head(proposal.z)
            rows.append([-mixture.largest(m + 1).log_density(true).mean() / true.shape[-1] for m in range(ALL)])
            state = model.accept(state, proposal, true)
    return torch.tensor(rows)


def digits_meter(module: ARDiffusionModule, count: int) -> Meter:
    """Measures the Fréchet distance of as many digits of random polarity, labels in turn."""
    quality = FID(DigitsFeatures(), DigitsData(polarity="random"))
    return Meter(module, quality, torch.arange(count) % 10, BATCH, {"accelerator": "cpu"})


class Trained:
    """One of the models, and how its images are measured.

    Args:
        module: the model.
        count: images of a distance.
    """

    def __init__(self, module: ARDiffusionModule, count: int) -> None:
        self.module, self.count, self.surprise = module, count, surprise(module)
        self.meter, self.labels = digits_meter(module, count), torch.arange(count) % 10

    def held_out(self, sampling: SamplingConfig) -> float:
        """`-log p` of held-out digits in nats a channel, with the components of each stage."""
        return float(self.surprise.gather(1, torch.tensor(sampling.budget)[:, None] - 1).mean())

    def distances(self, sampling: SamplingConfig, seeds: Sequence[int]) -> list[float]:
        """Fréchet distances of seeds of the noise."""
        return [self.meter.measure(sampling, self.count, seed) for seed in seeds]


def quarters(values: Tensor) -> list[str]:
    """Means over a quarter of the stages each."""
    return [f"{part.mean():.3f}" for part in values.chunk(QUARTERS)]


def likelihoods(models: Sequence[Trained]) -> None:
    """Of held-out digits, and of what is drawn, at early and late stages; means over the trainings."""
    heading("nats a channel", *(f"quarter {i + 1} of the stages" for i in range(QUARTERS)))
    mean = torch.stack([model.surprise for model in models]).mean(dim=0)
    for used in USED:
        row(f"held out, {used} of {ALL}", *quarters(mean[:, used - 1]))
    parts = [diagnose(model.module, model.labels, ["entropy"], Probe(repeats=2)) for model in models]
    drawn = torch.tensor([part.columns["entropy"] for part in parts])
    row("entropy of what is drawn", *quarters(drawn.mean(dim=0)))


def compare(models: Sequence[Trained], seeds: Sequence[int]) -> None:
    """Likelihood and distance with components of early and of late stages."""
    heading("components", "a stage", "head evaluations", "held out, nats a channel", "distance")
    for name, sampling in compared():
        # A temperature changes the density, too.
        held_out = [model.held_out(sampling) for model in models] if sampling.solver == Components() else ""
        distances = [distance for model in models for distance in model.distances(sampling, seeds)]
        evaluations = sampling.evaluations(models[0].module.model.process)
        row(name, f"{sum(sampling.budget) / STAGES:.1f}", evaluations, held_out, distances)


def calibrate(models: Sequence[Trained], seeds: Sequence[int]) -> None:
    """Where calibration has components, as many in all as the limit says."""
    heading("components in all", "of each stage by calibration", "distance")
    for model in models:
        profile = measure_profile(model.module.model, torch.arange(SAMPLES) % 10, model.module.sampling, CALIBRATION)
        for limit in LIMITS:
            sampling = SamplingConfig(profile.schedule(limit), Components(), STAGES)
            row(limit, " ".join(map(str, sampling.budget)), model.distances(sampling, seeds))


def main(args: Sequence[str] | None = None) -> None:
    made = parser("components", __doc__ or "", 1500, (1, 2, 3))
    made.add_argument("--trainings", type=int, nargs="+", default=[0], help="their seeds")
    made.add_argument("--output", default="outputs/mixture", help="folder of what is trained")
    options = made.parse_args(args)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    models = [Trained(load(Path(options.output), seed), options.count) for seed in options.trainings]
    likelihoods(models)
    print()
    compare(models, options.seeds)
    print()
    calibrate(models, options.seeds)


if __name__ == "__main__":
    main()
