"""Many stages of few steps, or few stages of many: what is best in the same time?

    python -m benchmarks.experiments.stages_or_steps [--count 1000] [--seeds 1 2 3] [--milliseconds 2.6 3.43 4.75]

For each number of stages: the most steps, as many at every stage, that an image can have within the time, and the
distance of such images. Times are of a cost model, so that the table does not depend on what else a machine does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.experiments.images import Images, half_stochastic, heading, parser, row
from disa_framework import SamplingConfig
from disa_framework.schedules import Constant

STAGES = (4, 6, 8, 10, 12, 16, 18, 24, 49)
STEPS = range(2, 17)


def milliseconds(stages: int, steps: int) -> float:
    """Of an image on one core, fitted to the seven times of the last table "On Fashion-MNIST" in docs/results.md, from
    which it is off by 2 % at most. A step at all stages evaluates the head once for every token, however many stages
    there are."""
    return 0.14 + 0.22 * stages + 0.134 * steps


def most_steps(limit: float, stages: int) -> int | None:
    """The most steps at all stages that take at most `limit` milliseconds, if there are any."""
    return max((steps for steps in STEPS if milliseconds(stages, steps) <= limit), default=None)


def main(args: Sequence[str] | None = None) -> None:
    made = parser("stages_or_steps", __doc__ or "", 1000, (1, 2, 3))
    made.add_argument("--milliseconds", type=float, nargs="+", default=[2.6, 3.43, 4.75], help="of an image")
    options = made.parse_args(args)
    torch.set_num_threads(options.threads)
    images = Images(options.count, options.seeds)
    heading("at most", "stages", "steps", "head evaluations", "ms an image", "distance")
    for limit in options.milliseconds:
        for stages in STAGES:
            if steps := most_steps(limit, stages):
                distances = images.distances(SamplingConfig(Constant(steps), half_stochastic(stages), stages))
                row(limit, stages, steps, stages * steps, f"{milliseconds(stages, steps):.2f}", distances)


if __name__ == "__main__":
    main()
