"""Fits a solver to a head: tables of a few steps that end where many steps end, for every AR stage.

At a stage, tokens are drawn with many steps of a reference solver, from noise that is kept. Times and coefficients of a
table with few steps are then moved until it ends there, too, from the same noise: a problem of least squares in at most
`5 T` numbers, which the Levenberg-Marquardt method solves with differences of whole runs. Times alone cannot end there,
so they are moved until what they draw has the same quantiles, channel by channel. The head is never trained, and no
images are drawn. Late stages, whose tokens are nearly certain, need a step or two.

Letters: `B` samples, `K` stages, `n` tokens of a stage, `D` token channels, `T` rows of a table, `R` its free numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from disa_framework.models.base import ARDiffusionModel
from disa_framework.progress import Progress, silent
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import begun
from disa_framework.sampling.noise import NoiseSource
from disa_framework.schedules import Constant
from disa_framework.schedules.base import step_count
from disa_framework.solvers import (
    DPMSolverPP,
    Fitted,
    Grid,
    Karras,
    LogSNR,
    PowerTime,
    Process,
    Solver,
    Staged,
    Table,
    Times,
)
from disa_framework.solvers.table import Denoiser, State

_EARLIEST = 0.98  # of the times: nearer to noise, a head that predicts noise says next to nothing of tokens
_LATEST, _FALLING = 1e-5, 0.9999  # the least time, but for what keeps times falling
_FIRST = 0.97  # time of the first row, before it is moved
_SMALL = 1e-3  # change of a number, for differences
_FAR = 0.7  # largest change of a number in an iteration
_STARTS = 4  # of times alone, which have many local optima
_TRIES = 6  # of an iteration, ever shorter
_EXACT, _BETTER = 1e-9, 0.9  # shares of the tokens' size, and of the error of a table of fewer steps
_ENOUGH = 1e-3  # the share of the error that an iteration has to take away

_Found = dict[int, Tensor]
"""Numbers `[T, 5]` of tables, by their `T`: `lambda` of the first row, then logarithms of what it grows by; `A … D`."""


@dataclass(frozen=True)
class Fitting:
    """How a solver is fitted.

    Args:
        steps: numbers of steps to fit tables for.
        coefficients: whether coefficients are moved, too, so that samples end where many steps end; if not, only the
            times of DPM-Solver++ (2M) are, so that samples are distributed as with many steps.
        shared: whether all stages share their tables.
        reference: draws what the tables should draw, without noise of its own.
        reference_steps: of the reference.
        iterations: at most, for each table.
    """

    steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    coefficients: bool = True
    shared: bool = False
    reference: Solver = DPMSolverPP(2, LogSNR(0.98, 0.002))
    reference_steps: int = 100
    iterations: int = 25

    def __post_init__(self) -> None:
        if not self.steps or sorted({step_count(steps) for steps in self.steps}) != [*self.steps]:
            raise ValueError(f"numbers of steps must rise from 1 or more, got {[*self.steps]}")
        step_count(self.reference_steps)
        step_count(self.iterations)


@torch.inference_mode()
def fit_solver(
    model: ARDiffusionModel,
    condition: Condition | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    fitting: Fitting = Fitting(),
    *,
    batch_size: int = 512,
    seed: int = 0,
    progress: Progress = silent,
) -> Solver:
    """Fits tables to a model.

    Args:
        model: whose head is evaluated, in float32 or float64.
        condition: of the samples, `B` of them.
        sampling: all but schedule and solver: tables are for one guidance, one number of stages and so on. What
            guidance adds is not reused while they are fitted.
        fitting: what is fitted.
        batch_size: `B`, where there is no condition.
        seed: of the noise.
        progress: is told after every stage.

    Returns:
        A `Staged` solver, or where stages share their tables one that is the same for all.

    Raises:
        ValueError: if the request does not fit the model.
    """
    # What guidance added before is not known where a table is run from its middle on.
    exact = replace(sampling, guidance=replace(sampling.guidance, reuse=1))
    reference = replace(exact, solver=fitting.reference, schedule=Constant(fitting.reference_steps))
    settled, found = model.settle(reference), list[_Found]()
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a solver is fitted by small differences, which {model.dtype} rounds off: take float32")
    with begun(model, condition, settled, seed, batch_size) as (state, source):
        cases = _cases(model, state, settled, source, progress)
        if fitting.shared:
            return _solver(_Problem(model.process, [*cases], fitting).tables({}), model.process, fitting)
        for case in cases:
            found.append(_Problem(model.process, [case], fitting).tables(found[-1] if found else {}))
    return Staged(tuple(_solver(tables, model.process, fitting) for tables in found))


class _Case:
    """A batch of tokens `[B, n, D]` to be drawn."""

    def __init__(self, denoise: Denoiser, noise: Tensor, reference: Table) -> None:
        self.denoise, self.noise = denoise, noise
        self.goal = self.states(reference)[-1][0]

    def states(self, table: Table, before: Sequence[State] = ()) -> list[State]:
        """Those before each row of a table, and after the last; the first ones may be known."""
        step = self.denoise(table.nodes)
        states = [*before] or [(table.begin(self.noise[0])[0],) * 3]  # as many as any row reads
        for i in range(len(states) - 1, len(table)):
            states.append(table.advance(states[-1], step, i, self.noise, self.noise.dtype))
        return states


def _cases(
    model: ARDiffusionModel, state: Any, reference: SamplingConfig, source: NoiseSource, progress: Progress
) -> Iterator[_Case]:
    """What is to be drawn at each stage after those before it are drawn as the reference does."""
    for stage, steps in enumerate(reference.budget):
        proposal = model.propose(state, stage)
        noise = source.normal(stage, proposal.shape, 1, model.dtype)[:1]
        case = _Case(proposal.denoise, noise, reference.solver.table(model.process, steps))
        yield case
        state = model.accept(state, proposal, case.goal)
        progress(stage + 1, reference.stages)


class _Problem:
    """How near tables come to what many steps draw."""

    def __init__(self, process: Process, cases: Sequence[_Case], fitting: Fitting) -> None:
        self.process, self.cases, self.fitting = process, cases, fitting

    def tables(self, before: _Found) -> _Found:
        """The best that are found, from those of the stage before or a guess on; without what is hardly better than a
        table of fewer steps."""
        found, least = _Found(), math.inf
        exact = _EXACT * max(_size(case.goal) for case in self.cases)
        for steps in self.fitting.steps:
            if least < exact:
                break
            starts = [self._guess(steps, grid) for grid in _guesses(steps)]
            starts += [numbers for known, numbers in before.items() if known == steps]
            starts.sort(key=lambda numbers: _size(self._miss(self._states(numbers))))
            solved = map(self._solved, starts[: 1 if self.fitting.coefficients else _STARTS])
            numbers, error = min(solved, key=itemgetter(1))
            if error < _BETTER * least:
                found[steps], least = numbers, error
        return found

    def _solved(self, numbers: Tensor) -> tuple[Tensor, float]:
        """The numbers of least error from these on, and the error."""
        free, states, damping = self._free(len(numbers)), self._states(numbers), 1e-2
        miss = self._miss(states)
        for _ in range(self.fitting.iterations):
            slopes, least = self._slopes(numbers, free, states, miss), _size(miss)
            normal, gradient = slopes @ slopes.T, slopes @ miss
            for _ in range(_TRIES):
                damped = normal + damping * torch.diag(normal.diag() + 1e-9)
                step = -torch.linalg.solve(damped, gradient).nan_to_num().clamp(-_FAR, _FAR)
                tried = _moved(numbers, free, step)
                states = self._states(tried)
                if _size(after := self._miss(states)) < least:
                    break
                damping *= 4
            else:
                break
            numbers, miss, damping = tried, after, damping / 4
            if _size(miss) > (1 - _ENOUGH) * least:
                break
        return numbers, _size(miss)

    def _slopes(self, numbers: Tensor, places: Tensor, states: Sequence[list[State]], miss: Tensor) -> Tensor:
        """Of what tokens differ by, `[R, cases B n D]`. A number changes nothing before its row."""
        slopes = []
        for number in places.tolist():
            before = [known[: number // 5 + 1] for known in states]
            slopes.append((self._miss(self._states(_moved(numbers, number, _SMALL), before)) - miss) / _SMALL)
        return torch.stack(slopes)

    def _states(self, numbers: Tensor, before: Sequence[list[State]] = ()) -> list[list[State]]:
        """Those of each case; the first ones may be known."""
        table = _solver({len(numbers): numbers}, self.process, self.fitting).build(self.process, len(numbers))
        known = before or [[]] * len(self.cases)
        return [case.states(table, begun) for case, begun in zip(self.cases, known, strict=True)]

    def _miss(self, states: Sequence[list[State]]) -> Tensor:
        """What tokens differ by, or their quantiles, `[cases B n D]`."""
        pairs = [(known[-1][0], case.goal) for case, known in zip(self.cases, states, strict=True)]
        if not self.fitting.coefficients:
            pairs = [(few.sort(dim=0).values, many.sort(dim=0).values) for few, many in pairs]
        return torch.cat([(few - many).flatten() for few, many in pairs]).double().cpu()

    def _guess(self, steps: int, grid: Grid) -> Tensor:
        """DPM-Solver++ (2M) on a grid."""
        times = [min(self.process.unit_time(t), _FIRST) for t in grid.nodes(self.process, steps).times[:-1]]
        levels = [self.process.log_snr(self.process.at_unit_time(t)) for t in times]
        places = torch.tensor([levels[0], *(math.log(b - a) for a, b in pairwise(levels))], dtype=torch.float64)
        rows = DPMSolverPP(2, Times((_times(places, self.process),))).build(self.process, steps).rows
        return torch.cat((places[:, None], torch.tensor([(row.A, row.B, row.C, row.D) for row in rows])), dim=1)

    def _free(self, steps: int) -> Tensor:
        """Places of the numbers that are moved, in a flat table: the first rows have no past."""
        free = torch.ones(steps, 5, dtype=torch.bool)
        free[:, 1:] = self.fitting.coefficients
        free[:1, 3:], free[:2, 4:] = False, False
        return free.flatten().nonzero().squeeze(1)


def _guesses(steps: int) -> list[Grid]:
    """The fewer the steps, the sooner they end."""
    sooner = [LogSNR(_FIRST, 0.25 / steps), Karras(_FIRST, 0.1 / steps)]
    return [*sooner, LogSNR(_FIRST), LogSNR(), Karras(), PowerTime(_FIRST), PowerTime()]


def _size(miss: Tensor) -> float:
    """Mean square; infinite where something is not finite."""
    value = miss.square().mean().item()
    return value if math.isfinite(value) else math.inf


def _moved(numbers: Tensor, places: Tensor | int, by: Tensor | float) -> Tensor:
    flat = numbers.flatten().clone()
    flat[places] += by
    return flat.view_as(numbers)


def _times(places: Tensor, process: Process) -> tuple[float, ...]:
    """From 0 to 1, of `lambda` as `_Found` has it."""
    times, before, latest = [], _EARLIEST, _LATEST
    for level in torch.cat((places[:1], places[1:].exp())).cumsum(dim=0).tolist():
        before = max(min(process.unit_time(process.time_at(level)), before), latest)
        times.append(before)
        before, latest = before * _FALLING, latest * _FALLING
    return tuple(times)


def _solver(tables: _Found, process: Process, fitting: Fitting) -> Solver:
    """The solver with these tables."""
    times = [_times(numbers[:, 0], process) for numbers in tables.values()]
    if not fitting.coefficients:
        return DPMSolverPP(2, Times(tuple(times)))
    coefficients = [numbers[:, 1:].tolist() for numbers in tables.values()]
    rows = (zip(*table, strict=True) for table in zip(times, coefficients, strict=True))
    return Fitted(tuple(tuple((time, *factors) for time, factors in table) for table in rows))
