"""Can a late stage start at a lower noise level, from what `z` predicts?

    python -m benchmarks.experiments.late_start [--count 1000] [--seeds 1 2 3]

Late tokens are nearly determined, so the way from pure noise to a little noise may be left out: from the time `t0` on
(1 is noise, 0 the token) the solver goes on as usual from `alpha m + sigma noise`, where `m` is the mean of the tokens
given `z`. The head itself knows it: with pure noise it says what it expects of the clean token. That takes one
evaluation, which is counted. The first half of 16 stages is drawn as usual.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.experiments.images import Images, half_stochastic, heading, parser, row
from benchmarks.mixture_recipes import FINE, Mixture
from disa_framework import SamplingConfig
from disa_framework.schedules import PerStage
from disa_framework.solvers import DPMSolverPP, LogSNR, Process, Solver, VPCosine
from disa_framework.solvers.table import Row, Table

STAGES, LATE = 16, 8
STARTS = (0.8, 0.6, 0.4, 0.3)


@dataclass(frozen=True)
class FromPrediction(Solver):
    """Begins at a time from what the head predicts with pure noise, one evaluation, and fresh noise.

    Args:
        solver: draws the rest.
        start: `t0`, from 0 to 1.
    """

    solver: DPMSolverPP
    start: float

    def build(self, process: Process, steps: int) -> Table:
        rest = replace(self.solver, grid=LogSNR(first=self.start)).build(process, steps - 1)
        noise = LogSNR().nodes(process, 1).take([0])
        P, Q = process.to_clean(noise.alphas[0], noise.sigmas[0])
        jump = Row(P, Q, A=0.0, B=rest.nodes.alphas[0], S=rest.nodes.sigmas[0] * self.solver.temperature)
        return replace(rest, nodes=noise + rest.nodes, rows=(jump, *rest.rows))


@dataclass(frozen=True)
class FromStage(Solver):
    """One solver for the first stages, another one from a stage on.

    Args:
        early, late: the solvers.
        stage: the first of the other one.
    """

    early: Solver
    late: Solver
    stage: int = LATE

    def at(self, stage: int) -> Solver:
        return self.late if stage >= self.stage else self.early

    def build(self, process: Process, steps: int) -> Table:
        return self.early.build(process, steps)


def compare(
    measure: Callable[[SamplingConfig], list[float]], early: tuple[Solver, int], late: DPMSolverPP, menu: Sequence[int]
) -> None:
    """Prints errors for each start.

    Args:
        measure: of a sampling config.
        early: draws the first half of the stages, in so many steps each.
        late: draws the second, as it is and from predictions.
        menu: steps of a late stage, one a column.
    """
    heading("evaluations of a late stage", *menu)
    for name, other in {"noise": late, **{f"{start:g}": FromPrediction(late, start) for start in STARTS}}.items():
        budgets = (PerStage((early[1],) * LATE + (steps,) * (STAGES - LATE)) for steps in menu)
        row(f"from {name}", *(measure(SamplingConfig(each, FromStage(early[0], other), STAGES)) for each in budgets))


def images(options: argparse.Namespace) -> None:
    """Of Fashion-MNIST; spread over the seeds of the noise."""
    solver = half_stochastic(STAGES)
    compare(Images(options.count, options.seeds).distances, (solver, 8), solver, (3, 5))


def mixtures() -> None:
    """Of numbers; spread over three mixtures."""
    known = [Mixture(seed, VPCosine(), 10_000) for seed in (1, 2, 3)]
    late = DPMSolverPP(grid=LogSNR())
    compare(lambda sampling: [mixture.error(sampling) for mixture in known], (FINE, 30), late, (2, 3, 4, 5, 8))


def main(args: Sequence[str] | None = None) -> None:
    options = parser("late_start", __doc__ or "", 1000, (1, 2, 3)).parse_args(args)
    torch.set_num_threads(options.threads)
    mixtures()
    images(options)


if __name__ == "__main__":
    main()
