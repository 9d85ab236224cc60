"""Calibration: how much each stage's steps matter, measured without images, and the best budget that follows.

At stage `k`, tokens are drawn with few steps and with many, from the same noise. Both runs are then finished alike, and
what has moved between them is how far the few steps at this stage shift what comes out. Shifts of several stages add
up as long as they are small, so the best budget within a limit is a multiple-choice knapsack.

The shift is that of the distribution, not of single samples: latents are projected on random directions, and the
quantiles of each projection are compared (the sliced Wasserstein distance; Rabin et al., 2011). A sample may end
elsewhere with other steps, and the whole be as good. Shared noise keeps the luck out of the comparison.

Letters: `B` samples, `K` stages, `M` entries of the menu of step counts, `P` directions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
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
    """How far each step count at each stage shifts what comes out.

    Attributes:
        menu: the step counts, rising.
        errors: `[K][M]`, a row a stage; they do not rise with the steps.
    """

    menu: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]

    def front(
        self, costs: Sequence[Sequence[float]], fixed_cost: float = 0.0, monotone: bool = False,
        resolution: float | None = None,
    ) -> list[Choice]:  # fmt: skip
        """The best budgets for all costs; `costs [K][M]` are those of the menu, see `CostModel.stage_costs`."""
        return pareto_front(self.menu, self.errors, costs, fixed_cost, monotone, resolution)

    def schedule(self, limit: float, costs: Sequence[Sequence[float]] | None = None, **options: float) -> PerStage:
        """The best budget that costs at most `limit`.

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
        """Writes a JSON file."""
        content = {"menu": self.menu, "errors": self.errors}
        write_atomically(Path(path), (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Reads what `save` wrote.

        Raises:
            ValueError: if it is something else.
        """
        try:
            content = json.loads(Path(path).read_text())
            return cls(tuple(content["menu"]), tuple(tuple(row) for row in content["errors"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no profile of a calibration: {error}") from error


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
    path = SharedPath(source, solver, model.process, fine_steps or 2 * max(menu))
    fine, shifts = fine_steps or 2 * max(menu), _Shifts(model, seed)
    looked_at = sorted({*range(0, stages, stride), stages - 1})
    rows: dict[int, list[float]] = {}
    with evaluating(model):
        state = model.begin(asked, stages, guidance or Guidance(), source, count)
        for stage in range(stages):
            proposal = model.propose(state, stage)
            after = model.accept(state, proposal, sample_stage(model, proposal, stage, fine, solver, source))
            if stage in looked_at:

                def finish(state: object, stage: int = stage) -> Tensor:
                    rest = range(stage + 1, stages)
                    return model.finish(advance(model, state, rest, lambda k, _: other_steps, solver, source))

                true = shifts.quantiles(finish(after))
                rows[stage] = []
                for steps in menu:
                    tokens = sample_stage(model, proposal, stage, steps, solver, path.of(steps))
                    moved = shifts.quantiles(finish(model.accept(state, proposal, tokens)))
                    rows[stage].append((moved - true).abs().mean().item())
            state = after
            if progress:
                progress(stage + 1, stages)
    return Profile(tuple(menu), _between(rows, stages))


class _Shifts:
    """Quantiles of random projections of latents, averaged over neighbours."""

    _DIRECTIONS, _QUANTILES = 64, 40

    def __init__(self, model: ARDiffusionModel, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = model.latent_shape[0] * model.latent_shape[1] * model.latent_shape[2]
        directions = torch.randn(size, self._DIRECTIONS, generator=generator)
        self.directions = (directions / directions.norm(dim=0)).to(model.device)

    def quantiles(self, latents: Tensor) -> Tensor:
        """`[Q, P]` of `latents [B, C, H, W]`."""
        ordered = (latents.flatten(1).float() @ self.directions).sort(dim=0).values
        return torch.stack([part.mean(dim=0) for part in ordered.tensor_split(min(self._QUANTILES, len(ordered)))])


def _between(rows: dict[int, list[float]], stages: int) -> tuple[tuple[float, ...], ...]:
    """Rows of all stages, interpolated, and never rising with the steps: what rises is noise."""
    known = sorted(rows)
    errors = []
    for stage in range(stages):
        low = max(k for k in known if k <= stage)
        high = min(k for k in known if k >= stage)
        share = (stage - low) / (high - low) if high > low else 0.0
        row = torch.lerp(torch.tensor(rows[low]), torch.tensor(rows[high]), share)
        errors.append(tuple(row.cummin(dim=0).values.tolist()))
    return tuple(errors)


def calibrate(
    model: ARDiffusionModel, condition: Condition | None = None, *, limit: float, solver: Solver, **options: object
) -> PerStage:
    """The schedule that shifts what comes out least, within `limit` diffusion steps of the whole run.

    Args:
        model, condition, solver: as of `measure_profile`.
        limit: steps of all stages together.
        options: as of `measure_profile`.
    """
    return measure_profile(model, condition, solver=solver, **options).schedule(limit)  # type: ignore[arg-type]
