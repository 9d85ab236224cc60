"""Calibration: how much each stage's steps matter, measured without images, and the best budget that follows.

At stage `k`, tokens are drawn with few steps and with many, from the same noise. Both runs are then finished alike, and
what has moved between them is how far the few steps at this stage shift what comes out. Shifts of several stages add
up as long as they are small, so the best budget within a limit is a multiple-choice knapsack.

The shift is that of the distribution, not of single samples: latents are projected on random directions, and the
quantiles of each projection are compared (the sliced Wasserstein distance; Rabin et al., 2011). A sample may end
elsewhere with other steps, and the whole be as good. Shared noise keeps the luck out of the comparison.

Letters: `B` samples, `K` stages, `M` entries of the menu of step counts, `P` directions, `Q` quantiles, `F = P Q`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from disa_framework.files import write_atomically
from disa_framework.measure.cost import CostModel
from disa_framework.models.base import ARDiffusionModel
from disa_framework.progress import Progress, silent
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import advance, begun, sample_stage
from disa_framework.sampling.noise import NoiseSource, PhiloxNoise
from disa_framework.schedules import PerStage
from disa_framework.schedules.base import step_count
from disa_framework.search.coupling import SharedPath
from disa_framework.search.knapsack import Choice, best_within, pareto_front
from disa_framework.solvers import Solver
from disa_framework.values import check_numbers

_CELLS = 10_000  # of the knapsack's axis of seconds
_PROJECTIONS, _QUANTILES = 64, 40


@dataclass(frozen=True)
class Calibration:
    """How a profile is measured: about `K^2 M / 2` stages of `other_steps` steps are drawn.

    Args:
        menu: step counts to choose from, rising.
        other_steps: of the stages after the one that is looked at.
        reference: draws what few steps are compared with; the config's own solver by default.
        reference_steps: how many it takes; twice the most of the menu by default.
        stride: measures every so many stages only, and interpolates between them.
    """

    menu: tuple[int, ...] = (2, 3, 4, 5, 7, 10, 14, 20, 28, 40, 60, 90, 130)
    other_steps: int = 12
    reference: Solver | None = None
    reference_steps: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if not self.menu or sorted({step_count(steps) for steps in self.menu}) != [*self.menu]:
            raise ValueError(f"a menu of step counts must rise from 1 or more, got {self.menu}")
        check_numbers(Calibration.__init__, vars(self))
        step_count(self.other_steps)

    @property
    def finest(self) -> int:
        """Steps of the runs that few steps are compared with."""
        return self.reference_steps or 2 * self.menu[-1]


@dataclass(frozen=True)
class Profile:
    """How each step count at each stage shifts what comes out.

    Attributes:
        menu: the step counts, rising.
        shifts: `[K, M, F]`, of each quantile of each projection.
    """

    menu: tuple[int, ...]
    shifts: Tensor

    def every_step(self) -> Profile:
        """The same for every whole number of steps in the menu's range."""
        if len(self.menu) == 1:
            return self
        steps = torch.arange(self.menu[0], self.menu[-1] + 1)
        left, share = between(self.menu, steps)
        shifts = torch.lerp(self.shifts[:, left], self.shifts[:, left + 1], share[:, None])
        return Profile(tuple(steps.tolist()), shifts)

    @cached_property
    def errors(self) -> list[list[float]]:
        """`[K][M]`, mean sizes of the shifts. They never rise with the steps: what rises is noise."""
        return self.shifts.abs().mean(dim=2).cummin(dim=1).values.tolist()

    def costs(self, cost: CostModel | None = None) -> tuple[list[list[float]], float]:
        """`[K][M]` of the menu, and what every budget costs on top; steps, if there is no cost model."""
        if cost is None:
            return [[*map(float, self.menu)]] * len(self.shifts), 0.0
        return cost.stage_costs(self.menu), cost.fixed

    def front(self, cost: CostModel | None = None, resolution: float = 1.0) -> list[Choice]:
        """The best budgets for all costs, of every whole number of steps in the menu's range."""
        every = self.every_step()
        return pareto_front(every.menu, every.errors, *every.costs(cost), resolution)

    def schedule(self, limit: float, cost: CostModel | None = None) -> PerStage:
        """The best budget that costs at most `limit`, of every whole number of steps in the menu's range.

        Args:
            limit: in the unit of the cost model; in steps of the whole run if there is none.
            cost: of budgets.

        Raises:
            ValueError: if no budget is within the limit; the message names the cheapest.
        """
        seconds = cost is not None and cost.unit == "seconds"
        resolution = max(limit / _CELLS, 1e-9) if seconds else 1.0
        return PerStage(best_within(self.front(cost, resolution), limit).budget)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        tensors = {"menu": torch.tensor(self.menu), "shifts": self.shifts.contiguous()}
        write_atomically(Path(path), safetensors.torch.save(tensors))

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Reads what `save` wrote.

        Raises:
            ValueError: if it is something else.
        """
        try:
            tensors = safetensors.torch.load(Path(path).read_bytes())
            return cls(tuple(tensors["menu"].tolist()), tensors["shifts"])
        except (KeyError, SafetensorError) as error:
            raise ValueError(f"{path} is no profile of a calibration: {error}") from error


def between(menu: Sequence[int], steps: Tensor) -> tuple[Tensor, Tensor]:
    """Where steps lie in a menu: which entry is below, and what share of the way they are to the next one, in `1 / T`.

    Errors of first order are straight lines in `1 / T`.
    """
    entries = torch.tensor(menu, dtype=torch.float32, device=steps.device)
    left = (torch.searchsorted(entries, steps.detach().float(), right=True) - 1).clamp(0, len(menu) - 2)
    low, high = 1 / entries[left], 1 / entries[left + 1]
    return left, (low - 1 / steps) / (low - high)


@torch.inference_mode()
def measure_profile(
    model: ARDiffusionModel,
    condition: Condition | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    calibration: Calibration = Calibration(),
    *,
    batch_size: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Profile:
    """Measures a profile.

    Args:
        model: whose schedule is wanted.
        condition: of the samples, `B` of them.
        sampling: as the schedule is to be used with.
        calibration: what is measured.
        batch_size: `B`, where there is no condition.
        seed: of the noise and the directions.
        progress: is told after every stage.

    Raises:
        ValueError: if the request does not fit the model.
    """
    settled = model.settle(sampling)
    stages, rows = settled.stages, dict[int, Tensor]()
    looked_at = {*range(0, stages, calibration.stride), stages - 1}
    with begun(model, condition, settled, seed, batch_size) as (state, source):
        run = _Run(model, settled, calibration, source, _directions(model, seed))
        for stage in range(stages):
            if model.finished(state).all():  # nothing that these stages draw shows
                rows |= dict.fromkeys(looked_at - rows.keys(), torch.zeros_like(next(iter(rows.values()))))
                break
            state, shift = run.stage(state, stage, stage in looked_at)
            if shift is not None:
                rows[stage] = shift
            progress(stage + 1, stages)
    return Profile(calibration.menu, _interpolated(rows, stages).cpu())


class _Run:
    """Draws with many steps, and looks at what fewer would do."""

    def __init__(
        self,
        model: ARDiffusionModel,
        sampling: SamplingConfig,
        calibration: Calibration,
        source: PhiloxNoise,
        directions: Tensor,
    ) -> None:
        self.model, self.solver, self.stages, self.calibration = model, sampling.solver, sampling.stages, calibration
        self.source, self.directions, self.reference = source, directions, calibration.reference or sampling.solver
        shared = self.reference == sampling.solver  # of another solver, runs share the initial noise alone
        self.path = SharedPath(source, self.reference, model.process, calibration.finest) if shared else None

    def stage(self, state: Any, stage: int, looked_at: bool) -> tuple[Any, Tensor | None]:
        """The state after a stage, and the shifts `[M, F]` if it is looked at."""
        proposal = self.model.propose(state, stage)

        def after(steps: int, solver: Solver, source: NoiseSource) -> Any:
            tokens = sample_stage(self.model, proposal, stage, steps, solver, source)
            return self.model.accept(state, proposal, tokens)

        fine = after(self.calibration.finest, self.reference, self.source)
        if not looked_at:
            return fine, None
        noises = {steps: self.path.of(steps) if self.path else self.source for steps in self.calibration.menu}
        ends = [self._end(after(steps, self.solver, noise), stage) for steps, noise in noises.items()]
        return fine, torch.stack(ends) - self._end(fine, stage)

    def _end(self, state: Any, stage: int) -> Tensor:
        """Quantiles `[F]` of what becomes of a state after a stage."""
        rest, steps = range(stage + 1, self.stages), self.calibration.other_steps
        last = advance(self.model, state, rest, lambda *_: steps, self.solver, self.source)
        return _quantiles(self.model.finish(last), self.directions)


def _directions(model: ARDiffusionModel, seed: int) -> Tensor:
    """Random ones `[latents, P]` of length 1."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(math.prod(model.latent_shape), _PROJECTIONS, generator=generator, dtype=torch.float32)
    return (directions / directions.norm(dim=0)).to(model.device)


def _quantiles(latents: Tensor, directions: Tensor) -> Tensor:
    """Averages `[F]` of neighbors in each projection of `latents [B, …]`."""
    with torch.autocast(latents.device.type, enabled=False):  # products in bfloat16 would be all rounding
        ordered = (latents.flatten(1).float() @ directions).sort(dim=0).values
    parts = ordered.tensor_split(min(_QUANTILES, len(ordered)))
    return torch.cat([part.mean(dim=0) for part in parts])


def _interpolated(rows: dict[int, Tensor], stages: int) -> Tensor:
    """Shifts `[K, M, F]` of all stages: in between, the nearest one's in the size that is expected there."""
    known, sizes = sorted(rows), {k: row.abs().mean(dim=1, keepdim=True) for k, row in rows.items()}
    shifts = []
    for stage in range(stages):
        low, high = max(k for k in known if k <= stage), min(k for k in known if k >= stage)
        share = (stage - low) / (high - low) if high > low else 0.0
        near = low if share < 0.5 else high
        expected = torch.lerp(sizes[low], sizes[high], share)
        shifts.append(rows[near] * (expected / sizes[near].clamp(min=1e-12)))
    return torch.stack(shifts)
