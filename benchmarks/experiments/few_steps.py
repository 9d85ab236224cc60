"""Does annealing pay for a head that needs one to four steps? MAR on digits with a flow-map head (arXiv 2505.18825).

    python -m benchmarks.experiments.few_steps [--count 1500] [--seeds 1] [--trainings 0 1 2] [--output FOLDER]

Heads of the MAR in configs/digits/mar-lsd.yaml, trained here unless that has been done: of a `flow`, for many steps;
from `scratch`, with jumps from the beginning; `distilled`, which learned jumps from the flow's, with the backbone as it
was; and `longer`, which in the place of that learned on as a flow. The last two share a backbone, so that one may draw
the early stages, and the other the late ones.

Distances are Fréchet distances of what is drawn, means and deviations over trainings and seeds of the noise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.experiments.components import digits_meter
from benchmarks.experiments.images import heading, parser, row
from disa_framework import SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.hub import load_model
from disa_framework.models import MAR
from disa_framework.models.base import Delegating, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, PerStage, StepSchedule
from disa_framework.search import Calibration, Meter, measure_profile
from disa_framework.solvers import Euler
from examples.digits import train

CONFIG, STAGES, LATE = "digits/mar-lsd", 16, 8
FLOW, LONGER, SCRATCH, DISTILLED = HEADS = "flow", "longer", "scratch", "distilled"
MORE_STEPS = 1000
"""Training steps of the heads that go on from a flow's."""
STEPS = (1, 2, 4, 10)
EARLY = (2, 3, 8)
"""Steps of an early stage where the heads are swapped."""
CALIBRATION, SAMPLES, LIMITS = Calibration((1, 2, 3, 4), other_steps=2, reference_steps=8), 250, (24, 32)
FALLING = {
    "4 → 1": (4, 4, 4, 3, 3, 2, 2, 2, *[1] * LATE),
    "3 → 1": (*[3] * LATE, *[1] * LATE),
    "2 → 1": (*[2] * LATE, *[1] * LATE),
}
"""Steps of each stage: of the first two as many in all as two at each."""


class Swapped(Delegating):
    """Two models with one backbone: the head of the first draws the early stages, that of the second the late ones.

    Args:
        early, late: the models.
    """

    def __init__(self, early: MAR, late: MAR) -> None:
        super().__init__(early)
        self.late = late

    def propose(self, state: Any, stage: int) -> Proposal:
        return (self.late if stage >= LATE else self.watched).propose(state, stage)


def checkpoint(folder: Path, head: str, seed: int) -> Path:
    """The weights of a training, trained first unless it has been."""
    more, steps = ["--samples", "0"], None
    if head in (FLOW, LONGER):
        more += ["--model.self_distillation", "0"]
    if head in (LONGER, DISTILLED):
        more += ["--trainer.callbacks+", "disa_framework.callbacks.Teacher"]
        more += ["--trainer.callbacks.weights", str(checkpoint(folder, FLOW, seed))]
        steps = MORE_STEPS
    return train(folder / head / f"seed{seed}", CONFIG, seed, "random", steps, more)


def load(folder: Path, head: str, seed: int) -> MAR:
    """The model of a training."""
    described = yaml.safe_load(Path(find_config(CONFIG)).read_text(encoding="utf-8"))["model"]
    return load_model(checkpoint(folder, head, seed), MAR(**described["init_args"]))  # type: ignore[return-value]


def schedules() -> Iterator[tuple[str, StepSchedule]]:
    """Steps of each stage, by name, those that fall both ways round."""
    yield from ((f"constant {steps}", Constant(steps)) for steps in STEPS)
    for name, budget in FALLING.items():
        yield name, PerStage(budget)
        yield f"{name}, reversed", PerStage(budget[::-1])


def sampled(schedule: StepSchedule) -> SamplingConfig:
    """Drawn in jumps."""
    return SamplingConfig(schedule, Euler(), STAGES)


class Compared:
    """Models of several trainings that are drawn with in the same ways.

    Args:
        models: one for each training.
        count: images of a distance.
        seeds: of the noise.
    """

    def __init__(self, models: Sequence[MAR | Swapped], count: int, seeds: Sequence[int]) -> None:
        self.models, self.count, self.seeds = models, count, seeds
        modules = [ARDiffusionModule(model, sampled(Constant(1))) for model in models]
        self.meters: list[Meter] = [digits_meter(module, count) for module in modules]

    def distances(self, *schedules: StepSchedule) -> list[float]:
        """Of all trainings and seeds, each training with a schedule of its own, or all with the same."""
        each = schedules if len(schedules) > 1 else schedules * len(self.meters)
        pairs = [*zip(self.meters, each, strict=True)]
        return [m.measure(sampled(one), self.count, seed) for m, one in pairs for seed in self.seeds]

    def calibrated(self, limits: Sequence[int]) -> Iterator[tuple[int, list[StepSchedule]]]:
        """Where calibration has the steps of each training, as many in all as a limit says."""
        labels = torch.arange(SAMPLES) % 10
        profiles = [measure_profile(m, labels, sampled(Constant(1)), CALIBRATION) for m in self.models]
        for limit in limits:
            yield limit, [profile.schedule(limit) for profile in profiles]


def annealing(heads: dict[str, Compared]) -> None:
    """Constant, falling and rising steps of each head; trainings differ by more than steps do, so those of the last
    also as a share of what two steps at each stage have."""
    heading("steps of a stage", "head evaluations", *heads, "the last, over constant 2")
    constant = [*heads.values()][-1].distances(Constant(2))
    for name, schedule in schedules():
        *others, last = (head.distances(schedule) for head in heads.values())
        shares = [found / base for found, base in zip(last, constant, strict=True)]
        row(name, sum(schedule.budget(STAGES)), *others, last, shares)


def calibration(heads: dict[str, Compared]) -> None:
    """The same with steps where calibration has them."""
    heading("head", "head evaluations", "steps of each stage, of the first training", "distance")
    for name, head in heads.items():
        for limit, found in head.calibrated(LIMITS):
            row(name, limit, " ".join(map(str, found[0].budget(STAGES))), head.distances(*found))


def swapping(pairs: dict[str, Compared]) -> None:
    """Many steps early, and one late, of one head or of two."""
    heading("heads of early and late stages", *(f"{early} early, 1 late" for early in EARLY))
    for name, pair in pairs.items():
        row(name, *(pair.distances(PerStage((*[early] * LATE, *[1] * LATE))) for early in EARLY))


def main(args: Sequence[str] | None = None) -> None:
    made = parser("few_steps", __doc__ or "", 1500, (1,))
    made.add_argument("--trainings", type=int, nargs="+", default=[0, 1, 2], help="their seeds")
    made.add_argument("--output", default="outputs/few-steps", help="folder of what is trained")
    options = made.parse_args(args)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder, asked = Path(options.output), (options.count, options.seeds)
    models = {head: [load(folder, head, seed) for seed in options.trainings] for head in HEADS}
    heads = {head: Compared(trained, *asked) for head, trained in models.items()}
    annealing(heads)
    print()
    calibration({DISTILLED: heads[DISTILLED]})
    print()
    swapped = [Swapped(*pair) for pair in zip(models[LONGER], models[DISTILLED], strict=True)]
    swapping({name: heads[name] for name in (LONGER, DISTILLED)} | {"longer, distilled": Compared(swapped, *asked)})


if __name__ == "__main__":
    main()
