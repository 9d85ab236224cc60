"""Do tokens that need more steps than others of their stage profit from having them (GtR, arXiv 2510.17171)?

    python -m benchmarks.experiments.needy_tokens [--count 1000] [--seeds 1 2 3]

Half of the tokens of every stage get some steps more than the schedule says and the other half as many fewer, so that
the head is evaluated as often as before. Which half is decided by one of several measures of need. What it takes to
measure the need is not counted, so that an idea that fails here fails for certain. Differences are from the same steps
for all, on the same noise.

Letters: `B` batch, `n` tokens of a stage, `D` token channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.experiments.images import Images, half_stochastic, heading, parser, row
from benchmarks.mixture_recipes import Mixture
from disa_framework import SamplingConfig
from disa_framework.sampling.order import RandomOrder
from disa_framework.sampling.stage_sizes import CosineSizes
from disa_framework.schedules import Constant
from disa_framework.solvers import DPMSolverPP, LogSNR, Process, Solver, VPCosine
from disa_framework.solvers.table import Denoiser, Normal, Table

ODE = DPMSolverPP(grid=LogSNR())
CHEAP, MANY, DRAWS, SIDE = 4, 20, 3, 4


@dataclass(frozen=True)
class Look:
    """What can be found out about the tokens of a stage before they are drawn."""

    denoise: Denoiser
    process: Process
    normal: Normal

    def draw(self, steps: int, others: int = 0) -> Tensor:
        """Tokens `[B, n, D]` of an ODE, from their own noise or from that of other samples."""

        def normal(draws: int, dtype: torch.dtype) -> Tensor:
            return self.normal(draws, dtype).roll(others, dims=1)

        return ODE.sample(self.denoise, self.process, steps, normal)


Need = Callable[[Look, int], Tensor]
"""`(look, steps) -> [B, n]`, larger for tokens that are to have more."""


def variance(look: Look, steps: int) -> Tensor:
    """Of tokens that are drawn a few times in few steps."""
    return torch.stack([look.draw(CHEAP, i + 1) for i in range(DRAWS)]).var(dim=0).mean(dim=-1)


def detail(look: Look, steps: int) -> Tensor:
    """Squared differences between neighboring pixels, in what the head expects of a token at its first evaluation."""
    patch = look.draw(1).unflatten(-1, (SIDE, SIDE))
    return patch.diff(dim=-1).square().sum(dim=(-2, -1)) + patch.diff(dim=-2).square().sum(dim=(-2, -1))


def error(look: Look, steps: int) -> Tensor:
    """How far the steps of the schedule end from where many do, which nobody knows before."""
    return (look.draw(steps) - look.draw(MANY)).square().mean(dim=-1)


def luck(look: Look, steps: int) -> Tensor:
    """Nothing."""
    return look.normal(1, torch.float32)[0, ..., 0].roll(1, dims=0)


NEEDS: dict[str, Need] = {
    "at random": luck, "highest variance": variance, "most detail": detail, "largest error": error,
}  # fmt: skip


Settings = Sequence[tuple[int, int]]
"""Steps for all, and how many of them half of the tokens get from the other half."""


def shares(tokens: int, steps: int, extra: int) -> list[int]:
    """Steps of each token of a stage, the neediest first: `tokens * steps` in all."""
    half = tokens // 2
    return [steps + extra] * half + [steps] * (tokens - 2 * half) + [steps - extra] * half


@dataclass(frozen=True)
class Divided(Solver):
    """Steps go where the need is. All tokens are drawn with each count here, and those with theirs are kept: it is the
    outcome that is asked for, not the time.

    Args:
        solver: draws the tokens.
        extra: steps that half of the tokens get from the other half.
        need: decides which.
    """

    solver: Solver
    extra: int
    need: Need

    def build(self, process: Process, steps: int) -> Table:
        return self.solver.build(process, steps)

    def sample(
        self,
        denoise: Denoiser,
        process: Process,
        steps: int,
        normal: Normal,
        head_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        need = self.need(Look(denoise, process, normal), steps)
        rank = need.argsort(dim=1, descending=True).argsort(dim=1)
        counts = shares(need.shape[1], steps, self.extra)
        given = torch.tensor(counts)[rank][..., None]
        tokens = torch.zeros(())
        for count in {*counts}:
            tokens = torch.where(
                given == count, self.solver.sample(denoise, process, count, normal, head_dtype), tokens
            )
        return tokens


def compare(
    measure: Callable[[Solver, int], list[float]], solver: Solver, needs: Sequence[str], settings: Settings
) -> None:
    """Prints errors with the same steps for all, and what dividing them changes."""
    heading("steps of a token", "distance", "less the same for all")
    for steps, extra in settings:
        base = measure(solver, steps)
        row(f"{steps} for all", base, "")
        for need in needs:
            errors = measure(Divided(solver, extra, NEEDS[need]), steps)
            changes = [mine - same for mine, same in zip(errors, base, strict=True)]
            row(f"{steps + extra} or {steps - extra}, {need}", errors, changes)


def images(options: argparse.Namespace) -> None:
    """Of Fashion-MNIST, in 8 stages of about six; spread over the seeds of the noise."""
    measured = Images(options.count, options.seeds)

    def distances(solver: Solver, steps: int) -> list[float]:
        return measured.distances(SamplingConfig(Constant(steps), solver, 8))

    compare(distances, half_stochastic(8), [*NEEDS], ((6, 1), (6, 2)))


def mixtures() -> None:
    """Of numbers, in 8 stages of about two; spread over three mixtures."""
    known = [Mixture(seed, VPCosine(), 10_000) for seed in (1, 2, 3)]
    drawn = SamplingConfig(num_stages=8, order=RandomOrder(), stage_sizes=CosineSizes())

    def errors(solver: Solver, steps: int) -> list[float]:
        return [mixture.error(replace(drawn, schedule=Constant(steps), solver=solver)) for mixture in known]

    compare(errors, ODE, [need for need in NEEDS if need != "most detail"], ((4, 1), (6, 2)))


def main(args: Sequence[str] | None = None) -> None:
    options = parser("needy_tokens", __doc__ or "", 1000, (1, 2, 3)).parse_args(args)
    torch.set_num_threads(options.threads)
    images(options)
    mixtures()


if __name__ == "__main__":
    main()
