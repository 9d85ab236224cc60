"""What the order of tokens, the sizes of stages and the steps do together, at equal cost, on real images.

    python -m benchmarks.experiments.orders [--count 1000] [--seeds 1 2 3]

Rows of a table have the same number of stages and of head evaluations. The first tables show all orders and sizes, the
next one steps that fall, too, with the published sizes. The last one asks calibration where the steps should go in
each order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.experiments.images import Images, half_stochastic, heading, parser, row
from benchmarks.mixture_orders import ORDERS
from disa_framework import SamplingConfig
from disa_framework.sampling.stage_sizes import CosineSizes, ExponentialSizes, LinearSizes, StageSizes
from disa_framework.schedules import Constant, PerStage, StepSchedule
from disa_framework.search import Calibration, measure_profile

STAGES, STEPS = 16, 5
SIZES: dict[str, StageSizes] = {
    "linear": LinearSizes(), "cosine": CosineSizes(), "exponential": ExponentialSizes(),
}  # fmt: skip
SAME, FALLING = Constant(STEPS), PerStage((8, 8, 7, 7, 6, 6, 5, 5, 5, 5, 4, 4, 3, 3, 2, 2))
COMPARED = ("random", "checkerboard, 1 levels", "checkerboard, 3 levels")
"""Orders that are looked at more closely."""
CALIBRATION = Calibration(menu=(2, 3, 5, 8, 12), other_steps=5, reference_steps=24, stride=2)


def drawn(order: str, sizes: str = "cosine", stages: int = STAGES, schedule: StepSchedule = SAME) -> SamplingConfig:
    """A sampling config."""
    return SamplingConfig(schedule, half_stochastic(stages), stages, order=ORDERS[order], stage_sizes=SIZES[sizes])


def late_share(images: Images, order: str, limits: Sequence[int]) -> list[str]:
    """Shares of the steps that the second half of the stages has in calibrated budgets, in percent."""
    profile = measure_profile(images.module.model, torch.arange(100) % 10, drawn(order), CALIBRATION)
    budgets = [profile.schedule(limit).budget(STAGES) for limit in limits]
    return [f"{100 * sum(budget[STAGES // 2 :]) / sum(budget):.0f} %" for budget in budgets]


def main(args: Sequence[str] | None = None) -> None:
    options = parser("orders", __doc__ or "", 1000, (1, 2, 3)).parse_args(args)
    torch.set_num_threads(options.threads)
    images = Images(options.count, options.seeds)
    for stages in (STAGES, STAGES // 2):
        heading(f"{stages} stages", *SIZES)
        for order in ORDERS:
            row(order, *(images.distances(drawn(order, sizes, stages)) for sizes in SIZES))
    heading("cosine", f"{STAGES} stages", f"{STAGES // 2} stages", f"{STAGES} stages, falling 8→2")
    for order in COMPARED:
        configs = drawn(order), drawn(order, stages=STAGES // 2), drawn(order, schedule=FALLING)
        row(order, *map(images.distances, configs))
    limits = (56, 80, 112)
    heading("steps of the late half", *(f"of {limit}" for limit in limits))
    for order in COMPARED:
        row(order, *late_share(images, order, limits))


if __name__ == "__main__":
    main()
