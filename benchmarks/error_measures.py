"""Which measure of a stage's error should calibration go by?

    python -m benchmarks.error_measures [--mixtures 1 2 3] [--count 20000] [--samples 1000]

The truth of stage `k` with `T` steps is how much further from the exact distribution `T` steps take samples than many
steps do, where the mixture of Gaussians itself gives all other tokens: the limit of many steps. A good measure orders
all `(k, T)` as the truth does, from few samples and without knowing it, and the knapsack finds good budgets with it.

Letters: `B` samples, `N` tokens, `M` components, `K` stages, `J` entries of the menu of step counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from benchmarks.mixture_search import DDPM_950, NOISE, REFERENCE, STAGES, Truth
from disa_framework import NoiseSource, PhiloxNoise, SamplingConfig, generate
from disa_framework.sampling.generation import advance, sample_stage
from disa_framework.schedules import Linear, StepSchedule
from disa_framework.search import Calibration, Profile, measure_profile
from disa_framework.search.coupling import SharedPath
from disa_framework.toy.exact import ProjectedMixture
from disa_framework.toy.mixture import MixtureAR, MixtureState
from examples.digits import spread

MENU = (2, 3, 5, 7, 10, 14, 20, 28, 40, 60, 90)
FINE, REST, LIMIT = 2 * max(MENU), 12, 440
DIRECTIONS, QUANTILES = 64, 40  # as calibration has them
TRUE_DIRECTIONS = 32
SAMPLING = SamplingConfig(solver=DDPM_950, num_stages=STAGES)
TRUTH = "the truth"


@dataclass(frozen=True)
class Run:
    """Tokens `[B, 1, 1]` of the stage that is looked at, and final latents `[B, 1, 1, N]`."""

    tokens: Tensor
    latents: Tensor


@dataclass(frozen=True)
class Cell:
    """Runs that differ at one stage: with many steps, and with few from shared and from independent noise."""

    left: int  # stages from this one on
    many: Run
    shared: Run
    apart: Run


def sliced(a: Tensor, b: Tensor) -> Tensor:
    """Shift of the quantiles of random projections between latents."""
    directions = torch.randn(a[0].numel(), DIRECTIONS, generator=torch.Generator().manual_seed(0))
    along, beside = (x.flatten(1) @ (directions / directions.norm(dim=0)) for x in (a, b))
    shifts = along.sort(dim=0).values - beside.sort(dim=0).values
    return torch.stack([part.mean(dim=0) for part in shifts.tensor_split(QUANTILES)]).abs().mean()


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Of tokens."""
    return (a.flatten().sort().values - b.flatten().sort().values).abs().mean()


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean square of the difference, sample by sample."""
    return (a - b).square().mean()


MEASURES: dict[str, Callable[[Cell], Tensor]] = {
    "quantiles of the latents, independent noise": lambda cell: sliced(cell.apart.latents, cell.many.latents),
    "square of the latents": lambda cell: squared(cell.shared.latents, cell.many.latents),
    "root of the square of the latents": lambda cell: squared(cell.shared.latents, cell.many.latents).sqrt(),
    "square of the tokens": lambda cell: squared(cell.shared.tokens, cell.many.tokens),
    "Wasserstein of the tokens": lambda cell: wasserstein(cell.shared.tokens, cell.many.tokens),
    "Wasserstein of the tokens · (K-k)": lambda cell: cell.left * wasserstein(cell.shared.tokens, cell.many.tokens),
    "Wasserstein of the tokens · (K-k)²": lambda cell: cell.left**2 * wasserstein(cell.shared.tokens, cell.many.tokens),
}


class Kept:
    """Noise that is made once: a run takes as many of a stage's draws as it needs."""

    def __init__(self, seed: int, count: int) -> None:
        self.source, self.made = PhiloxNoise(seed, torch.arange(count)), dict[int, Tensor]()
        self.batch_size = count

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if stage not in self.made:
            self.made[stage] = self.source.normal(stage, shape, FINE + 1, dtype)
        return self.made[stage][:draws]

    def permutation(self, length: int) -> Tensor:
        return self.source.permutation(length)


def cells(model: MixtureAR, samples: int) -> Iterator[list[Cell]]:
    """`[K][J]`; the tokens before a stage have many steps."""
    source, other = Kept(0, samples), Kept(1, samples)
    path = SharedPath(source, DDPM_950, model.process, FINE)
    state = model.begin(None, SAMPLING, source)
    for stage in range(STAGES):
        row = row_of_cells(model, state, stage, path, other)
        yield row
        state = model.accept(state, model.propose(state, stage), row[0].many.tokens)


def row_of_cells(model: MixtureAR, state: MixtureState, stage: int, path: SharedPath, other: NoiseSource) -> list[Cell]:
    """Of one stage, from the state before it."""
    proposal, rest = model.propose(state, stage), range(stage + 1, STAGES)

    def run(steps: int, noise: NoiseSource, later: NoiseSource) -> Run:
        tokens = sample_stage(model, proposal, stage, steps, DDPM_950, noise)
        after = model.accept(state, proposal, tokens)
        return Run(tokens, model.finish(advance(model, after, rest, lambda k, _: REST, DDPM_950, later)))

    many = run(FINE, path.source, path.source)
    return [
        Cell(STAGES - stage, many, run(steps, path.of(steps), path.source), run(steps, other, other)) for steps in MENU
    ]


def profiles(model: MixtureAR, samples: int) -> dict[str, Profile]:
    """What each measure says of all `(k, T)`."""
    rows = list(cells(model, samples))
    tables = {
        name: torch.stack([torch.stack([measure(cell) for cell in row]) for row in rows])
        for name, measure in MEASURES.items()
    }
    calibrated = measure_profile(model, None, SAMPLING, Calibration(MENU, other_steps=REST), batch_size=samples)
    return {"quantiles of the latents, shared noise": calibrated, **{name: profile(t) for name, t in tables.items()}}


def profile(table: Tensor) -> Profile:
    """Of errors `[K, J]`."""
    return Profile(MENU, table[..., None])


def true_errors(model: MixtureAR, exact: ProjectedMixture, source: NoiseSource, count: int, seed: int) -> Tensor:
    """`[K, J]`; by chance they may be below 0."""
    generator = torch.Generator().manual_seed(seed)
    tokens = model.sample_exactly(count, generator).mT  # [B, 1, N, 1]
    uniform, normal = torch.rand(count, 1, generator=generator), torch.randn(count, STAGES, generator=generator)
    path = SharedPath(source, DDPM_950, model.process, FINE)
    state, rows = model.begin(None, SAMPLING, source), []
    for stage in range(STAGES):
        proposal = model.propose(state, stage)
        drawn = [sample_stage(model, proposal, stage, steps, DDPM_950, path.of(steps)) for steps in (*MENU, FINE)]
        states = [model.accept(state, proposal, few) for few in drawn]
        distances = [exact.distance(completed(model, after, stage + 1, uniform, normal)) for after in states]
        rows.append(torch.tensor(distances[:-1]) - distances[-1])
        state = model.accept(state, proposal, tokens[:, 0, stage, None])
    return torch.stack(rows)


def completed(model: MixtureAR, state: MixtureState, drawn: int, uniform: Tensor, normal: Tensor) -> Tensor:
    """Points `[B, N]` whose first tokens are those of a state, and the others exact, given these."""
    shares = state.log_weights[0].softmax(dim=1).cumsum(dim=1)  # [B, M]
    component = (shares < uniform).sum(dim=1).clamp(max=shares.shape[1] - 1)
    past = state.whitened[torch.arange(len(component)), component, :drawn]
    whitened = torch.cat((past, normal[:, drawn:]), dim=1).double()
    return model.means[component] + whitened @ model.cholesky.T


def agreement(errors: Tensor, truth: Tensor) -> tuple[float, float]:
    """Rank correlation over all `(k, T)`, and over the stages with the same number of steps."""
    by_steps = [spearman_corrcoef(a, b).item() for a, b in zip(errors.T, truth.T, strict=True)]
    return spearman_corrcoef(errors.flatten(), truth.flatten()).item(), statistics.mean(by_steps)


def compare(model: MixtureAR, sources: Sequence[NoiseSource], count: int, samples: int) -> dict[str, tuple[float, ...]]:
    """Of each measure: both rank correlations, and the excess of its budget over linear's."""
    exact = Truth(model, count)
    narrow = ProjectedMixture.of(model, projections=TRUE_DIRECTIONS)
    truths = [true_errors(model, narrow, source, count, i) for i, source in enumerate(sources)]
    truth, found = torch.stack(truths).mean(dim=0), profiles(model, samples)
    agreements = {name: agreement(torch.tensor(p.errors), truth) for name, p in found.items()}
    agreements[TRUTH] = agreement(*truths)
    found[TRUTH] = profile(truth.clamp(min=0))

    def excess(schedule: StepSchedule) -> float:
        draw = partial(generate, model, None, SamplingConfig(schedule, DDPM_950), batch_size=count)
        return statistics.mean(exact.distance(draw(noise=source)) for source in sources) - exact.floor

    reference = excess(Linear(50, 5))
    return {name: (*agreements[name], excess(p.schedule(LIMIT)) / reference) for name, p in found.items()}


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.error_measures", description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 2, 3], help="seeds of their means")
    parser.add_argument("--count", type=int, default=20_000, help="samples behind the truth")
    parser.add_argument("--samples", type=int, default=1000, help="samples behind a measure")
    options = parser.parse_args(args)
    sources = [Kept(seed, options.count) for seed in NOISE[:2]]
    with torch.inference_mode():
        runs = [compare(MixtureAR(seed=seed), sources, options.count, options.samples) for seed in options.mixtures]
    print(f"| measure | rank correlation | the same, at equal T | excess over {REFERENCE} |\n|---|---|---|---|")
    for name in runs[0]:
        columns = zip(*(run[name] for run in runs), strict=True)
        print(f"| {name} | {' | '.join(spread(values, 2) for values in columns)} |")


if __name__ == "__main__":
    main()
