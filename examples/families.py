"""Every family on real images: trains each on handwritten digits, and compares constant with annealed steps.

    python -m examples.families                              every family, three training runs
    python -m examples.families --families xar --seeds 0     one of them

Random polarity: every image is inverted or not, which the first tokens decide for all others. Checkpoints and images
are kept: a second run draws nothing that is there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from disa_framework.files import write_atomically
from disa_framework.schedules import Constant, Linear, StepSchedule
from disa_framework.toy.digits import CAPTIONS
from examples.digits import Result, draw, measure, spread, train

SCHEDULES: dict[str, tuple[StepSchedule, StepSchedule]] = {
    "mar": (Constant(25), Linear(10, 2)),
    "emigm": (Constant(8), Linear(8, 4)),
    "causal": (Constant(25), Linear(20, 5)),
    "spherear": (Constant(25), Linear(25, 10)),
    "harmon": (Constant(25), Linear(10, 2)),
    "nova": (Constant(25), Linear(10, 2)),
    "flowar": (Constant(25), Linear(25, 5)),
    "xar": (Constant(50), Linear(50, 15)),
}
PROMPTS = {"harmon": CAPTIONS, "nova": CAPTIONS}  # of families that draw from them, instead of classes


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    root = Path(options.output)
    lines = ["| family | training | constant | annealed | ratio | evaluations |", "|---|---|---|---|---|---|"]
    for family in options.families:
        runs = [_run(root / family / f"seed{seed}", family, seed, options) for seed in options.seeds]
        lines.append(_line(family, runs))
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    write_atomically(root / "families.md", table.encode())
    print(f"\nFréchet distance over {len(options.seeds)} training run(s), {options.num_images} images each\n\n{table}")


def _run(folder: Path, family: str, seed: int, options: argparse.Namespace) -> tuple[float, Result, Result]:
    """Minutes of training (0 if it had been done), and what constant and annealed steps give."""
    config, start = f"digits/{family}", time.monotonic()
    checkpoint = train(folder, config, seed, "random", options.max_steps)
    minutes = (time.monotonic() - start) / 60
    prompts = PROMPTS.get(family, ())
    constant, annealed = (
        measure(draw(folder / name, config, schedule, checkpoint, options.num_images, prompts), "random")
        for name, schedule in zip(("constant", "annealed"), SCHEDULES[family], strict=True)
    )
    return minutes, constant, annealed


def _line(family: str, runs: Sequence[tuple[float, Result, Result]]) -> str:
    minutes, constant, annealed = zip(*runs, strict=True)
    schedules = " → ".join(type(schedule).__name__ for schedule in SCHEDULES[family])
    ratios = [a.distance / c.distance for c, a in zip(constant, annealed, strict=True)]
    cells = [
        f"{family} ({schedules})",
        f"{statistics.mean(minutes):.1f} min",
        spread([result.distance for result in constant], 3),
        spread([result.distance for result in annealed], 3),
        spread(ratios, 2),
        f"{constant[0].evaluations} → {annealed[0].evaluations}",
    ]
    return "| " + " | ".join(cells) + " |"


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.families", description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=sorted(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training run each")
    parser.add_argument("--num_images", type=int, default=1500, help="images drawn with each schedule")
    parser.add_argument("--max_steps", type=int, help="training steps, instead of the configuration's")
    parser.add_argument("--output", default="outputs/families")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
