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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from disa_framework.files import write_atomically
from disa_framework.generation import advance, check_request, evaluating, sample_stage
from disa_framework.guidance import Guidance
from disa_framework.models.base import ARDiffusionModel, Condition
from disa_framework.noise import PhiloxNoise
from disa_framework.schedules import PerStage
from disa_framework.search.coupling import SharedPath
from disa_framework.search.knapsack import Choice, best_within, pareto_front
from disa_framework.solvers import Solver

MENU = (2, 3, 4, 5, 7, 10, 14, 20, 28, 40, 60, 90, 130)

Progress = Callable[[int, int], None]
"""Is told how many of how many stages are done."""


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

    def front(
        self, costs: Sequence[Sequence[float]], fixed_cost: float = 0.0, monotone: bool = False,
        resolution: float | None = None,
    ) -> list[Choice]:  # fmt: skip
        """The best budgets for all costs; `costs [K][M]` are those of the menu, see `CostModel.stage_costs`."""
        return pareto_front(self.menu, self.errors, costs, fixed_cost, monotone, resolution)

    def schedule(self, limit: float, costs: Sequence[Sequence[float]] | None = None, **options: float) -> PerStage:
        """The best budget of the menu's step counts that costs at most `limit`.

        Args:
            limit: in the unit of the costs; in steps of the whole run if there are none.
            costs: `[K][M]` of the menu.
            options: as `front` takes them.

        Raises:
            ValueError: if no budget is within the limit; the message names the cheapest.
        """
        if costs is None:
            costs, options = [self.menu] * len(self.errors), {"resolution": 1.0, **options}
        return PerStage(best_within(self.front(costs, **options), limit).budget)  # type: ignore[arg-type]

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
    *,
    solver: Solver,
    guidance: Guidance | None = None,
    num_stages: int | None = None,
    menu: Sequence[int] = MENU,
    fine_steps: int | None = None,
    other_steps: int = 12,
    batch_size: int = 1000,
    stride: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Measures a profile: about `K^2 M / 2` stages of `other_steps` steps are drawn.

    Args:
        model: whose schedule is wanted.
        condition: of the samples, `B` labels or prompts.
        solver, guidance, num_stages: as the schedule is to be used with.
        menu: step counts to choose from, rising.
        fine_steps: of the runs that few steps are compared with; twice the largest of the menu by default.
        other_steps: of the stages after the one that is looked at.
        batch_size: `B`, where there is no condition.
        stride: measures every so many stages only, and interpolates between them.
        seed: of the noise and the directions.
        progress: is told after every stage.

    Raises:
        ValueError: if the request does not fit the model.
    """
    stages = model.max_stages if num_stages is None else num_stages
    check_request(model, stages, condition)
    count = batch_size if condition is None else len(condition)
    asked = condition.to(model.device) if isinstance(condition, Tensor) else condition
    source = PhiloxNoise(seed, torch.arange(count), model.device)
    fine, projections = fine_steps or 2 * max(menu), _Projections(model, seed)
    path = SharedPath(source, solver, model.process, fine)
    looked_at = sorted({*range(0, stages, stride), stages - 1})
    rows: dict[int, Tensor] = {}

    def end(state: object, stage: int) -> Tensor:
        rest = range(stage + 1, stages)
        last = advance(model, state, rest, lambda *_: other_steps, solver, source)
        return projections.quantiles(model.finish(last))

    with evaluating(model):
        state = model.begin(asked, stages, guidance or Guidance(), source, count)
        for stage in range(stages):
            proposal = model.propose(state, stage)
            after = model.accept(state, proposal, sample_stage(model, proposal, stage, fine, solver, source))
            if stage in looked_at:
                few = (sample_stage(model, proposal, stage, steps, solver, path.of(steps)) for steps in menu)
                ends = [end(model.accept(state, proposal, tokens), stage) for tokens in few]
                rows[stage] = torch.stack(ends) - end(after, stage)
            state = after
            if progress:
                progress(stage + 1, stages)
    return Profile(tuple(menu), _interpolated(rows, stages).cpu())


class _Projections:
    """Of latents on random directions."""

    _DIRECTIONS, _QUANTILES = 64, 40

    def __init__(self, model: ARDiffusionModel, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(math.prod(model.latent_shape), self._DIRECTIONS, generator=generator)
        self.directions = (directions / directions.norm(dim=0)).to(model.device)

    def quantiles(self, latents: Tensor) -> Tensor:
        """Averages `[F]` of neighbors in each projection of `latents [B, C, H, W]`."""
        ordered = (latents.flatten(1).float() @ self.directions).sort(dim=0).values
        parts = ordered.tensor_split(min(self._QUANTILES, len(ordered)))
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


def calibrate(
    model: ARDiffusionModel, condition: Condition | None = None, *, limit: float, solver: Solver, **options: object
) -> PerStage:
    """The schedule that shifts what comes out least, within `limit` diffusion steps of the whole run.

    Args:
        model, condition, solver: as of `measure_profile`.
        limit: steps of all stages together.
        options: as of `measure_profile`.
    """
    profile = measure_profile(model, condition, solver=solver, **options)  # type: ignore[arg-type]
    return profile.every_step().schedule(limit)
